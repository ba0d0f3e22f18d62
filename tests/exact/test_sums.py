"""Exact sums against loops over codes, stock Pyro, and properties of every exact posterior."""

import itertools
import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import problems
import pyro
import pyro.distributions as dist
import pytest
import torch
from problems import NUM_CODES, PROBLEMS, gradients
from pyro.infer import TraceEnum_ELBO
from torch import Tensor

from pyro_gvae import exact
from pyro_gvae.distributions.codes import joint_codes
from pyro_gvae.elbos.control_variates import REBAR
from pyro_gvae.elbos.exact import ExactELBO
from pyro_gvae.elbos.local import LocalExpectation
from pyro_gvae.elbos.score import ReinforceLOO
from pyro_gvae.exact import Pair
from pyro_gvae.exact.ascent import ascend
from pyro_gvae.exact.factorized_apart import sweep
from pyro_gvae.exact.plan import make_plan
from pyro_gvae.exact.sums import elbo_parts
from pyro_gvae.handlers import discretize, enumerated, relax
from pyro_gvae.models.categorical_vae import CategoricalVAE
from pyro_gvae.programs.joint import joint_scores, read_guide_once
from pyro_gvae.programs.runs import bind_pair
from pyro_gvae.runtime import tuning

SLICE_SIZES = [1, 2, 3, 5, NUM_CODES, 100, None]
EACH_PROBLEM = pytest.mark.parametrize("problem", PROBLEMS, ids=lambda problem: problem.name)
EACH_SLICE_SIZE = pytest.mark.parametrize("slice_size", SLICE_SIZES)

QUANTITIES = {
    "elbo": (exact.elbo, problems.elbo_in_a_loop),
    "log_evidence": (exact.log_evidence, problems.evidence_in_a_loop),
}
EACH_QUANTITY = pytest.mark.parametrize("quantity", QUANTITIES)
BERNOULLI = PROBLEMS[0]


@pytest.fixture(autouse=True)
def negligible_codes_are_looked_for(monkeypatch):
    """Look for negligible codes even among as few codes as here."""
    monkeypatch.setattr(tuning, "CPU", replace(tuning.CPU, few_codes=0, searched_bytes=0))


def assert_same_with_gradients(
    found: Tensor, expected: Tensor, vae: CategoricalVAE, *, tolerance: float = 1e-8
) -> None:
    """Assert equal values and equal gradients of a weighted sum, relative to the largest of each parameter."""
    weights = torch.linspace(0.5, 2.0, len(found), dtype=found.dtype)
    pairs = {"value": (found, expected)}
    theirs = gradients(expected @ weights, vae)
    pairs |= {name: (grad, theirs[name]) for name, grad in gradients(found @ weights, vae).items()}
    for name, (ours, reference) in pairs.items():
        scale = reference.abs().max().clamp_min(1.0).item()
        torch.testing.assert_close(ours, reference, rtol=0, atol=tolerance * scale, msg=lambda m, n=name: f"{n}: {m}")


@EACH_PROBLEM
@EACH_QUANTITY
@EACH_SLICE_SIZE
def test_value_and_gradients_equal_a_loop_over_codes(problem, quantity, slice_size):
    ours, in_a_loop = QUANTITIES[quantity]
    vae, x = problem.vae(), problem.x()
    assert_same_with_gradients(ours(vae, x, slice_size=slice_size), in_a_loop(problem, vae, x), vae)


@EACH_PROBLEM
@EACH_QUANTITY
def test_float32_agrees_to_rounding(problem, quantity):
    ours, in_a_loop = QUANTITIES[quantity]
    vae, x = problem.vae(), problem.x()
    expected = in_a_loop(problem, vae, x)
    reference = gradients(expected.sum(), vae)
    found = ours(vae.float(), x.float(), slice_size=3)
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=0)
    for name, grad in gradients(found.sum(), vae).items():
        scale = reference[name].abs().max().clamp_min(1.0).item()
        torch.testing.assert_close(grad.double(), reference[name].double(), rtol=0, atol=1e-4 * scale)


@EACH_PROBLEM
@EACH_QUANTITY
def test_it_is_what_stock_pyro_enumerates_at_one_site(problem, quantity):
    vae, x = problem.vae(), problem.x()
    guide = enumerated(vae.guide) if quantity == "elbo" else lambda x: None
    stock = -TraceEnum_ELBO(max_plate_nesting=1).differentiable_loss(enumerated(vae.model), guide, x)
    found = QUANTITIES[quantity][0](vae, x, slice_size=3).sum()
    assert_same_with_gradients(found[None], stock[None], vae)


PYRO_LIKELIHOODS: dict[str, Callable[[CategoricalVAE, Tensor], Any]] = {
    "bernoulli": lambda _, eta: dist.Bernoulli(logits=eta),
    "continuous-bernoulli": lambda _, eta: dist.ContinuousBernoulli(logits=eta),
    "gaussian": lambda vae, eta: dist.Normal(eta, vae.observation.log_scale.exp()),
    "categorical": lambda _, eta: dist.Categorical(logits=eta.unflatten(-1, (problems.D, problems.LEVELS))),
}


@EACH_PROBLEM
def test_it_is_what_stock_pyro_enumerates_at_separate_sites(problem):
    vae, x = problem.vae(), problem.x()
    pair = problems.separate_sites(vae, partial(PYRO_LIKELIHOODS[problem.options["observation"]], vae))
    stock = -TraceEnum_ELBO(max_plate_nesting=1).differentiable_loss(pair.model, pair.guide, x)
    assert_same_with_gradients(exact.elbo(vae, x).sum()[None], stock[None], vae)


@EACH_PROBLEM
@pytest.mark.parametrize("slice_size", [4, None])
def test_both_bounds_in_one_pass_are_those_of_two(problem, slice_size):
    vae, x = problem.vae(), problem.x()
    found = exact.bounds(vae, x, slice_size=slice_size)
    torch.testing.assert_close(found.elbo, exact.elbo(vae, x))
    torch.testing.assert_close(found.log_evidence, exact.log_evidence(vae, x))
    assert not found.elbo.requires_grad
    assert not found.log_evidence.requires_grad


def test_the_comparison_notices_one_code_left_out():
    vae, x = BERNOULLI.vae(), BERNOULLI.x()
    joint = problems.joint_in_a_loop(BERNOULLI, vae, x)
    least = joint.softmax(0).amax(1).argmin()
    without = torch.cat([joint[:least], joint[least + 1 :]]).logsumexp(0)
    with pytest.raises(AssertionError):
        assert_same_with_gradients(exact.log_evidence(vae, x), without, vae)


@EACH_PROBLEM
def test_the_evidence_is_never_below_the_elbo(problem):
    for seed in range(20):
        torch.manual_seed(seed)
        vae = CategoricalVAE(problems.D, problems.N, problems.K, hidden=(7,), **problem.options).double()
        x = problem.x()
        assert (exact.log_evidence(vae, x) >= exact.elbo(vae, x)).all()


def test_probabilities_of_all_data_add_up_to_one():
    torch.manual_seed(0)
    vae = CategoricalVAE(6, 3, 3, hidden=(8,), learn_prior=True).double()
    every_x = torch.tensor(list(itertools.product([0.0, 1.0], repeat=6)), dtype=torch.float64)
    assert exact.log_evidence(vae, every_x).exp().sum().item() == pytest.approx(1.0, abs=1e-12)


def test_the_mean_evidence_of_a_models_own_samples_is_its_negative_entropy():
    torch.manual_seed(0)
    teacher = CategoricalVAE(6, 3, 3, hidden=(8,))
    with torch.no_grad():
        for parameter in teacher.parameters():
            parameter.mul_(4)
        z = torch.distributions.OneHotCategorical(logits=teacher.prior_logits).sample((2000,))
        log_evidence = exact.log_evidence(teacher, teacher.observation(teacher.decoder(z)).sample())
        every_x = torch.tensor(list(itertools.product([0.0, 1.0], repeat=6)))
        entropy = -(exact.log_evidence(teacher, every_x).exp() * exact.log_evidence(teacher, every_x)).sum()
        standard_error = log_evidence.std() / len(log_evidence) ** 0.5
        # The control: another model has a lower likelihood of the same data.
        student = exact.log_evidence(
            CategoricalVAE(6, 3, 3, hidden=(8,)), teacher.observation(teacher.decoder(z)).sample()
        )
    assert abs(log_evidence.mean() + entropy) < 5 * standard_error
    assert student.mean() + entropy < -5 * standard_error


# The posterior.


@EACH_PROBLEM
@EACH_SLICE_SIZE
def test_the_posterior_equals_a_loop_over_codes(problem, slice_size):
    vae, x = problem.vae(), problem.x()
    probs = problems.joint_in_a_loop(problem, vae, x).softmax(0)  # (S, B)
    every_code = torch.stack([code for _, code in problems.codes()])  # (S, N, K)
    found = exact.posterior(vae, x, num_codes=3, slice_size=slice_size)
    torch.testing.assert_close(found.marginals, torch.einsum("sb,snk->bnk", probs, every_code))
    expected_probs, numbers = probs.topk(3, 0)
    torch.testing.assert_close(found.probs, expected_probs.T)
    torch.testing.assert_close(found.codes, every_code[numbers.T])


def test_the_posterior_has_at_most_all_codes():
    found = exact.posterior(BERNOULLI.vae(), BERNOULLI.x(), num_codes=1000, slice_size=3)
    assert found.codes.shape == (problems.B, NUM_CODES, problems.N, problems.K)
    torch.testing.assert_close(found.probs.sum(-1), torch.ones(problems.B, dtype=torch.float64))


@pytest.mark.parametrize("slice_size", [3, None])
def test_posterior_samples_have_the_posteriors_frequencies(slice_size):
    vae, x, num_samples = BERNOULLI.vae(), BERNOULLI.x(), 20_000
    z = exact.sample_posterior(vae, x, num_samples=num_samples, slice_size=slice_size)
    assert z.shape == (num_samples, problems.B, problems.N, problems.K)
    every_code = torch.stack([code for _, code in problems.codes()])
    frequency = torch.einsum("pbnk,snk->pbs", z, every_code).eq(problems.N).double().mean(0)  # (B, S)
    probs = problems.joint_in_a_loop(BERNOULLI, vae, x).softmax(0).T
    # 32 binomial frequencies: all within 5 standard errors with probability 1 - 2e-5.
    assert ((frequency - probs).abs() < 5 * (probs * (1 - probs) / num_samples).sqrt()).all()


# The best mean-field posterior.


@EACH_PROBLEM
def test_mean_field_lies_between_the_guides_elbo_and_the_evidence(problem):
    vae, x = problem.vae(), problem.x()
    best = exact.mean_field(vae, x, slice_size=3)
    assert (exact.elbo(vae, x) <= best.elbo).all()
    assert (best.elbo <= exact.log_evidence(vae, x)).all()
    # Its logits have the reported ELBO in a loop, and no change of a single latent by a finer optimizer improves it.
    vae.encoder = _Constant(best.logits)
    torch.testing.assert_close(problems.elbo_in_a_loop(problem, vae, x), best.elbo)


class _Constant(torch.nn.Module):
    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = torch.nn.Parameter(logits)

    def forward(self, x: Tensor) -> Tensor:
        return self.logits


def test_mean_field_is_a_stationary_point():
    vae, x = BERNOULLI.vae(), BERNOULLI.x()
    vae.encoder = _Constant(exact.mean_field(vae, x, tolerance=1e-14, max_sweeps=1000).logits)
    [gradient] = torch.autograd.grad(exact.elbo(vae, x).sum(), [vae.encoder.logits])
    assert gradient.abs().max() < 1e-6
    vae.encoder = _Constant(vae.encoder.logits.detach() + torch.randn_like(vae.encoder.logits))
    [elsewhere] = torch.autograd.grad(exact.elbo(vae, x).sum(), [vae.encoder.logits])
    assert elsewhere.abs().max() > 1e-3


def test_mean_field_of_a_factorized_posterior_is_the_posterior():
    """With a linear decoder and one pixel per latent, the latents are independent under the posterior."""
    torch.manual_seed(0)
    natural = torch.randn(3, 2, dtype=torch.float64)

    def program(x: Tensor, observe: bool) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.OneHotCategorical(logits=torch.zeros(3, 2).double()).to_event(1))
            if observe:
                pyro.sample("x", dist.Bernoulli(logits=(z * natural).sum(-1)).to_event(1), obs=x)

    pair = Pair(partial(program, observe=True), partial(program, observe=False))
    x = torch.tensor([[0.0, 1, 1], [1, 0, 1]]).double()
    best = exact.mean_field(pair, x)
    torch.testing.assert_close(best.elbo, exact.log_evidence(pair, x))
    torch.testing.assert_close(best.logits.exp(), exact.posterior(pair, x).marginals)


def test_the_best_of_three_ascents_is_returned():
    """Ascents start from the guide, the marginals and the mode of the posterior; each is the best for some data."""
    torch.manual_seed(3)
    joint = 2 * torch.randn(300, 27).double()  # log p(x, z) of three latents, far from factorized
    log_q = (3 * torch.randn(300, 3, 3).double()).log_softmax(-1)

    def program(x: Tensor, logits: Tensor, observe: bool) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.OneHotCategorical(logits=logits).to_event(1))
            if observe:
                code = torch.einsum("...i,...j,...k->...ijk", *z.unbind(-2)).flatten(-3)  # (..., 27)
                pyro.factor("score", (code * x).sum(-1) + 3 * math.log(3))  # without the prior

    model = partial(program, logits=torch.zeros(3, 3).double(), observe=True)
    pair = Pair(model, partial(program, logits=log_q, observe=False))
    plan = make_plan(bind_pair(pair, joint))
    probs = joint.softmax(1).reshape(-1, 3, 3, 3)
    marginals = torch.stack([probs.sum((2, 3)), probs.sum((1, 3)), probs.sum((1, 2))], 1)
    mode = 0.9 * plan.codes(joint.argmax(1))["z"] + 0.1 / 3
    starts = [log_q, marginals.log(), mode.log()]
    ends = torch.stack(
        [
            ascend(partial(sweep, joint=joint, plan=plan), start.unbind(1), max_sweeps=1000, tolerance=1e-14).elbo
            for start in starts
        ]
    )
    found = exact.mean_field(pair, joint, max_sweeps=1000, tolerance=1e-14)
    torch.testing.assert_close(found.elbo, ends.amax(0), rtol=1e-8, atol=1e-8)
    first, second, *_ = ends.sort(0, descending=True).values
    assert set(ends.argmax(0)[first > second + 0.01].tolist()) == {0, 1, 2}


def test_coordinate_ascent_never_descends():
    torch.manual_seed(0)
    vae, x = BERNOULLI.vae(), BERNOULLI.x()
    plan = make_plan(bind_pair(vae, x))
    joint = 5 * torch.randn(50, NUM_CODES, dtype=torch.float64)
    start = torch.zeros(50, problems.N, problems.K, dtype=torch.float64).log_softmax(-1)
    found = sweep(start.unbind(1), joint, plan)
    for _ in range(20):
        before, found = found, sweep(found.logits, joint, plan)
        assert (found.elbo >= before.elbo - 1e-12).all()
    assert (found.elbo <= joint.logsumexp(1)).all()
    ends = ascend(partial(sweep, joint=joint, plan=plan), found.logits, max_sweeps=5, tolerance=1e-6)
    torch.testing.assert_close(ends.elbo, found.elbo, rtol=0, atol=1e-4)


# Users' programs.


def _score(z: Tensor) -> Tensor:
    """Compute a function of codes (..., N, K) that mixes their latents: (...)."""
    weights = torch.arange(1.0, z.shape[-1] * z.shape[-2] + 1).sin().to(z).reshape(z.shape[-2:])
    return 2 * (z * weights).sum((-2, -1)).square() - 1


def _evidence_of(x: Tensor, prior: Tensor, log_likelihood: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """Compute log sum_z p(z) p(x | z) in a loop, for prior logits (N, K) and log_likelihood(code, datum)."""
    num_latents, num_categories = prior.shape
    terms = []
    for categories in itertools.product(range(num_categories), repeat=num_latents):
        code = torch.nn.functional.one_hot(torch.tensor(categories), num_categories).to(x)
        log_prior = sum(prior.log_softmax(-1)[n, k] for n, k in enumerate(categories))
        terms.append(torch.stack([log_prior + log_likelihood(code, datum) for datum in x]))
    return torch.stack(terms).logsumexp(0)


X = torch.tensor([0.3, -1.0, 2.0], dtype=torch.float64)
PRIOR = torch.tensor([[0.0, 1.0, -1.0], [0.5, 0.0, 0.2]], dtype=torch.float64)


def _normal(code: Tensor, datum: Tensor) -> Tensor:
    return torch.distributions.Normal(_score(code), 1.0).log_prob(datum)


def test_unlikely_data_have_a_gradient_too():
    """A code matters to the evidence by its share of it, however small the evidence is."""
    prior = PRIOR.clone().requires_grad_()

    def program(x: Tensor, observe: bool) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.OneHotCategorical(logits=prior).to_event(1))
            if observe:
                pyro.sample("x", dist.Normal(_score(z), 1.0), obs=x)
                pyro.factor("unlikely", torch.full_like(x, -1000.0))

    found = exact.log_evidence(Pair(partial(program, observe=True), partial(program, observe=False)), X, slice_size=2)
    expected = _evidence_of(X, prior, _normal) - 1000
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(*(torch.autograd.grad(value.sum(), prior)[0] for value in (found, expected)))


SITES = {
    "to_event": lambda: dist.OneHotCategorical(logits=PRIOR).to_event(1),
    "relaxed": lambda: dist.RelaxedOneHotCategorical(torch.tensor(0.5).double(), logits=PRIOR).to_event(1),
    "masked": lambda: dist.OneHotCategorical(logits=PRIOR).to_event(1).mask(True),
    "probs": lambda: dist.OneHotCategorical(probs=PRIOR.softmax(-1)).to_event(1),
}


@pytest.mark.parametrize("site", SITES)
@pytest.mark.parametrize("name", ["z", "a code"])
@pytest.mark.parametrize("slice_size", [2, None])
def test_a_program_may_write_its_site_as_it_likes(site, name, slice_size):
    def model(x):
        with pyro.plate("people", len(x)):
            z = pyro.sample(name, SITES[site]())
            pyro.sample("height", dist.Normal(_score(z), 1.0), obs=x)

    found = exact.log_evidence(Pair(model, lambda x: None), X, slice_size=slice_size)
    torch.testing.assert_close(found, _evidence_of(X, PRIOR, _normal))


def test_latents_of_three_event_dimensions():
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.OneHotCategorical(logits=PRIOR.unsqueeze(0)).to_event(2))
            pyro.sample("x", dist.Normal(_score(z.squeeze(-3)), 1.0), obs=x)

    torch.testing.assert_close(exact.log_evidence(Pair(model, model), X), _evidence_of(X, PRIOR, _normal))


def test_one_latent_of_event_shape_k():
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.OneHotCategorical(logits=PRIOR[0]))
            pyro.sample("x", dist.Normal(_score(z.unsqueeze(-2)), 1.0), obs=x)

    pair = Pair(model, model)
    torch.testing.assert_close(exact.log_evidence(pair, X), _evidence_of(X, PRIOR[:1], _normal))
    assert exact.posterior(pair, X).marginals.shape == (3, 1, 3)


def test_a_program_without_a_plate():
    def model(x):
        z = pyro.sample("z", dist.OneHotCategorical(logits=PRIOR).to_event(1))
        pyro.sample("x", dist.Normal(_score(z), 1.0), obs=x)

    found = exact.log_evidence(Pair(model, model), X[0], slice_size=2)
    torch.testing.assert_close(found, _evidence_of(X[:1], PRIOR, _normal)[0])
    assert exact.posterior(Pair(model, model), X[0], num_codes=2).codes.shape == (2, 2, 3)
    assert exact.sample_posterior(Pair(model, model), X[0], num_samples=5).shape == (5, 2, 3)


@pytest.mark.parametrize("data_dim", [-1, -2])
def test_plates_within_the_datum_are_summed(data_dim):
    shifts = torch.tensor([0.0, 1.0, -2.0, 0.5], dtype=torch.float64)  # of four pixels
    pixel_dim = -3 - data_dim

    def model(x):
        with pyro.plate("data", len(x), dim=data_dim):
            z = pyro.sample("z", dist.OneHotCategorical(logits=PRIOR).to_event(1))
            with pyro.plate("pixels", 4, dim=pixel_dim):
                pixel = shifts if pixel_dim == -1 else shifts.unsqueeze(-1)
                obs = x.unsqueeze(pixel_dim) + pixel
                pyro.sample("x", dist.Normal(_score(z) + 0 * pixel, 1.0), obs=obs)

    def log_likelihood(code, datum):
        return torch.stack([_normal(code, datum + shift) for shift in shifts]).sum()

    found = exact.log_evidence(Pair(model, model), X, slice_size=4)
    torch.testing.assert_close(found.flatten(), _evidence_of(X, PRIOR, log_likelihood))


def test_several_observations_and_factors_are_added():
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.OneHotCategorical(logits=PRIOR).to_event(1))
            pyro.sample("x", dist.Normal(_score(z), 1.0), obs=x)
            pyro.sample("y", dist.Normal(0.0, 1.0).expand([len(x)]), obs=x)  # does not depend on z
            pyro.factor("f", 0.3 * _score(z))
            pyro.deterministic("d", _score(z))

    def log_likelihood(code, datum):
        return _normal(code, datum) + torch.distributions.Normal(0.0, 1.0).log_prob(datum) + 0.3 * _score(code)

    found = exact.log_evidence(Pair(model, model), X)
    torch.testing.assert_close(found, _evidence_of(X, PRIOR, log_likelihood))


def test_a_prior_that_depends_on_the_datum():
    def logits(x):
        return PRIOR * x.reshape(-1, 1, 1)

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.OneHotCategorical(logits=logits(x)).to_event(1))
            pyro.sample("x", dist.Normal(_score(z), 1.0), obs=x)

    expected = torch.cat([_evidence_of(x[None], logits(x)[0], _normal) for x in X])
    torch.testing.assert_close(exact.log_evidence(Pair(model, model), X, slice_size=4), expected)


def test_impossible_codes_and_categories_count_nothing():
    prior = PRIOR.clone()
    prior[0, 1] = -torch.inf

    def program(x, observe):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.OneHotCategorical(logits=prior, validate_args=False).to_event(1))
            if observe:  # a uniform likelihood that is 0 under some codes
                pyro.sample("x", dist.Uniform(-2.5, 2.5 + z[..., 1, 1], validate_args=False), obs=x)
                pyro.factor("f", torch.where(z[..., 1, 2] == 1, -torch.inf, 0.0))

    pair = Pair(partial(program, observe=True), partial(program, observe=False))
    possible = prior[1].softmax(-1)[:2].log() - torch.tensor([5.0, 6.0]).double().log()
    expected = possible.logsumexp(0).expand(3)
    torch.testing.assert_close(exact.log_evidence(pair, X), expected)
    best = exact.mean_field(pair, X)
    torch.testing.assert_close(best.elbo, expected)
    assert (exact.elbo(pair, X) == -torch.inf).all()  # this guide allows codes of no likelihood
    assert (exact.bounds(pair, X).elbo == -torch.inf).all()
    for slice_size in (2, None):
        assert ExactELBO(slice_size=slice_size).loss_and_grads(*pair, X) == torch.inf
    for loss in (ReinforceLOO(num_particles=500), LocalExpectation(num_particles=500), REBAR(num_particles=500)):
        assert loss.loss(*pair, X) == torch.inf
    assert not exact.elbo(pair, X).isnan().any()


def _with_plate(scale: float = 1.0, mask: Any = True, prior_scale: float = 1.0) -> Pair:
    def model(x):
        with pyro.poutine.scale(scale=scale), pyro.poutine.mask(mask=mask), pyro.plate("data", len(x)):
            with pyro.poutine.scale(scale=prior_scale):
                z = pyro.sample("z", dist.OneHotCategorical(logits=PRIOR).to_event(1))
            pyro.sample("x", dist.Normal(_score(z), 1.0), obs=x)

    def guide(x):
        outer = pyro.poutine.scale(scale=scale), pyro.poutine.mask(mask=mask), pyro.plate("data", len(x))
        with outer[0], outer[1], outer[2], pyro.poutine.scale(scale=prior_scale):
            pyro.sample("z", dist.OneHotCategorical(logits=2 * PRIOR).to_event(1))

    return Pair(model, guide)


@pytest.mark.parametrize("mask", [True, torch.tensor([True, False, True])])
@pytest.mark.parametrize("scale", [1.0, 2.5])
def test_scale_and_mask_mean_what_they_mean_to_stock_pyro(scale, mask):
    pair = _with_plate(scale, mask)
    stock = TraceEnum_ELBO(max_plate_nesting=1)
    model, guide = map(enumerated, pair)
    assert exact.elbo(pair, X, slice_size=4).sum().item() == pytest.approx(-stock.loss(model, guide, X))
    evidence = exact.log_evidence(pair, X, slice_size=4)
    assert evidence.sum().item() == pytest.approx(-stock.loss(model, lambda x: None, X))
    each = torch.as_tensor(mask).expand(3)
    torch.testing.assert_close(evidence, scale * each * exact.log_evidence(_with_plate(), X))
    torch.testing.assert_close(exact.elbo(pair, X), scale * each * exact.elbo(_with_plate(), X))
    torch.testing.assert_close(exact.bounds(pair, X), exact.Bounds(exact.elbo(pair, X), evidence))


def test_a_prior_of_another_scale_is_an_elbo_but_no_evidence():
    pair = _with_plate(prior_scale=0.5)
    stock = TraceEnum_ELBO(max_plate_nesting=1).loss(*map(enumerated, pair), X)
    assert exact.elbo(pair, X).sum().item() == pytest.approx(-stock)
    for function in (exact.log_evidence, exact.bounds, exact.posterior, exact.sample_posterior, exact.mean_field):
        with pytest.raises(ValueError, match="share one scale"):
            function(pair, X)


def test_two_masks_of_a_site_are_both_its_masks():
    def program(x, observe):
        with pyro.poutine.mask(mask=torch.tensor([True, False, True])), pyro.plate("data", len(x)):
            site = dist.OneHotCategorical(logits=(1 if observe else 2) * PRIOR).to_event(1)
            z = pyro.sample("z", site.mask(torch.tensor([True, True, False])))
            if observe:
                pyro.sample("x", dist.Normal(_score(z), 1.0), obs=x)

    pair = Pair(partial(program, observe=True), partial(program, observe=False))
    scores = torch.stack([_normal(code, X[2]) for code in joint_codes(2, 3).double()])
    weights = torch.stack([(code * (2 * PRIOR).log_softmax(-1)).sum().exp() for code in joint_codes(2, 3).double()])
    found = exact.elbo(pair, X)
    torch.testing.assert_close(found[0], exact.elbo(_with_plate(prior_scale=1.0), X)[0])
    assert found[1] == 0
    torch.testing.assert_close(found[2], (weights * scores).sum())  # without a KL


def test_a_subsampled_plate_scales():
    def model(x):
        with pyro.plate("data", 30, subsample=torch.arange(3)):
            z = pyro.sample("z", dist.OneHotCategorical(logits=PRIOR).to_event(1))
            pyro.sample("x", dist.Normal(_score(z), 1.0), obs=x)

    torch.testing.assert_close(exact.log_evidence(Pair(model, model), X), 10 * _evidence_of(X, PRIOR, _normal))


@pytest.mark.parametrize("handler", [discretize, relax(temperature=0.3), lambda program: program])
def test_handled_programs_are_read_through_their_handlers(handler):
    vae, x = BERNOULLI.vae(), BERNOULLI.x()
    handled = Pair(handler(vae.model), handler(vae.guide))
    torch.testing.assert_close(exact.elbo(handled, x), exact.elbo(vae, x))


# Refusals.


def _program(*sites: Callable[[Tensor], Any], plate: bool = True) -> Callable[[Tensor], None]:
    def program(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.OneHotCategorical(logits=PRIOR).to_event(1))
            for site in sites:
                site(z)
            pyro.sample("x", dist.Normal(_score(z), 1.0), obs=x)

    return program


def _outside(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.OneHotCategorical(logits=PRIOR).to_event(1))
    pyro.sample("x", dist.Normal(_score(z).sum(-1), 1.0), obs=torch.tensor(1.0))


def _plate_of_latents(x: Tensor) -> None:
    with pyro.plate("latents", 2):
        z = pyro.sample("z", dist.OneHotCategorical(logits=PRIOR))
    pyro.sample("x", dist.Normal(_score(z), 1.0), obs=torch.tensor(1.0))


def _unplated_latents(x: Tensor) -> None:
    z = pyro.sample("z", dist.OneHotCategorical(logits=PRIOR))
    pyro.sample("x", dist.Normal(_score(z), 1.0), obs=torch.tensor(1.0))


def _unobserved(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.OneHotCategorical(logits=PRIOR).to_event(1))


def _with_another_code(x: Tensor) -> None:
    _unobserved(x)
    pyro.sample("w", dist.OneHotCategorical(logits=PRIOR).to_event(1))


def _normal_latent(z: Tensor) -> None:
    pyro.sample("w", dist.Normal(0.0, 1.0))


def _no_site(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(0.0, 1.0), obs=x)


REFUSED_MODELS = {
    "another latent": (_program(_normal_latent), "whose latents are all discrete, but found 'w'"),
    "no code": (_no_site, "model to have a discrete site, latent or observed, but found none"),
    "nothing observed": (_unobserved, "model to observe data, but found only latents: 'z'"),
    "site outside of the plate": (_outside, r"inside of its plate\(s\) \['data'\], but found 'x' outside"),
    "plate of latents": (_plate_of_latents, r"inside of its plate\(s\) \['latents'\].* one site with \.to_event\(1\)"),
    "batch without a plate": (_unplated_latents, r"batch shape \(2,\) of the discrete latents.* 'x'"),
}


@pytest.mark.parametrize("name", REFUSED_MODELS)
def test_models_without_an_exact_sum_are_refused(name):
    model, sentence = REFUSED_MODELS[name]
    for function in (exact.log_evidence, exact.posterior, exact.cost):
        with pytest.raises(ValueError, match=sentence):
            function(Pair(model, _unobserved), X)


@pytest.mark.parametrize(
    ("guide", "sentence"),
    [
        (_program(), "guide to observe nothing, but found that it observes 'x'"),
        (_with_another_code, "but found 'w' in the guide alone"),
    ],
)
def test_guides_without_an_exact_sum_are_refused(guide, sentence):
    for function in (exact.elbo, exact.mean_field):
        with pytest.raises(ValueError, match=sentence):
            function(Pair(_program(), guide), X)


@pytest.mark.parametrize(
    ("name", "logits", "sentence"),
    [
        ("z", PRIOR[:, :2], r"same shape, but found 2 one-hots of 3 categories.* and 2 one-hots of 2 .* at 'z'"),
        ("w", PRIOR, "but found 'w' in the guide alone"),
    ],
)
def test_a_guide_of_another_site_is_refused(name, logits, sentence):
    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample(name, dist.OneHotCategorical(logits=logits).to_event(1))

    for function in (exact.elbo, exact.mean_field):
        with pytest.raises(ValueError, match=sentence):
            function(Pair(_program(), guide), X)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"slice_size": 0}, "slice_size of at least one code, but found 0"),
        ({"slice_size": 2.5}, "slice_size of at least one code, but found 2.5"),
        ({"max_memory": 100}, "one code to fit into 100 bytes.* or an estimator that samples"),
        ({"max_memory": 2000, "slice_size": 8}, r"8 codes of .* each\. Try slice_size=\d+, a larger max_memory"),
        ({"max_memory": -1}, "max_memory in bytes, a positive number"),
    ],
)
def test_what_does_not_fit_is_refused_before_it_is_begun(arguments, sentence):
    vae, x = BERNOULLI.vae(), BERNOULLI.x()
    for function in (
        exact.elbo,
        exact.log_evidence,
        exact.posterior,
        exact.sample_posterior,
        exact.mean_field,
        exact.cost,
    ):
        with pytest.raises(ValueError, match=sentence):
            function(vae, x, **arguments)


def test_the_slice_size_that_the_refusal_names_fits():
    vae, x = BERNOULLI.vae(), BERNOULLI.x()
    with pytest.raises(ValueError, match="slice_size=") as refusal:
        exact.elbo(vae, x, max_memory=2000, slice_size=8)
    named = int(str(refusal.value).split("slice_size=")[1].split(",")[0])
    torch.testing.assert_close(exact.elbo(vae, x, max_memory=2000, slice_size=named), exact.elbo(vae, x))


def test_more_codes_than_can_be_numbered_are_refused():
    vae = CategoricalVAE(6, num_latents=63, num_categories=2, hidden=(5,))
    with pytest.raises(ValueError, match=r"2\^62 joint codes, but found K\^N = 2\^63.* estimator that samples"):
        exact.elbo(vae, torch.ones(2, 6))


def test_codes_whose_sum_would_not_end_are_refused():
    """The codes can be numbered, and their slices fit into memory, but the sum would not end. Its cost is known."""
    vae, x = CategoricalVAE(6, num_latents=20, num_categories=8, hidden=(5,)), torch.ones(2, 6)
    functions = exact.elbo, exact.log_evidence, exact.bounds, exact.posterior, exact.sample_posterior
    for function in (*functions, partial(ExactELBO().loss, vae.model, vae.guide)):
        with pytest.raises(ValueError, match=r"K\^N = 8\^20 = 1,152,921,504,606,846,976, which take .* per sum\. Try"):
            function(*([vae, x] if function in functions else [x]))
    assert exact.cost(vae, x).operations > 1e15


def test_a_table_that_does_not_fit_is_refused():
    vae = CategoricalVAE(6, num_latents=12, num_categories=4, hidden=(5,))
    with pytest.raises(ValueError, match="table of 16,777,216 codes and 2 data to fit into 1"):
        exact.mean_field(vae, torch.ones(2, 6), max_memory=1e6)


@pytest.mark.parametrize(
    ("function", "argument"), [(exact.posterior, "num_codes"), (exact.sample_posterior, "num_samples")]
)
def test_negative_numbers_are_refused(function, argument):
    with pytest.raises(ValueError, match=f"Expected {argument}"):
        function(BERNOULLI.vae(), BERNOULLI.x(), **{argument: -1})


# State that must not change.


@pytest.mark.parametrize(
    "function",
    [exact.elbo, exact.log_evidence, exact.posterior, exact.mean_field, exact.cost],
    ids=lambda f: f.__name__,
)
def test_nothing_is_drawn_and_nothing_is_left_behind(function):
    vae, x = BERNOULLI.vae(), BERNOULLI.x()
    state = torch.get_rng_state()
    function(vae, x, slice_size=3)
    assert torch.equal(torch.get_rng_state(), state)
    assert not pyro.get_param_store().keys()
    assert all(parameter.grad is None for parameter in vae.parameters())


def test_two_models_of_one_name_are_evaluated_without_clearing_the_param_store():
    first, second, x = (
        BERNOULLI.vae(),
        CategoricalVAE(problems.D, problems.N, problems.K, hidden=(7,)).double(),
        BERNOULLI.x(),
    )
    vae_model = discretize(first.model)
    pyro.infer.SVI(
        vae_model, discretize(first.guide), pyro.optim.Adam({"lr": 0.1}), pyro.infer.Trace_ELBO()
    ).evaluate_loss(x)
    stored = dict(pyro.get_param_store().items())
    assert stored
    expected = [problems.elbo_in_a_loop(BERNOULLI, vae, x) for vae in (first, second)]
    torch.testing.assert_close([exact.elbo(first, x), exact.elbo(second, x)], expected)
    assert dict(pyro.get_param_store().items()) == stored


def test_parameters_of_the_param_store_are_those_of_the_program():
    def program(x, observe):
        shift = pyro.param("shift", torch.tensor(0.0, dtype=torch.float64))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.OneHotCategorical(logits=PRIOR).to_event(1))
            if observe:
                pyro.sample("x", dist.Normal(_score(z) + shift, 1.0), obs=x)

    pair = Pair(partial(program, observe=True), partial(program, observe=False))
    pyro.param("shift", torch.tensor(1.5, dtype=torch.float64))
    found = exact.log_evidence(pair, X, slice_size=2)
    torch.testing.assert_close(found, _evidence_of(X - 1.5, PRIOR, _normal))
    found.sum().backward()
    shift = torch.tensor(1.5, dtype=torch.float64, requires_grad=True)
    _evidence_of(X - shift, PRIOR, _normal).sum().backward()
    torch.testing.assert_close(pyro.param("shift").unconstrained().grad, shift.grad)


def test_without_gradients_no_graph_is_made():
    with torch.no_grad():
        assert not exact.elbo(BERNOULLI.vae(), BERNOULLI.x(), slice_size=3).requires_grad
        assert not exact.log_evidence(BERNOULLI.vae(), BERNOULLI.x(), slice_size=3).requires_grad


@EACH_QUANTITY
@pytest.mark.parametrize("slice_size", [3, None])
def test_second_derivatives_equal_those_of_a_loop(quantity, slice_size):
    vae, x = BERNOULLI.vae(), BERNOULLI.x()

    def second(value):
        [first] = torch.autograd.grad(value.sum(), [vae.decoder[1].bias], create_graph=True)
        return torch.autograd.grad(first.square().sum(), [vae.decoder[1].bias])

    ours, in_a_loop = QUANTITIES[quantity]
    torch.testing.assert_close(second(ours(vae, x, slice_size=slice_size)), second(in_a_loop(BERNOULLI, vae, x)))


# Sharp posteriors.


def _sharp(vae: CategoricalVAE, factor: float) -> CategoricalVAE:
    with torch.no_grad():
        for parameter in vae.encoder[-2].parameters():
            parameter.mul_(factor)
    return vae


@EACH_QUANTITY
@pytest.mark.parametrize("factor", [10, 100, 1000])
@pytest.mark.parametrize("slice_size", [3, None])
def test_codes_of_negligible_probability_change_nothing(quantity, factor, slice_size):
    ours, in_a_loop = QUANTITIES[quantity]
    vae, x = _sharp(BERNOULLI.vae(), factor), BERNOULLI.x()
    assert problems.log_q_in_a_loop(vae, x).min() < -30  # or nothing is tested
    assert_same_with_gradients(ours(vae, x, slice_size=slice_size), in_a_loop(BERNOULLI, vae, x), vae)


@pytest.mark.parametrize("slice_size", [3, None])
def test_codes_of_negligible_probability_are_not_decoded(slice_size):
    vae, x = _sharp(BERNOULLI.vae(), 100), BERNOULLI.x()
    runs = bind_pair(vae, x)
    plan = make_plan(runs, slice_size=slice_size)
    guide = read_guide_once(runs, plan.layout)
    decoded: list[int] = []
    vae.decoder.register_forward_hook(lambda module, inputs, output: decoded.append(len(output)))
    for part in elbo_parts(runs, plan, guide):
        part()
    log_q = problems.log_q_in_a_loop(vae, x)
    needed = (log_q.amax(1) >= plan.log_negligible).sum().item()
    assert sum(decoded) == needed < NUM_CODES


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_weights_hold_no_denormal_number_and_lose_less_than_rounding(dtype):
    vae = CategoricalVAE(6, 5, 4, hidden=(5,)).to(dtype)
    plan = make_plan(bind_pair(vae, torch.ones(2, 6, dtype=dtype)))
    log_weights = torch.linspace(-800, 0, plan.num_codes, dtype=dtype)
    weights = plan.weights(log_weights)
    limits = torch.finfo(dtype)
    assert ((weights == 0) | (weights >= limits.tiny)).all()
    assert log_weights.exp()[weights == 0].sum() <= limits.eps / 16
    assert (log_weights.exp() > 0).sum() > (weights > 0).sum()


# The plan.


def test_the_cost_is_known_before_the_sum():
    vae, x = CategoricalVAE(12, 5, 4, hidden=(16,)), torch.ones(3, 12)
    cost = exact.cost(vae, x, slice_size=100)
    assert (cost.num_codes, cost.slice_size, cost.num_slices) == (1024, 94, 11)  # 11 slices of nearly equal size
    assert 0 < cost.seconds < 60
    assert cost.bytes == pytest.approx(exact.cost(vae, x, slice_size=50).bytes * 94 / 50, rel=0.1)
    assert exact.cost(vae, x, max_memory=50_000).bytes <= 50_000


def test_the_cost_grows_with_the_network_and_the_batch():
    small, wide = CategoricalVAE(12, 5, 4, hidden=(16,)), CategoricalVAE(12, 5, 4, hidden=(160,))
    one, many = torch.ones(3, 12), torch.ones(300, 12)
    arguments = [(small, one), (wide, one), (small, many)]
    first, *larger = [exact.cost(vae, x, slice_size=64).bytes for vae, x in arguments]
    assert all(found > 2 * first for found in larger)


def test_frozen_models_are_measured_too():
    vae, x = CategoricalVAE(12, 5, 4, hidden=(16,)), torch.ones(3, 12)
    free = exact.cost(vae, x, slice_size=64).bytes
    assert exact.cost(vae.requires_grad_(False), x, slice_size=64).bytes > 0.5 * free


def test_the_model_runs_once_for_each_slice_after_the_plan():
    vae, x = BERNOULLI.vae(), BERNOULLI.x()
    runs = bind_pair(vae, x)
    plan = make_plan(runs, slice_size=3)
    calls: list[int] = []
    vae.decoder.register_forward_hook(lambda module, inputs, output: calls.append(len(output)))
    for numbers in plan.numbers():
        joint_scores(runs.model, plan.layout, plan.codes(numbers))
    assert calls == [3, 3, 2]


@pytest.mark.parametrize("slice_size", [None, 4])
@pytest.mark.parametrize("quantity", ["elbo", "log_evidence"])
@pytest.mark.parametrize("observation", ["bernoulli", "gaussian"])
def test_gradients_of_each_datum_by_torch_func(observation, quantity, slice_size):
    """As for differential privacy: `vmap` over `grad`, which does not allow looking at values."""

    class Bound(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.vae = CategoricalVAE(4, 2, 3, hidden=(5,), observation=observation)

        def forward(self, row):
            return getattr(exact, quantity)(self.vae, row[None], slice_size=slice_size).sum()

    bound, x = Bound(), torch.rand(3, 4).round()
    parameters = {name: parameter.detach() for name, parameter in bound.named_parameters()}
    with pyro.validation_enabled(False):
        gradient = torch.func.grad(lambda values, row: torch.func.functional_call(bound, values, (row,)))
        found = torch.func.vmap(gradient, in_dims=(None, 0))(parameters, x)
        for row, datum in enumerate(x):
            expected = torch.autograd.grad(bound(datum), list(bound.parameters()), materialize_grads=True)
            for one, other in zip(found.values(), expected, strict=True):
                torch.testing.assert_close(one[row], other, rtol=1e-5, atol=1e-5)
