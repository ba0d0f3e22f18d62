"""The Concrete distribution against float64 references, torch's own, and numerical integration."""

import copy
import io
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO, TraceMeanField_ELBO
from torch.distributions import kl_divergence
from torch.distributions.relaxed_categorical import ExpRelaxedCategorical

from pyro_gvae.distributions import concrete
from pyro_gvae.distributions.concrete import ExpConcrete, RelaxedOneHotCategorical
from pyro_gvae.handlers import relax

TEMPERATURES = [1.0, 0.5, 0.1, 0.05, 0.01]


def reference_elbo(logits, prior_logits, temperature, prior_temperature, noise, weight):
    """Compute the relaxed ELBO of `pair` in float64 by hand: Maddison et al. 2017, eq. 20 and 22."""
    scores = (logits + noise) / temperature
    y = scores - scores.logsumexp(-1, keepdim=True)
    num_categories = logits.shape[-1]

    def log_density(logits, t):
        tilted = logits - t * y
        constant = math.lgamma(num_categories) + (num_categories - 1) * math.log(t)
        return constant + tilted.sum(-1) - num_categories * tilted.logsumexp(-1)

    log_ratio = log_density(prior_logits, prior_temperature) - log_density(logits, temperature)
    mean = (y.exp() * weight).sum((-2, -1))
    log_likelihood = -0.5 * (1.0 - mean) ** 2 - 0.5 * math.log(2 * math.pi)
    return log_ratio.sum() + log_likelihood.sum()


def pair(logits, prior_logits, temperature, prior_temperature, weight):
    def model():
        with pyro.plate("data", len(logits)):
            z = pyro.sample("z", RelaxedOneHotCategorical(prior_temperature, logits=prior_logits).to_event(1))
            pyro.sample("x", dist.Normal((z * weight).sum((-2, -1)), 1.0), obs=torch.ones(len(logits)))

    def guide():
        with pyro.plate("data", len(logits)):
            pyro.sample("z", RelaxedOneHotCategorical(temperature, logits=logits).to_event(1))

    return model, guide


def relative_error(found, expected):
    return ((found.double() - expected).norm() / expected.norm()).item()


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("num_categories", [2, 10, 100, 1000])
@pytest.mark.parametrize("scale", [1.0, 20.0])
def test_elbo_and_gradients_in_float32_match_a_float64_reference(temperature, num_categories, scale, monkeypatch):
    generator = torch.Generator().manual_seed(0)
    shape = (16, 3, num_categories)
    logits = scale * torch.randn(shape, generator=generator)
    prior_logits = scale * torch.randn(shape[1:], generator=generator)
    noise = -torch.empty(shape).exponential_(generator=generator).log()
    weight = torch.randn(shape[1:], generator=generator)
    monkeypatch.setattr(concrete, "gumbel_like", lambda logits, shape: noise.expand(shape))
    prior_temperature = 0.6 * temperature

    single = logits.clone().requires_grad_(), prior_logits.clone().requires_grad_()
    double = logits.double().requires_grad_(), prior_logits.double().requires_grad_()
    model, guide = (relax(program) for program in pair(single[0], single[1], temperature, prior_temperature, weight))
    found = -Trace_ELBO().differentiable_loss(model, guide)
    expected = reference_elbo(*double, temperature, prior_temperature, noise.double(), weight.double())
    found_gradients = torch.autograd.grad(found, single)
    expected_gradients = torch.autograd.grad(expected, double)

    assert torch.isfinite(found)
    assert relative_error(found.detach(), expected.detach()) < 1e-4
    for gradient, reference in zip(found_gradients, expected_gradients, strict=True):
        assert torch.isfinite(gradient).all()
        assert relative_error(gradient, reference) < 1e-4


def test_the_simplex_is_not_enough_at_low_temperature():
    """The negative control: scored through z, as in stock Pyro, the same ELBO is lost."""
    torch.manual_seed(0)
    q = dist.RelaxedOneHotCategorical(torch.tensor(0.05), logits=3 * torch.randn(500, 10), validate_args=False)
    p = dist.RelaxedOneHotCategorical(torch.tensor(0.05), logits=torch.zeros(500, 10), validate_args=False)
    z = q.rsample()
    with torch.no_grad():
        log_ratio = p.log_prob(z.clone()) - q.log_prob(z.clone())
    assert (~log_ratio.isfinite()).float().mean() > 0.5


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.5])
def test_log_densities_match_torch(temperature):
    torch.manual_seed(0)
    logits = torch.randn(7, 5, dtype=torch.float64)
    t = torch.tensor(temperature, dtype=torch.float64)
    ours, torchs = ExpConcrete(temperature, logits=logits), ExpRelaxedCategorical(t, logits=logits)
    y = ours.sample()
    assert torch.allclose(ours.log_prob(y), torchs.log_prob(y), rtol=1e-12)
    z = y.exp()
    reference = torch.distributions.RelaxedOneHotCategorical(t, logits=logits)
    assert torch.allclose(RelaxedOneHotCategorical(temperature, logits=logits).log_prob(z), reference.log_prob(z))


def test_density_integrates_to_one():
    """K = 2: the density of z_1 over the unit interval, by the trapezoid rule in log-odds."""
    q = RelaxedOneHotCategorical(0.7, logits=torch.tensor([0.4, -0.9], dtype=torch.float64))
    odds = torch.linspace(-40, 40, 20001, dtype=torch.float64)
    first = odds.sigmoid()
    z = torch.stack([first, (-odds).sigmoid()], -1)
    density = q.log_prob(z / z.sum(-1, keepdim=True)).exp() * first * (1 - first)
    assert torch.trapezoid(density, odds).item() == pytest.approx(1.0, abs=1e-6)


def test_argmax_of_samples_follows_the_categorical():
    """P(argmax z = k) = softmax(logits)_k at any temperature (Maddison et al. 2017, proposition 1)."""
    torch.manual_seed(1)
    q = RelaxedOneHotCategorical(0.8, logits=torch.tensor([0.0, 1.0, 2.0]))
    count = 40_000
    frequency = torch.bincount(q.sample((count,)).argmax(-1), minlength=3) / count
    standard_error = (q.probs * (1 - q.probs) / count).sqrt()
    assert ((frequency - q.probs).abs() < 5 * standard_error).all()


@pytest.mark.parametrize("cls", [ExpConcrete, RelaxedOneHotCategorical])
@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan"), float("inf")])
def test_temperature_must_be_positive(cls, temperature):
    with pytest.raises(ValueError, match="Expected a positive temperature, but found"):
        cls(temperature, logits=torch.zeros(3))


@pytest.mark.parametrize("cls", [ExpConcrete, RelaxedOneHotCategorical])
def test_a_tensor_temperature_must_be_positive_too(cls):
    for value in (-0.5, 0.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="Expected a positive temperature, but found"):
            cls(torch.tensor(value), logits=torch.zeros(3), validate_args=True)


def test_log_ratios_are_coordinates_of_the_density():
    """The transform to the log-simplex is a bijection, and the density of its inverse image is that of log_prob."""
    transform = torch.distributions.biject_to(ExpConcrete(1.0, logits=torch.zeros(4)).support)
    u = torch.randn(7, 3, dtype=torch.float64)
    y = transform(u)
    torch.testing.assert_close(y.logsumexp(-1), torch.zeros(7, dtype=torch.float64))
    torch.testing.assert_close(transform.inv(y), u)
    assert transform.forward_shape((7, 3)) == (7, 4) and transform.inverse_shape((7, 4)) == (7, 3)
    # K = 3: the density of the two log-ratios integrates to one.
    grid = torch.linspace(-30, 30, 601, dtype=torch.float64)
    u = torch.cartesian_prod(grid, grid)
    q = ExpConcrete(0.8, logits=torch.tensor([0.3, -0.5, 0.1], dtype=torch.float64))
    density = (q.log_prob(transform(u)) - transform.log_abs_det_jacobian(u, transform(u))).exp()
    assert (density.sum() * (grid[1] - grid[0]) ** 2).item() == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_samples_have_the_type_of_the_logits_and_densities_at_least_float32(dtype):
    q = RelaxedOneHotCategorical(0.5, logits=torch.zeros(5, 3, dtype=dtype))
    z = q.rsample()
    wide = torch.promote_types(dtype, torch.float32)
    assert z.dtype == dtype and q.base_dist.rsample().dtype == wide
    assert q.base_dist.log_prob(z.to(wide).log()).dtype == wide


@pytest.mark.parametrize("shape", [(4, 1), (4,), (2, 3)])
def test_a_temperature_that_would_broadcast_is_refused(shape):
    with pytest.raises(ValueError, match=r"Expected one temperature .* found a tensor of shape"):
        RelaxedOneHotCategorical(torch.ones(shape), logits=torch.zeros(4, 3))


@pytest.mark.parametrize("temperature", [0.5, torch.tensor(0.5), torch.tensor([0.5]), torch.tensor([[0.5]])])
def test_one_temperature_in_any_shape_keeps_the_batch(temperature):
    q = RelaxedOneHotCategorical(temperature, logits=torch.zeros(4, 3))
    assert q.log_prob(q.sample()).shape == (4,)


@pytest.mark.parametrize("arguments", [{}, {"probs": torch.ones(3) / 3, "logits": torch.zeros(3)}])
def test_probs_and_logits_exclude_each_other(arguments):
    with pytest.raises(ValueError, match="either probs or logits"):
        ExpConcrete(1.0, **arguments)


def test_probs_are_logits():
    probs = torch.tensor([0.2, 0.8])
    assert torch.allclose(ExpConcrete(1.0, probs=probs).probs, probs)


@pytest.mark.parametrize("cls", [ExpConcrete, RelaxedOneHotCategorical])
def test_expand(cls):
    q = cls(0.5, logits=torch.randn(3, 4)).expand((2, 3))
    assert isinstance(q, cls)
    sample = q.rsample((5,))
    assert sample.shape == (5, 2, 3, 4) and q.log_prob(sample).shape == (5, 2, 3)


def test_a_sample_may_be_copied_and_moved():
    """Samples have no hidden state: copies have the same density and gradient."""
    logits = torch.randn(6, 4, dtype=torch.float64, requires_grad=True)
    q = ExpConcrete(0.2, logits=logits)
    y = q.rsample()
    buffer = io.BytesIO()
    torch.save(y.detach(), buffer)
    buffer.seek(0)
    copies = [
        y.clone(),
        y.expand(1, 6, 4)[0],
        y.to(torch.float64),
        copy.deepcopy(y.detach()),
        torch.load(buffer, weights_only=True),
    ]
    for other in copies:
        assert torch.equal(q.log_prob(other), q.log_prob(y))
    (gradient,) = torch.autograd.grad(q.log_prob(y).sum(), logits, retain_graph=True)
    (copied,) = torch.autograd.grad(q.log_prob(y.clone()).sum(), logits)
    assert torch.equal(gradient, copied) and gradient.abs().sum() > 0


@pytest.mark.parametrize("cls", [ExpConcrete, RelaxedOneHotCategorical])
def test_registered_kl_is_that_of_the_categoricals(cls):
    q, p = torch.randn(5, 4, dtype=torch.float64), torch.randn(5, 4, dtype=torch.float64)
    found = kl_divergence(cls(0.5, logits=q), cls(0.3, logits=p))
    expected = kl_divergence(torch.distributions.Categorical(logits=q), torch.distributions.Categorical(logits=p))
    assert torch.allclose(found, expected, rtol=1e-12)


def test_an_excluded_category_costs_nothing():
    q = torch.tensor([0.0, 0.0, -math.inf])
    found = concrete.categorical_kl(q, torch.zeros(3))
    with pytest.raises(ValueError, match="Expected finite logits, but found -inf"):
        ExpConcrete(1.0, logits=q)
    assert found.item() == pytest.approx(math.log(3 / 2))


def test_relaxed_elbo_equals_numerical_integration():
    """K = 2, N = 1: E_q[log p(x|z) + log p(z) - log q(z)] by the trapezoid rule over the log-odds of z."""
    logits, prior_logits = torch.tensor([[[0.8, -0.3]]]).double(), torch.tensor([[-0.2, 0.1]]).double()
    weight = torch.tensor([[1.5, -0.5]]).double()
    many = logits.expand(1_000, -1, -1)
    model, guide = (relax(program) for program in pair(many, prior_logits, 0.6, 0.4, weight))
    torch.manual_seed(0)
    losses = torch.tensor([Trace_ELBO().loss(model, guide) for _ in range(30)]).double() / len(many)

    odds = torch.linspace(-60, 60, 60001, dtype=torch.float64)
    y = torch.stack([-torch.nn.functional.softplus(-odds), -torch.nn.functional.softplus(odds)], -1)
    log_q = ExpConcrete(0.6, logits=logits[0, 0]).log_prob(y)
    log_p = ExpConcrete(0.4, logits=prior_logits[0]).log_prob(y)
    # y lies on the curve sum exp y = 1, and its density is with respect to the log-odds.
    log_likelihood = dist.Normal((y.exp() * weight[0]).sum(-1), 1.0).log_prob(torch.tensor(1.0).double())
    expected = torch.trapezoid(log_q.exp() * (log_likelihood + log_p - log_q), odds)
    standard_error = losses.std() / math.sqrt(len(losses))
    assert (-losses.mean() - expected).abs() < 5 * standard_error
    assert standard_error < 0.01 * expected.abs()


def discrete_elbo(logits, prior_logits, weight):
    """Compute the ELBO of one datum by brute force over the K^2 codes of two latents."""
    log_q, log_p = logits[0].log_softmax(-1), prior_logits.log_softmax(-1)
    total = torch.zeros((), dtype=logits.dtype)
    for i in range(logits.shape[-1]):
        for j in range(logits.shape[-1]):
            code = log_q[0, i] + log_q[1, j]
            log_likelihood = dist.Normal(weight[0, i] + weight[1, j], 1.0).log_prob(torch.tensor(1.0))
            total = total + code.exp() * (log_likelihood + log_p[0, i] + log_p[1, j] - code)
    return total


def logistic_kl(a, b):
    """Compute the KL of logistics at a and b, the log-odds of two Concretes with K = 2 at any common temperature."""
    grid = torch.linspace(-80, 80, 80001, dtype=torch.float64)

    def log_density(location):
        return -(grid - location) - 2 * torch.nn.functional.softplus(-(grid - location))

    log_q, log_p = log_density(a), log_density(b)
    return torch.trapezoid(log_q.exp() * (log_q - log_p), grid)


@pytest.mark.parametrize("elbo", [TraceMeanField_ELBO, Trace_ELBO])
def test_at_temperature_zero_the_relaxed_objective_is_discrete_but_for_the_relaxed_kl(elbo):
    """With the categorical KL the objective tends to the discrete ELBO; with the relaxed KL a gap remains.

    At equal temperatures a Concrete sample is a bijection of differences of shifted Gumbels that does not depend on
    t, so neither does the relaxed KL: for K = 2 it is that of two logistics, which is larger than the categorical one.
    """
    logits = torch.tensor([[[1.2, -0.4], [0.3, -0.8]]]).double()  # (1, N, K)
    prior_logits = torch.zeros(2, 2).double()
    weight = torch.tensor([[1.5, -0.5], [0.7, -1.0]]).double()
    t = 1e-3
    many = logits.expand(20_000, -1, -1)
    model, guide = (relax(program) for program in pair(many, prior_logits, t, t, weight))
    torch.manual_seed(0)
    gap = torch.zeros(()).double()
    if elbo is Trace_ELBO:
        odds = logits[0, :, 0] - logits[0, :, 1]
        relaxed = sum(logistic_kl(a, torch.zeros(()).double()) for a in odds)
        categorical = kl_divergence(ExpConcrete(1.0, logits=logits[0]), ExpConcrete(1.0, logits=prior_logits)).sum()
        gap = relaxed - categorical
        assert gap > 0.1
    found = -torch.tensor([elbo().loss(model, guide) for _ in range(10)]) / len(many)
    expected = discrete_elbo(logits, prior_logits, weight) - gap
    standard_error = found.std() / math.sqrt(len(found))
    assert standard_error < 0.02
    assert (found.mean() - expected).abs() < 5 * standard_error
    wrong = expected + (0.2 if elbo is TraceMeanField_ELBO else gap)
    assert (found.mean() - wrong).abs() > 5 * standard_error  # the negative control
