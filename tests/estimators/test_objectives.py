"""A weighted KL and free bits under every loss, against their formulas summed over all codes."""

import math

import pyro
import pytest
import torch
from pairs import validated_once
from problems import PROBLEMS, B, D, K, N, gradients, joint_in_a_loop, log_q_in_a_loop
from pyro.infer import SVI, Trace_ELBO, TraceEnum_ELBO, TraceMeanField_ELBO

from pyro_gvae.elbos.exact import ExactELBO, ExactEvidence
from pyro_gvae.elbos.free_bits import FreeBits
from pyro_gvae.elbos.sampled import Estimate, SampledELBO
from pyro_gvae.estimators import ESTIMATORS, Objective, estimator, with_free_bits, with_kl_weight
from pyro_gvae.estimators.claims import FreeNats, WeightedKL
from pyro_gvae.exact import Pair
from pyro_gvae.handlers import discretize, enumerated, relax, weigh_kl
from pyro_gvae.jit.traced_elbo import TracedELBO
from pyro_gvae.models.categorical_vae import CategoricalVAE
from pyro_gvae.train.step import make_step

PROBLEM = next(problem for problem in PROBLEMS if problem.name == "bernoulli-learned")
ELBOS_OF_THE_MODEL = [
    name for name, make in ESTIMATORS.items() if make().is_unbiased and make().objective is Objective.ELBO
]


def formula(vae, x, beta=1.0, nats=0.0):
    """Compute -sum_b E_q[log p(x|z)] + beta B sum_n max(nats, mean KL_n), one code and one latent at a time."""
    log_q = log_q_in_a_loop(vae, x)  # (S, B)
    log_prior = vae.prior_logits.log_softmax(-1)
    prior = torch.stack([sum(log_prior[n, k] for n, k in enumerate(code)) for code in torch.cartesian_prod(*CODES)])
    likelihood = joint_in_a_loop(PROBLEM, vae, x) - prior.unsqueeze(-1)
    q = vae.encoder(x).log_softmax(-1)
    kl = [(q[:, n].exp() * (q[:, n] - log_prior[n])).sum(-1).mean() for n in range(N)]
    return -(log_q.exp() * likelihood).sum() + beta * len(x) * sum(one.clamp_min(nats) for one in kl)


CODES = [torch.arange(K)] * N
WITHOUT_KL = ["exact-evidence", "exact-wake", "vimco", "ovis", "tvo", "daps", "reweighted-wake-sleep"]


class ScoreFunction(SampledELBO):
    """The simplest sampled loss: f has the scales of the programs, log q in the score has not."""

    def estimate(self, target):
        draws = target.draw(self.num_particles)
        found = draws.log_joint - draws.log_q
        return Estimate(found.mean(0), (found + found.detach() * draws.scores[0].log_q).mean(0).sum())


@pytest.mark.parametrize("beta", [0.0, 0.3, 1.0, 4.0])
@pytest.mark.parametrize("weighed_first", [True, False])
@pytest.mark.parametrize(
    ("handler", "elbo"),
    [
        (discretize, ExactELBO()),
        (discretize, ExactELBO(slice_size=3)),
        (enumerated, TraceEnum_ELBO(max_plate_nesting=1)),
    ],
)
def test_exact_losses_weigh_their_kl(handler, elbo, weighed_first, beta):
    vae, x = PROBLEM.vae(), PROBLEM.x()

    def handled(program):
        return handler(weigh_kl(program, beta=beta)) if weighed_first else weigh_kl(handler(program), beta=beta)

    loss = elbo.differentiable_loss(handled(vae.model), handled(vae.guide), x)
    expected = formula(vae, x, beta)
    torch.testing.assert_close(loss, expected)
    found, wanted = gradients(loss, vae), gradients(expected, vae)
    for name in wanted:
        torch.testing.assert_close(found[name], wanted[name])


@pytest.mark.parametrize("weighed_first", [True, False])
def test_the_analytic_kl_of_soft_samples_is_weighed(weighed_first):
    vae, x = PROBLEM.vae(), PROBLEM.x()
    losses = {}
    for beta in (0.0, 1.0, 3.0):
        model, guide = (
            relax(weigh_kl(program, beta=beta)) if weighed_first else weigh_kl(relax(program), beta=beta)
            for program in (vae.model, vae.guide)
        )
        torch.manual_seed(3)  # the same samples
        losses[beta] = TraceMeanField_ELBO().loss(model, guide, x)
    kl = (formula(vae, x, 1.0) - formula(vae, x, 0.0)).item()
    assert losses[1.0] - losses[0.0] == pytest.approx(kl)
    assert losses[3.0] - losses[0.0] == pytest.approx(3 * kl)


def test_the_relaxed_kl_is_weighed_as_its_sampled_density_ratio():
    vae, x = PROBLEM.vae(), PROBLEM.x()

    def losses(seed):
        for beta in (0.0, 1.0, 3.0):
            torch.manual_seed(seed)
            weighed = [weigh_kl(program, beta=beta) for program in (vae.model, vae.guide)]
            yield Trace_ELBO().loss(*weighed, x)

    nothing, once, thrice = losses(3)
    assert thrice - nothing == pytest.approx(3 * (once - nothing)) and abs(once - nothing) > 0.1
    torch.manual_seed(3)
    assert once == pytest.approx(Trace_ELBO().loss(vae.model, vae.guide, x))


CALLS, COPIES = 16, 64
#: Student's t with 15 degrees of freedom exceeds this as rarely as a normal variable exceeds 5.
LIMIT = 8.3


def fair_vae():
    """Return a model whose guide draws every code within a few hundred draws, which is what these tests can afford."""
    vae = PROBLEM.vae()
    with torch.no_grad():
        vae.encoder[-2].weight.mul_(0.3)
        vae.encoder[-2].bias.mul_(0.3)
    return vae


def mean_gradients(chosen, pair, vae, x, repeats=CALLS):
    """Return mean and standard error of a loss and its gradient, flattened; each call is the mean for copies of x."""
    model, guide, elbo = chosen.bind(pair) if hasattr(chosen, "bind") else (*pair, chosen)

    def row():
        vae.zero_grad()
        with pyro.get_param_store().scope():
            loss = elbo.loss_and_grads(model, guide, x.repeat(COPIES, 1))
        return torch.cat([torch.tensor([loss], dtype=x.dtype), *(p.grad.flatten() for p in vae.parameters())]) / COPIES

    table = torch.stack(validated_once(row, repeats))
    return table.mean(0), table.std(0) / math.sqrt(repeats)


def off(found, vae, x, beta, nats=0.0):
    """Return how many standard errors the worst coordinate is off the formula."""
    mean, error = found
    expected = formula(vae, x, beta, nats)
    wanted = torch.cat([expected.detach().reshape(1), *(g.flatten() for g in gradients(expected, vae).values())])
    return ((mean - wanted).abs() / (error + 1e-7)).max()


def test_sampled_losses_weigh_their_kl():
    vae, x, beta = fair_vae(), PROBLEM.x(), 0.3
    pair = [weigh_kl(discretize(program), beta=beta) for program in (vae.model, vae.guide)]
    found = mean_gradients(ScoreFunction(num_particles=16), pair, vae, x)
    assert off(found, vae, x, beta) < LIMIT
    assert off(found, vae, x, 1.0) > LIMIT  # the ELBO itself is another objective


@pytest.mark.slow
@pytest.mark.parametrize("name", ELBOS_OF_THE_MODEL)
def test_every_estimator_of_the_elbo_weighs_its_kl(name):
    vae, x, beta = fair_vae(), PROBLEM.x(), 0.3
    chosen = with_kl_weight(estimator(name), beta)
    found = mean_gradients(chosen, vae, vae, x, repeats=2 if chosen.is_exact else CALLS)
    assert off(found, vae, x, beta) < LIMIT
    assert off(found, vae, x, 1.0) > LIMIT


@pytest.mark.slow
@pytest.mark.parametrize("name", ELBOS_OF_THE_MODEL)
def test_every_estimator_of_the_elbo_has_free_bits(name):
    vae, x = fair_vae(), PROBLEM.x()
    chosen = with_free_bits(estimator(name), 1.0)
    found = mean_gradients(chosen, vae, vae, x, repeats=2 if chosen.is_exact else CALLS)
    assert off(found, vae, x, 1.0, nats=1.0) < LIMIT
    assert off(found, vae, x, 1.0) > LIMIT


@pytest.mark.usefixtures("recorded")
def test_one_recording_is_enough_to_anneal(monkeypatch):
    monkeypatch.setattr(TracedELBO, "max_recordings", 1, raising=False)
    recordings = []
    new = TracedELBO._new
    monkeypatch.setattr(TracedELBO, "_new", lambda *args, **options: recordings.append(1) or new(*args, **options))
    vae, x = PROBLEM.vae(), PROBLEM.x()
    beta = torch.tensor(0.0, dtype=torch.float64)
    step = make_step(vae, with_kl_weight(estimator("exact"), beta), lr=1e-3)
    for value in (0.0, 0.25, 1.0):
        beta.fill_(value)
        expected = formula(vae, x, value).item() / B
        assert step(x).item() == pytest.approx(expected)
    assert len(recordings) == 1


def test_a_weight_that_is_a_number_is_part_of_the_program():
    vae, x = PROBLEM.vae(), PROBLEM.x()
    traced = TracedELBO(ExactELBO())
    for beta in (0.5, 2.0):
        model, guide = (discretize(weigh_kl(program, beta=beta)) for program in (vae.model, vae.guide))
        assert traced.loss_and_grads(model, guide, x) == pytest.approx(formula(vae, x, beta).item())


@pytest.mark.parametrize("name", WITHOUT_KL)
def test_objectives_without_a_kl_refuse_a_weight_and_free_bits(name):
    with pytest.raises(ValueError, match=f"Expected an objective with a KL to weigh, but found .*, by '{name}'"):
        with_kl_weight(estimator(name), 0.5)
    with pytest.raises(ValueError, match=f"Expected an objective with a KL to leave free, but found .*, by '{name}'"):
        with_free_bits(estimator(name), 0.1)


@pytest.mark.parametrize("beta", [0.5, torch.tensor(0.5)], ids=["number", "tensor"])
@pytest.mark.parametrize("name", WITHOUT_KL)
def test_their_losses_refuse_programs_that_are_weighed(name, beta):
    """The loss also refuses programs that a user weights, both in stock SVI and in a recording."""
    vae, x = PROBLEM.vae(), PROBLEM.x()
    model, guide, elbo = estimator(name).bind(Pair(weigh_kl(vae.model, beta=beta), weigh_kl(vae.guide, beta=beta)))
    for loss in (elbo.loss, elbo.loss_and_grads, TracedELBO(elbo).loss_and_grads):
        with pytest.raises(ValueError, match=r"Expected all sites of the model to share one scale"):
            loss(model, guide, x)


def test_every_other_objective_has_a_kl():
    assert {name for name, make in ESTIMATORS.items() if not make().objective.is_elbo} == set(WITHOUT_KL)


def test_what_became_of_the_kl_is_said():
    beta = torch.tensor(0.5)
    chosen = with_free_bits(with_kl_weight(estimator("exact"), beta), 0.25)
    assert chosen.objective is Objective.ELBO and chosen.details == (WeightedKL(beta), FreeNats(0.25))
    assert chosen.approximates == (
        "the ELBO of the discrete model, with its KL weighted by beta, with 0.25 free nats for each latent"
    )


@pytest.mark.parametrize(
    ("beta", "sentence"),
    [
        (-0.5, r"Expected a finite beta of at least 0, but found -0.5"),
        (math.inf, r"Expected a finite beta"),
        (torch.tensor(math.nan), r"Expected a finite beta"),
        (torch.ones(2), r"Expected one beta for all data, shape \(\), but found shape \(2,\)"),
    ],
)
def test_weights_out_of_range_are_refused(beta, sentence):
    with pytest.raises(ValueError, match=sentence):
        weigh_kl(beta=beta)
    with pytest.raises(ValueError, match=sentence):
        with_kl_weight(estimator("exact"), beta)


@pytest.mark.parametrize("nats", [0.0, 0.3, 1.0, 5.0])
@pytest.mark.parametrize("elbo", [ExactELBO(), ExactELBO(slice_size=3)])
def test_free_bits_of_an_exact_loss(elbo, nats):
    vae, x = PROBLEM.vae(), PROBLEM.x()
    model, guide = discretize(vae.model), discretize(vae.guide)
    expected = formula(vae, x, nats=nats)
    wanted = gradients(expected, vae)
    free = FreeBits(elbo, nats)
    assert free.loss(model, guide, x) == pytest.approx(expected.item())
    for name, found in gradients(free.differentiable_loss(model, guide, x), vae).items():
        torch.testing.assert_close(found, wanted[name])
    with pyro.get_param_store().scope():
        assert free.loss_and_grads(model, guide, x) == pytest.approx(expected.item())
    for name, parameter in vae.named_parameters():
        torch.testing.assert_close(parameter.grad, wanted[name])


def test_thresholds_of_the_table_matter():
    """The control for the table above: some latents are below the threshold, some above."""
    vae, x = PROBLEM.vae(), PROBLEM.x()
    losses = [formula(vae, x, nats=nats).item() for nats in (0.0, 0.3, 1.0, 5.0)]
    assert losses[0] == losses[1] < losses[2] < losses[3]
    assert losses[2] < losses[0] + 1.2 * B  # not all of the KL is below the threshold


def test_free_bits_and_a_weight_together():
    vae, x = PROBLEM.vae(), PROBLEM.x()
    for beta in (0.0, 0.5):
        model, guide, elbo = with_free_bits(with_kl_weight(estimator("exact"), beta), 1.0).bind(vae)
        assert elbo.loss(model, guide, x) == pytest.approx(formula(vae, x, beta, 1.0).item())


def test_free_bits_do_not_count_masked_data():
    vae, x = PROBLEM.vae(), PROBLEM.x()
    keep = torch.tensor([True, False, True, False])
    masked = Pair(*(pyro.poutine.mask(discretize(program), mask=keep) for program in (vae.model, vae.guide)))
    loss = FreeBits(ExactELBO(), 1.0).loss(*masked, x)
    assert loss == pytest.approx(formula(vae, x[keep], nats=1.0).item())


def test_free_bits_of_soft_samples_with_the_analytic_kl():
    vae, x = PROBLEM.vae(), PROBLEM.x()
    chosen = estimator("gumbel-softmax", kl="categorical")
    found = []
    for row in (chosen, with_free_bits(chosen, 1.0)):
        torch.manual_seed(3)
        model, guide, elbo = row.bind(vae)
        found.append(elbo.loss(model, guide, x))
    expected = (formula(vae, x, nats=1.0) - formula(vae, x)).item()
    assert found[1] - found[0] == pytest.approx(expected) and expected > 0.1


@pytest.mark.usefixtures("recorded")
@pytest.mark.parametrize(("name", "options"), [("exact", {}), ("gumbel-softmax", {"kl": "categorical"})])
def test_steps_with_free_bits_are_recorded_and_train(name, options, recwarn):
    vae = CategoricalVAE(D, N, K, (7,)).double()
    x = PROBLEM.x()
    step = make_step(vae, with_free_bits(estimator(name, **options), 0.3), lr=0.05)
    losses = torch.stack([step(x) for _ in range(40)])
    assert losses[-10:].mean() < losses[:10].mean() and not recwarn
    kl = (formula(vae, x, 1.0) - formula(vae, x, 0.0)) / B
    assert kl > 0.3 * N * 0.9  # the KL is used, since it is free


def test_free_bits_in_stock_svi():
    vae, x = CategoricalVAE(D, N, K, (7,)), PROBLEM.x(torch.float32)
    model, guide, elbo = with_free_bits(estimator("exact"), 0.1).bind(vae)
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.05}), loss=elbo)
    losses = [svi.step(x) for _ in range(30)]
    assert losses[-1] < losses[0]
    assert TracedELBO(elbo).loss(model, guide, x) == pytest.approx(elbo.loss(model, guide, x), rel=1e-5)


@pytest.mark.parametrize("nats", [-1.0, math.nan, math.inf])
def test_free_bits_out_of_range_are_refused(nats):
    with pytest.raises(ValueError, match=r"Expected a finite number of free nats of at least 0, but found"):
        FreeBits(ExactELBO(), nats)
    with pytest.raises(ValueError, match=r"Expected a finite number of free nats"):
        with_free_bits(estimator("exact"), nats)


def test_free_bits_need_a_kl():
    with pytest.raises(ValueError, match=r"Expected a loss with a KL to leave free, but found the log-evidence"):
        FreeBits(ExactEvidence(), 0.1)
    with pytest.raises(ValueError, match=r"Expected an objective with a KL"):
        with_free_bits(estimator("exact-evidence"), 0.1)
