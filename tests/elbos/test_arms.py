"""ARMS: the copula of its codes, equality with DisARM for two codes, and less variance than independent codes."""

import pytest
import torch
from problems import Rows

from pyro_gvae.elbos import arms
from pyro_gvae.elbos.arms import ARMS
from pyro_gvae.elbos.coupled import DisARM
from pyro_gvae.elbos.score import ReinforceLOO
from pyro_gvae.estimators import estimator
from pyro_gvae.models.categorical_vae import CategoricalVAE
from pyro_gvae.programs.noise import by_uniform_noise
from pyro_gvae.programs.site import Site

MANY = 40_000


@pytest.mark.parametrize("prob", [0.02, 0.3, 0.5, 0.9])
@pytest.mark.parametrize("num_codes", [2, 3, 6])
def test_codes_have_their_probability_and_the_correlation_that_is_corrected(prob, num_codes):
    torch.manual_seed(0)
    log_probs = torch.tensor([1 - prob, prob], dtype=torch.float64).log().expand(MANY, 1, 2)
    first, noise = by_uniform_noise(arms._codes_of)(log_probs, torch.Size((1,)))
    batch = torch.Size([MANY])
    site = Site(None, log_probs, batch, batch, 1.0, None)
    bits = torch.cat([first, arms._others(site, noise, num_codes - 1)])[..., 0, 1]  # (P, many)
    error = (prob * (1 - prob) / MANY) ** 0.5
    assert (bits.mean(1) - prob).abs().max() < 5 * error
    correction = arms._corrections(log_probs[0].exp(), num_codes).item()
    for i in range(num_codes - 1):
        pair = (bits[i] - prob) * (bits[i + 1] - prob)
        assert abs(pair.mean() - prob * (1 - prob) * (1 - 1 / correction)) < 5 * pair.std() / MANY**0.5 + 1e-9
    assert 1 / num_codes <= correction <= 1 and arms._corrections(torch.eye(2)[:1].double(), num_codes) == 1


def test_two_codes_are_disarm():
    found = []
    for loss in (ARMS(num_particles=2), DisARM(num_particles=1)):
        rows = Rows("mlp", 3, 2, 50)
        torch.manual_seed(0)
        value = loss.loss_and_grads(rows.model, rows.guide, rows.x)
        found.append((torch.tensor(value), rows.gradients()))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


def test_coupled_codes_have_less_variance_than_independent_ones():
    spread = {}
    for loss in (ARMS, ReinforceLOO):
        torch.manual_seed(0)
        rows = Rows("mlp", 3, 2, 4000)
        loss(num_particles=4).loss_and_grads(rows.model, rows.guide, rows.x)
        spread[loss] = rows.gradients().var(0)[:6].sum()
    assert spread[ARMS] < 0.85 * spread[ReinforceLOO]


def test_other_than_two_categories_are_refused_with_the_reason():
    model, guide, elbo = estimator("arms").bind(CategoricalVAE(6, 2, 3, (5,)))
    with pytest.raises(
        ValueError, match=r"K=2 categories, but found K=3 at 'z': ARMS's antithetic codes .* Try disarm-iw"
    ):
        elbo.loss_and_grads(model, guide, torch.ones(4, 6))
