"""Bounds of programs with codes and continuous latents: a Gaussian mixture, whose log p(x) is known."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pairs import DATA, PROGRAMS, m2_guide, m2_model
from torch import Tensor

from pyro_gvae import exact
from pyro_gvae.evaluate.collapsed import collapsed_importance_weighted
from pyro_gvae.evaluate.importance import importance_weighted, log_importance_weights
from pyro_gvae.exact import Pair

X = torch.linspace(-2.0, 3.0, 6, dtype=torch.float64)
CENTRES = torch.tensor([-1.5, 0.0, 2.0], dtype=torch.float64)
PRIOR = torch.tensor([0.5, 0.2, 0.3], dtype=torch.float64)


def model(x: Tensor) -> None:
    """Model data as x = centre of a code + a normal latent + noise."""
    with pyro.plate("data", len(x)):
        k = pyro.sample("k", dist.Categorical(PRIOR))
        c = pyro.sample("c", dist.Normal(CENTRES[k], 1.0))
        pyro.sample("x", dist.Normal(c, 0.7), obs=x)


def guide(x: Tensor) -> None:
    """A poor guide, in which the normal depends on the code."""
    with pyro.plate("data", len(x)):
        k = pyro.sample("k", dist.Categorical(logits=torch.zeros(3).double()))
        pyro.sample("c", dist.Normal(x / 2 + k / 2, 1.2))


def other_guide(x: Tensor) -> None:
    """A guide that draws the code given the normal."""
    with pyro.plate("data", len(x)):
        c = pyro.sample("c", dist.Normal(x, 1.0))
        pyro.sample("k", dist.Categorical(logits=c.unsqueeze(-1) * CENTRES / 3))


GUIDES = {"code first": guide, "normal first": other_guide}
LOG_P = (PRIOR.log() + dist.Normal(CENTRES, 1.49**0.5).log_prob(X.unsqueeze(-1))).logsumexp(-1)


@pytest.mark.parametrize("name", GUIDES)
@pytest.mark.parametrize("max_memory", [None, 3000.0], ids=["at once", "in chunks"])
def test_the_collapsed_bound_is_between_the_plain_one_and_the_evidence(name, max_memory):
    pyro.set_rng_seed(0)
    pair, repeats, particles = Pair(model, GUIDES[name]), 1000, 4
    x = X.repeat(repeats if max_memory is None else 20)
    plain = importance_weighted(pair, x, particles, max_memory=max_memory)
    found = collapsed_importance_weighted(pair, x, particles, max_memory=max_memory)
    assert found.bound.shape == x.shape and plain.neighbourhood is None
    bounds = [own.bound.reshape(-1, len(X)).mean(1) for own in (plain, found)]  # means over X, one per repetition
    low, high = (own.mean() for own in bounds)
    errors = [own.std() / len(own) ** 0.5 for own in bounds]
    assert high < LOG_P.mean() + 5 * errors[1]
    if max_memory is None:
        assert low < high - 5 * (errors[0] ** 2 + errors[1] ** 2).sqrt()


@pytest.mark.parametrize("name", GUIDES)
def test_both_bounds_tend_to_the_evidence(name):
    pyro.set_rng_seed(0)
    pair = Pair(model, GUIDES[name])
    for function in (importance_weighted, collapsed_importance_weighted):
        found = function(pair, X, 20_000)
        error = (1 / found.effective_sample_size - 1 / 20_000).sqrt()
        assert ((found.bound - LOG_P).abs() < 5 * error + 1e-3).all()  # fails once in 280,000 seeds


def test_a_collapsed_weight_is_the_mean_of_the_plain_weights_given_the_continuous_latents():
    """If the guide draws the code from its exact posterior given the normal, plain and collapsed weights are equal."""

    def exact_codes(x):
        with pyro.plate("data", len(x)):
            c = pyro.sample("c", dist.Normal(x, 1.0))
            pyro.sample("k", dist.Categorical(logits=PRIOR.log() + dist.Normal(CENTRES, 1.0).log_prob(c.unsqueeze(-1))))

    pyro.set_rng_seed(1)
    plain = importance_weighted(Pair(model, exact_codes), X, 1)
    pyro.set_rng_seed(1)
    torch.testing.assert_close(collapsed_importance_weighted(Pair(model, exact_codes), X, 1).bound, plain.bound)


def test_without_continuous_latents_it_is_the_evidence():
    for name in ("two layers, bottom-up", "bits and an integer"):
        pyro.clear_param_store()
        pair = Pair(*PROGRAMS[name][:2])
        found = collapsed_importance_weighted(pair, DATA, 2, max_memory=20_000)
        torch.testing.assert_close(found.bound, exact.log_evidence(pair, DATA))


def _mixture(draw_centre):
    def program(x, observe):
        c = pyro.sample("c", draw_centre(x))
        with pyro.plate("data", len(x)):
            k = pyro.sample("k", dist.Categorical(PRIOR))
            if observe:
                pyro.sample("x", dist.Normal(c + 0 * k, 1.0), obs=x)

    return program


def test_data_that_share_a_latent_have_one_bound_together_however_they_are_cut():
    """x_b = c + noise: the data are jointly normal."""
    prior = _mixture(lambda x: dist.Normal(torch.zeros(()).double(), 1.0))
    proposal = _mixture(lambda x: dist.Normal(x.mean(), 0.8))
    pair = Pair(lambda x: prior(x, True), lambda x: proposal(x, False))
    covariance = torch.eye(len(X)).double() + 1
    expected = dist.MultivariateNormal(torch.zeros(len(X)).double(), covariance).log_prob(X)
    for function in (importance_weighted, collapsed_importance_weighted):
        pyro.set_rng_seed(0)
        found = function(pair, X, 300, max_memory=20_000)
        assert found.bound.shape == (1,)
        assert abs(found.bound - expected) < 5 * (1 / found.effective_sample_size).sqrt()


def test_a_global_code_has_a_plain_bound_and_no_collapsed_one():
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    pair = Pair(*PROGRAMS["a global code"][:2])
    found = importance_weighted(pair, DATA, 4000)
    assert abs(found.bound - exact.log_evidence(pair, DATA)) < 5 * (1 / found.effective_sample_size).sqrt()
    with pytest.raises(ValueError, match=r"found 'style', which several data share.*importance_weighted"):
        collapsed_importance_weighted(pair, DATA, 10)


def test_no_particles_are_refused():
    for function in (importance_weighted, collapsed_importance_weighted, log_importance_weights):
        with pytest.raises(ValueError, match="at least one particle"):
            function(Pair(m2_model, m2_guide), DATA, 0)
