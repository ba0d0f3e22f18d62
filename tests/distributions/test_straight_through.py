"""Straight-through one-hots: each kind against a second implementation of its published formula, and in programs."""

import pickle

import pyro
import pyro.distributions as dist
import pytest
import torch
import torch.nn.functional as F
from published import FORMULAS, M, drawn_by, rao, st_gs
from pyro.infer import SVI, Trace_ELBO, TraceEnum_ELBO, TraceMeanField_ELBO
from torch import nn
from torch.distributions import kl_divergence

from pyro_gvae import exact
from pyro_gvae.distributions.parameters import categorical_kl
from pyro_gvae.distributions.straight_through import StraightThroughOneHotCategorical
from pyro_gvae.distributions.surrogates import (
    KINDS,
    GumbelRao,
)
from pyro_gvae.elbos.exact import ExactELBO
from pyro_gvae.estimators import estimator
from pyro_gvae.exact import Pair
from pyro_gvae.handlers import discretize, enumerated, relax, straight_through
from pyro_gvae.handlers.parameters import announce
from pyro_gvae.handlers.sites import discrete
from pyro_gvae.jit.traced_elbo import TracedELBO
from pyro_gvae.models.categorical_vae import CategoricalVAE
from pyro_gvae.train.step import make_step

N, K, D = 2, 4, 5
STANDARD_ERRORS = 5


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_no_kind_is_forgotten():
    assert set(FORMULAS) == set(KINDS)


@pytest.mark.parametrize("temperature", [0.3, 1.0, 1.7])
@pytest.mark.parametrize("name", FORMULAS)
def test_gradients_are_those_of_the_published_formula(name, temperature):
    kind, formula = FORMULAS[name]
    logits, gradient = (2 * random(50, N, K)).requires_grad_(), random(50, N, K, seed=1)
    t = torch.tensor(temperature, dtype=torch.float64)
    torch.manual_seed(0)
    z = kind(logits, t)
    (found,) = torch.autograd.grad(z, logits, gradient)
    torch.manual_seed(0)
    u, v = torch.rand_like(logits), torch.rand(50, N, K, M, dtype=torch.float64)
    hard, expected = formula(logits, t, u, v, gradient)
    assert torch.equal(z, hard)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


def of_kind(name, logits, temperature=0.7):
    return StraightThroughOneHotCategorical(temperature, logits=logits, kind=name)


@pytest.mark.parametrize("name", KINDS)
def test_samples_are_one_hot_and_have_the_categories_frequencies(name):
    logits = torch.tensor([2.0, 0.0, -1.0, -torch.inf], dtype=torch.float64)
    z = of_kind(name, logits).sample((20_000,))
    assert set(z.unique().tolist()) == {0.0, 1.0} and torch.equal(z.sum(-1), torch.ones(20_000, dtype=z.dtype))
    probs = logits.softmax(-1)
    standard_error = (probs * (1 - probs) / len(z)).sqrt()
    assert ((z.mean(0) - probs).abs() <= STANDARD_ERRORS * standard_error).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("name", KINDS)
def test_everything_is_finite_at_the_ends(name, dtype):
    logits = torch.tensor([[0.0, -60.0, 60.0, -torch.inf], [0.0, 0.0, 0.0, 0.0]], dtype=dtype).requires_grad_()
    for temperature in (0.01, 1.0, 100.0):
        q = of_kind(name, logits, temperature)
        z = q.rsample((100,))
        loss = (q.log_prob(z) * z.detach().sum(-1)).sum() + (z * torch.arange(4)).sum()
        assert z.dtype == dtype and torch.equal(z, z.round())
        assert torch.autograd.grad(loss, logits)[0].isfinite().all()


def test_scores_are_the_categoricals_and_keep_the_gradient_of_codes():
    logits = random(3, N, K)
    q, theirs = of_kind("reinmax", logits), dist.OneHotCategorical(logits=logits)
    z = q.sample((5,)).requires_grad_()
    torch.testing.assert_close(q.log_prob(z), theirs.log_prob(z))
    torch.testing.assert_close(torch.autograd.grad(q.log_prob(z).sum(), z)[0], logits.log_softmax(-1).expand_as(z))
    for name in ("mean", "variance", "mode", "probs"):
        torch.testing.assert_close(getattr(q, name), getattr(theirs, name))
    torch.testing.assert_close(q.entropy(), theirs.entropy())
    other = random(N, K, seed=1)
    expected = kl_divergence(theirs, dist.OneHotCategorical(logits=other))
    for p in (of_kind("gumbel-rao", other), dist.OneHotCategorical(logits=other)):
        torch.testing.assert_close(kl_divergence(q, p), expected)


def test_shapes_and_copies():
    q = pickle.loads(pickle.dumps(of_kind("gumbel-rao", torch.zeros(N, K))))
    wide = q.expand((3, N))
    assert wide.logits.data_ptr() == q.logits.data_ptr() and wide.kind == q.kind
    site = wide.to_event(1).mask(torch.tensor([True, False, True]))
    assert site.rsample((6,)).shape == (6, 3, N, K)
    assert site.log_prob(site.sample()).shape == (3,) and site.log_prob(site.sample())[1] == 0


@pytest.mark.parametrize("name", KINDS)
def test_nothing_is_hidden_in_samples(name):
    """Pyro's straight-through samples lose their gradient, or their score, if they are copied."""
    logits, weight = random(N, K).requires_grad_(), random(N, K, seed=1)
    gradients = []
    for copy in (lambda z: z, lambda z: z.clone().flatten().unflatten(0, (N, K)) * 1.0):
        torch.manual_seed(0)
        q = of_kind(name, logits)
        z = copy(q.rsample())
        gradients.append(torch.autograd.grad(((z * weight).sum() ** 2 + q.log_prob(z).sum()), logits)[0])
    assert gradients[0].any()
    torch.testing.assert_close(*gradients)


# Means of gradients: the batch repeats one datum, so that one backward pass gives many estimates.


def repeated(name, function, repeats=40_000, temperature=1.0):
    """Return single-sample gradients of function(z) with respect to the logits, (repeats, N, K), and the exact one."""
    logits = random(N, K).expand(repeats, N, K).clone().requires_grad_()
    z = (KINDS[name] if isinstance(name, str) else name)(logits, torch.tensor(temperature, dtype=torch.float64))
    (found,) = torch.autograd.grad(function(z).sum(), logits)
    one = random(N, K).requires_grad_()
    codes = exact_codes()
    weight = (codes * one.log_softmax(-1)).sum((-2, -1)).exp()
    (expected,) = torch.autograd.grad((weight * function(codes)).sum(), one)
    return found, expected


def exact_codes():
    index = torch.cartesian_prod(*[torch.arange(K)] * N)
    return F.one_hot(index, K).double()


def z_scores(found, expected):
    """Return the deviation of the means in standard errors, which is zero where nothing varies and nothing is off."""
    error = found.std(0) / len(found) ** 0.5
    return ((found.mean(0) - expected).abs() / error).max().item()


def linear(z):
    return (z * random(N, K, seed=2)).sum((-2, -1))


def quadratic(z):
    return (z.flatten(-2) @ random(N * K, N * K, seed=3) * z.flatten(-2)).sum(-1)


def nonlinear(z):
    return ((z.flatten(-2) @ (2 * random(N * K, 6, seed=4))).tanh() @ random(6, seed=5)).exp()


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_is_biased_on_a_nonlinear_function(name):
    assert z_scores(*repeated(name, nonlinear, repeats=5_000)) > STANDARD_ERRORS


def test_reinmax_is_exact_to_second_order_and_straight_through_to_first():
    found, expected = repeated("straight-through", linear)  # it has no variance
    torch.testing.assert_close(found, expected.expand_as(found))
    assert z_scores(*repeated("straight-through", quadratic)) > STANDARD_ERRORS
    assert z_scores(*repeated("reinmax", quadratic)) <= STANDARD_ERRORS


def test_gumbel_rao_has_the_mean_of_st_gumbel_softmax_and_less_variance():
    (few, _), (plain, _) = (repeated(kind, nonlinear, temperature=0.5) for kind in (GumbelRao(10), "st-gumbel-softmax"))
    error = (few.var(0) / len(few) + plain.var(0) / len(plain)).sqrt()
    assert ((few.mean(0) - plain.mean(0)).abs() <= STANDARD_ERRORS * error).all()
    assert few.var(0).sum() < 0.8 * plain.var(0).sum()


def test_with_noise_that_depends_on_logits_the_means_would_differ():
    """The negative control: the derivative through the conditional noise, which the paper's text asks for."""
    repeats, t = 20_000, 0.5
    logits = random(K).expand(repeats, K).clone().requires_grad_()
    u, v = torch.rand(repeats, K, dtype=torch.float64), torch.rand(repeats, K, M, dtype=torch.float64)
    gradient = random(K, K, seed=6)[drawn_by(u, logits).argmax(-1)]  # of a function that is not linear in D
    means = {}
    for name, formula in {"plain": st_gs, "constant": rao, "through": lambda *a: rao(*a, constant_noise=False)}.items():
        found = formula(logits, t, u, v, gradient)[1]
        means[name] = found.mean(0), found.var(0) / repeats
    for name, agrees in {"constant": True, "through": False}.items():
        error = (means[name][1] + means["plain"][1]).sqrt()
        close = (means[name][0] - means["plain"][0]).abs() <= STANDARD_ERRORS * error
        assert bool(close.all()) is agrees


# In programs.


def user_pair(repeats=3, sites=("z",)):
    """Build a pair with sites of one-hots that an MLP mixes; the guide's logits are the same for all data."""
    weights = [random(N * K, 6, seed=7 + i) for i in range(len(sites))]
    out, x = random(6, D, seed=20), random(1, D, seed=21).sign().add(1).div(2).expand(repeats, D)
    values = (random(N, K, seed=30 + i).expand(repeats, N, K).clone() for i in range(len(sites)))
    logits = dict(zip(sites, map(nn.Parameter, values), strict=True))
    prior = random(N, K, seed=40)

    def model():
        with pyro.plate("data", repeats):
            codes = [pyro.sample(name, dist.OneHotCategorical(logits=prior).to_event(1)) for name in sites]
            hidden = sum(z.flatten(-2) @ weight for z, weight in zip(codes, weights, strict=True)).tanh()
            pyro.sample("x", dist.Bernoulli(logits=hidden @ out).to_event(1), obs=x)

    def guide():
        with pyro.plate("data", repeats):
            for name in sites:
                announce(f"logits of {name}", logits[name])
                pyro.sample(name, dist.OneHotCategorical(logits=logits[name]).to_event(1))

    return Pair(model, guide), logits


@pytest.mark.parametrize("kl", ["categorical", "sampled"])
@pytest.mark.parametrize("name", KINDS)
def test_the_loss_has_no_bias_and_the_gradient_fails_the_test_of_those_that_have_none(name, kl):
    repeats = 10_000
    pair, logits = user_pair(repeats)
    model, guide, elbo = estimator(name, kl=kl).bind(pair)
    loss = elbo.differentiable_loss(model, guide)
    (found,) = torch.autograd.grad(loss, logits["z"])
    one, of_one = user_pair(1)
    expected = ExactELBO().differentiable_loss(*one)
    assert z_scores(found, torch.autograd.grad(expected, of_one["z"])[0]) > STANDARD_ERRORS
    # The standard deviation of the loss of a datum is that of log p(x | z) under q, and below its range.
    trace = pyro.poutine.trace(guide).get_trace()
    log_probs = pyro.poutine.trace(pyro.poutine.replay(model, trace)).get_trace()
    log_probs.compute_log_prob()
    spread = log_probs.nodes["x"]["log_prob"].std() + log_probs.nodes["z"]["log_prob"].std() + 1
    assert abs(loss.item() / repeats - expected.item()) <= STANDARD_ERRORS * spread / repeats**0.5


# This test checks that sites do not mix; the next one, that each kind is recorded with its temperature.
@pytest.mark.parametrize(("name", "elbo"), [("reinmax", Trace_ELBO), ("st-gumbel-softmax", TraceMeanField_ELBO)])
def test_two_sites_in_one_program_plain_and_recorded(name, elbo):
    found = []
    for wrap in (lambda loss: loss, TracedELBO):
        pair, logits = user_pair(sites=("z", "y"))
        model, guide = (straight_through(part, kind=name, temperature=0.8) for part in pair)
        loss = wrap(elbo())
        for _ in range(2):  # the second is replayed
            for leaf in logits.values():
                leaf.grad = None
            torch.manual_seed(0)
            value = loss.loss_and_grads(model, guide)
        found.append((value, torch.stack([leaf.grad for leaf in logits.values()])))
    assert found[0][0] == pytest.approx(found[1][0])
    assert found[0][1].flatten(1).any(1).all()
    torch.testing.assert_close(found[0][1], found[1][1])


@pytest.mark.usefixtures("recorded")
@pytest.mark.parametrize("name", KINDS)
def test_annealing_is_seen_where_the_program_keeps_its_temperature(name):
    x = random(4, D).sign().add(1).div(2)
    gradients = []
    for recorded in (False, True):
        torch.manual_seed(0)
        vae = CategoricalVAE(D, N, K, (6,)).double()
        chosen = estimator(name, temperature=None)
        if recorded:
            step = make_step(vae, chosen, optimizer=torch.optim.SGD(vae.parameters(), lr=0.0))
        for temperature in (1.5, 0.6):
            vae.temperature = temperature
            torch.manual_seed(1)
            if recorded:
                step(x)
            else:
                vae.zero_grad()
                model, guide, elbo = chosen.bind(vae)
                elbo.loss_and_grads(model, guide, x)
            gradients.append(next(vae.encoder.parameters()).grad.clone())
    first, second = gradients[:2], gradients[2:]
    assert not torch.equal(*first)
    torch.testing.assert_close(first, second)


@pytest.mark.parametrize("options", [{"num_particles": 3}, {"kl": "sampled"}, {"num_draws": 2, "kl": "sampled"}])
def test_options_train(options):
    vae = CategoricalVAE(D, N, K, (8,))
    x = torch.rand(8, D).round()
    before = exact.elbo(vae, x).mean()
    model, guide, elbo = estimator("gumbel-rao", **options).bind(vae)
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 2e-2}), loss=elbo)
    for _ in range(60):
        svi.step(x)
    assert exact.elbo(vae, x).mean() > before + 0.2


def test_the_outermost_handler_decides():
    pair, _ = user_pair(1)
    model, guide = (straight_through(part, temperature=0.8) for part in pair)
    discrete = -ExactELBO().loss(*pair)
    assert -ExactELBO().loss(discretize(model), discretize(guide)) == pytest.approx(discrete)
    by_enumeration = TraceEnum_ELBO(max_plate_nesting=1).loss(enumerated(model), enumerated(guide))
    assert -by_enumeration == pytest.approx(discrete)
    assert "z_log" in pyro.poutine.trace(relax(guide, temperature=0.5)).get_trace().nodes
    trace = pyro.poutine.trace(straight_through(relax(pair.guide, temperature=0.5), temperature=0.8)).get_trace()
    assert "z_log" not in trace.nodes and isinstance(trace.nodes["z"]["fn"].base_dist, StraightThroughOneHotCategorical)


def test_a_program_may_write_the_distribution_itself():
    site = discrete(of_kind("reinmax", torch.zeros(N, K), 1.3).to_event(1))
    assert site is not None and site.num_event_dims == 1 and site.temperature.item() == pytest.approx(1.3)
    with relax():
        z = pyro.sample("z", of_kind("reinmax", torch.zeros(N, K), 1.3).to_event(1))
    assert z.max() < 1
    with straight_through(kind=GumbelRao(3)):
        z = pyro.sample("z", of_kind("reinmax", torch.zeros(N, K, requires_grad=True), 1.3).to_event(1))
    assert z.requires_grad and z.max() == 1


def test_a_function_is_a_kind():
    with straight_through(kind=lambda logits, t: logits.exp() * t, temperature=2.0), pyro.validation_enabled(False):
        assert pyro.sample("z", dist.OneHotCategorical(logits=torch.zeros(3))).sum() == pytest.approx(2.0)


def test_refusals():
    def guide():
        pyro.sample("z", dist.OneHotCategorical(logits=torch.zeros(3)))

    with pytest.raises(ValueError, match=r"Expected a temperature for the discrete site 'z'.*Try straight_through"):
        straight_through(guide)()
    with pytest.raises(ValueError, match=r"Expected a straight-through kind among .*, but found 'reinforce'"):
        straight_through(guide, kind="reinforce")
    with pytest.raises(ValueError, match=r"positive temperature, but found 0"):
        straight_through(guide, temperature=0)
    with pytest.raises(ValueError, match=r"found a tensor of shape \(2,\)"):
        of_kind("reinmax", torch.zeros(3), torch.ones(2))
    with pytest.raises(ValueError, match=r"at least one draw of conditional noise, but found num_draws=0"):
        estimator("gumbel-rao", num_draws=0)
    with pytest.raises(ValueError, match=r"gap of at least 0, but found -1"):
        estimator("gapped-straight-through", gap=-1.0)
    with pytest.raises(ValueError, match=r"positive temperature, but found -0.5"):
        estimator("decoupled-st-gumbel-softmax", forward_temperature=-0.5)
    with pytest.raises(ValueError, match=r"kl to be one of categorical, sampled, but found 'relaxed'"):
        estimator("reinmax", kl="relaxed")
    with pytest.raises(ValueError, match=r"at least one particle"):
        estimator("reinmax", num_particles=0)
    with pytest.raises(ValueError, match=r"options that 'reinmax' has"):
        estimator("reinmax", num_draws=3)


def test_excluded_categories_have_no_gradient():
    """With a logit of -inf in both distributions, the KL and its gradient are those of the other categories alone."""
    q, p = torch.randn(4, 3, dtype=torch.float64), torch.randn(3, dtype=torch.float64)
    full = torch.cat([q, torch.full((4, 1), -torch.inf).double()], -1).requires_grad_()
    prior = torch.cat([p, torch.tensor([-torch.inf]).double()]).requires_grad_()
    few, rest = q.requires_grad_(), p.requires_grad_()
    found, right = categorical_kl(full, prior), categorical_kl(few, rest)
    torch.testing.assert_close(found, right)
    slopes = torch.autograd.grad(found.sum(), [full, prior])
    wanted = torch.autograd.grad(right.sum(), [few, rest])
    for slope, want in zip(slopes, wanted, strict=True):
        torch.testing.assert_close(slope[..., :-1], want)
        assert (slope[..., -1] == 0).all()
