"""Losses that read programs treat bits as one-hots of two categories."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pairs import DATA, linear, observe, weights, with_gradients

from pyro_gvae.estimators import ESTIMATORS, estimator
from pyro_gvae.exact import Pair


def one_latent(site):
    """Build a pair with three digits per datum, which `site` writes from log-odds (..., 3)."""

    def model(x):
        with pyro.plate("data", len(x)):
            observe(site(weights(3)), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            site(linear(3, x))

    return Pair(model, guide)


def as_bits(log_odds):
    return pyro.sample("z", dist.Bernoulli(logits=log_odds).to_event(1))


def as_one_hots(log_odds):
    logits = torch.stack([torch.zeros_like(log_odds), log_odds], -1)
    return pyro.sample("z", dist.OneHotCategorical(logits=logits).to_event(1))[..., 1]


#: Estimators that read a program and draw its digits themselves.
READING = [name for name in ESTIMATORS if estimator(name).handler is None]


@pytest.mark.parametrize("name", READING)
def test_losses_that_read_programs_take_bits_for_one_hots(name):
    """With the same noise, loss and gradients are the same."""
    found = []
    for site in (as_bits, as_one_hots):
        model, guide, elbo = estimator(name).bind(one_latent(site))
        pyro.set_rng_seed(0)
        found.append(with_gradients(lambda: elbo.loss_and_grads(model, guide, DATA)))  # noqa: B023
    torch.testing.assert_close(found[0], found[1], rtol=1e-9, atol=1e-9)
