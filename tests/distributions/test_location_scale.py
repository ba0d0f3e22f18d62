"""The noise of samples of location-scale families, and samples of other distributions with the same noise."""

import pyro.distributions as dist
import pytest
import torch

from pyro_gvae.distributions.location_scale import noise_of, value_of

LOC = torch.tensor([0.5, -1.0, 2.0], dtype=torch.float64)
SCALE = torch.tensor([0.3, 1.0, 4.0], dtype=torch.float64)
TRIL = torch.tensor([[0.5, 0.0, 0.0], [0.2, 0.4, 0.0], [1.0, -1.0, 2.0]], dtype=torch.float64)
FAMILIES = {
    "normal": dist.Normal,
    "event": lambda loc, scale: dist.Normal(loc, scale).to_event(1),
    "masked": lambda loc, scale: dist.Laplace(loc, scale).mask(torch.tensor([True, False, True])),
    "cauchy": dist.Cauchy,
    "log-normal": lambda loc, scale: dist.LogNormal(loc, scale).to_event(1),
    "multivariate": lambda loc, scale: dist.MultivariateNormal(loc, scale_tril=TRIL * scale[1]),
}


@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
def test_the_same_noise_gives_what_the_same_random_numbers_give(family):
    first, second = family(LOC, SCALE), family(2 * LOC + 1, SCALE + 0.5)
    samples = []
    for fn in (first, second):
        torch.manual_seed(0)
        samples.append(fn.rsample((4,)))
    noise = noise_of(first, samples[0])
    torch.testing.assert_close(value_of(first, noise), samples[0])
    torch.testing.assert_close(value_of(second, noise), samples[1])


def test_families_of_another_shape_have_none():
    for fn in (dist.Gamma(SCALE, 1.0), dist.Beta(SCALE, SCALE).to_event(1), dist.HalfNormal(SCALE)):
        assert noise_of(fn, fn.rsample()) is None


def test_values_have_their_pathwise_derivative():
    loc, scale = LOC.clone().requires_grad_(), SCALE.clone().requires_grad_()
    noise = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    value_of(dist.LogNormal(loc, scale).to_event(1), noise).log().sum().backward()
    torch.testing.assert_close(loc.grad, torch.ones(3).double())
    torch.testing.assert_close(scale.grad, noise)
