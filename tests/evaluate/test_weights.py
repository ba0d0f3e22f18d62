"""Importance weights of draws, with other latents summed because the guide lacks them or they are a chain."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pairs import (
    DATA,
    chain_guide,
    chain_model,
    linear,
    no_guide,
    normal,
    switching_model,
    without_markov,
)
from torch import Tensor

from pyro_gvae import exact
from pyro_gvae.evaluate.collapsed import collapsed_importance_weighted
from pyro_gvae.evaluate.importance import importance_weighted, is_shared, log_importance_weights
from pyro_gvae.exact import Pair

X = torch.linspace(-2.0, 3.0, 6, dtype=torch.float64)
CENTRES = torch.tensor([-1.5, 0.0, 2.0], dtype=torch.float64)
PRIOR = torch.tensor([0.5, 0.2, 0.3], dtype=torch.float64)


def model(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        k = pyro.sample("k", dist.Categorical(PRIOR))
        c = pyro.sample("c", dist.Normal(CENTRES[k], 1.0))
        pyro.sample("x", dist.Normal(c, 0.7), obs=x)


def guide(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        pyro.sample("c", dist.Normal(x, 0.9))


def test_weights_of_a_mixture_whose_code_the_guide_lacks():
    pyro.set_rng_seed(0)
    found = log_importance_weights(Pair(model, guide), X, 7)
    pyro.set_rng_seed(0)
    c = dist.Normal(X.expand(7, -1), 0.9).sample()
    joint = PRIOR.log() + dist.Normal(CENTRES, 1.0).log_prob(c.unsqueeze(-1))
    log_p = joint.logsumexp(-1) + dist.Normal(c, 0.7).log_prob(X)
    torch.testing.assert_close(found, log_p - dist.Normal(X, 0.9).log_prob(c), rtol=1e-9, atol=1e-9)
    pyro.set_rng_seed(0)
    bounds = importance_weighted(Pair(model, guide), X, 7)
    torch.testing.assert_close(bounds.elbo, found.mean(0))
    torch.testing.assert_close(bounds.bound, found.logsumexp(0) - torch.tensor(7.0).log())
    pyro.set_rng_seed(0)
    torch.testing.assert_close(collapsed_importance_weighted(Pair(model, guide), X, 7).bound, bounds.bound)
    assert not is_shared(Pair(model, guide), X) and bounds.neighbourhood is None


def test_chunks_of_data_and_of_particles_have_as_many_weights():
    pyro.set_rng_seed(0)
    found = importance_weighted(Pair(model, guide), X.repeat(20), 50, max_memory=30_000)
    exactly = importance_weighted(Pair(model, guide), X.repeat(20), 50)
    assert found.bound.shape == exactly.bound.shape == (120,)
    error = (found.bound.var() + exactly.bound.var()).sqrt() / 120**0.5
    assert (found.bound.mean() - exactly.bound.mean()).abs() < 5 * error


def test_a_chain_without_continuous_latents_has_the_evidence():
    pyro.clear_param_store()
    for own in (chain_guide, no_guide):
        pair = Pair(chain_model, own)
        found = collapsed_importance_weighted(pair, DATA, 2)
        torch.testing.assert_close(found.bound, exact.log_evidence(pair, DATA), rtol=1e-9, atol=1e-9)
        assert (found.effective_sample_size - 2).abs().max() < 1e-9


def normals(x):
    """The guide of the continuous latents of a switching model."""
    with pyro.plate("data", len(x)):
        for t in range(x.shape[1]):
            pyro.sample(f"z{t}", normal(linear(2, x[:, t:])))


def test_a_chain_beside_normals_is_summed_given_them():
    """The noise of the normals is fixed, so a weight is that of a model with codes alone."""
    pyro.clear_param_store()
    found = importance_weighted(Pair(switching_model, normals), DATA, 2)
    with torch.no_grad():
        values = {
            n: site["value"] for n, site in pyro.poutine.trace(normals).get_trace(DATA).nodes.items() if n[0] == "z"
        }
        q = pyro.poutine.trace(pyro.poutine.condition(normals, values)).get_trace(DATA)
        q.compute_log_prob()
        log_q = sum(q.nodes[name]["log_prob"] for name in values)
    given = Pair(without_markov(pyro.poutine.condition(switching_model, values)), no_guide)
    expected = exact.log_evidence(given, DATA).detach() - log_q
    torch.testing.assert_close(found.bound, expected, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(found.elbo, expected, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(
        exact.elbo(Pair(switching_model, normals), DATA).detach(), expected, rtol=1e-9, atol=1e-9
    )


def shared(x, observed):
    c = pyro.sample("c", dist.Normal(torch.zeros(3).double() + (0.0 if observed else 0.5), 1.0).to_event(1))
    if observed:
        with pyro.plate("data", len(x)):
            k = pyro.sample("k", dist.Categorical(PRIOR))
            pyro.sample("x", dist.Normal(c[k], 1.0), obs=x)


def test_programs_that_take_one_particle_at_a_time_have_the_same_numbers():
    """The program indexes values at the first dimension, which is that of particles; data share a latent."""
    pair = Pair(lambda x: shared(x, True), lambda x: shared(x, False))
    pyro.set_rng_seed(0)
    with pytest.warns(UserWarning, match=r"one particle at a time.*such as Vindex"):
        found = log_importance_weights(pair, X, 3)
    pyro.set_rng_seed(0)
    c = torch.stack([dist.Normal(torch.full((3,), 0.5).double(), 1.0).sample() for _ in range(3)])
    each = (PRIOR.log() + dist.Normal(c.unsqueeze(1), 1.0).log_prob(X.unsqueeze(-1))).logsumexp(-1).sum(-1)
    prior, own = (dist.Normal(loc, 1.0).log_prob(c).sum(-1) for loc in (0.0, 0.5))
    torch.testing.assert_close(found, (each + prior - own).unsqueeze(-1), rtol=1e-9, atol=1e-9)
    assert is_shared(pair, X)
