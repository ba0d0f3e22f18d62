"""Convert values of location-scale families to noise and back, so that distributions can share their randomness."""

from typing import Any

import torch
from pyro.distributions import MaskedDistribution
from torch import Tensor
from torch.distributions import (
    Cauchy,
    Independent,
    Laplace,
    MultivariateNormal,
    Normal,
    TransformedDistribution,
)
from torch.distributions.transforms import AffineTransform, ExpTransform


def noise_of(fn: Any, value: Tensor) -> Tensor | None:
    """Return the standardized noise of a value, without a gradient, or None if the family has none.

    A normal, Laplace or Cauchy variable is its location plus its scale times noise. For a multivariate normal the scale
    is a triangular matrix, and a log-normal variable is the exponential of a normal one.

    Args:
        fn: a distribution, possibly wrapped by `.to_event` and `.mask`.
        value: one of its values.

    Example:
        >>> noise_of(torch.distributions.Normal(1.0, 2.0), torch.tensor(5.0))
        tensor(2.)
    """
    if isinstance(fn, Independent | MaskedDistribution):
        return noise_of(fn.base_dist, value)
    if _is_affine_or_exp(fn):
        for transform in reversed(fn.transforms):
            value = transform.inv(value)
        return noise_of(fn.base_dist, value)
    if isinstance(fn, Normal | Laplace | Cauchy):
        return ((value - fn.loc) / fn.scale).detach()
    if isinstance(fn, MultivariateNormal):
        difference = (value - fn.loc).unsqueeze(-1)
        return torch.linalg.solve_triangular(fn.scale_tril, difference, upper=False).squeeze(-1).detach()
    return None


def value_of(fn: Any, noise: Tensor) -> Tensor:
    """Return the value of a distribution at the given noise, with its pathwise derivative.

    Args:
        fn: a distribution of the same family as the one that the noise is from.
        noise: the result of :func:`noise_of`.
    """
    if isinstance(fn, Independent | MaskedDistribution):
        return value_of(fn.base_dist, noise)
    if _is_affine_or_exp(fn):
        value = value_of(fn.base_dist, noise)
        for transform in fn.transforms:
            value = transform(value)
        return value
    if isinstance(fn, MultivariateNormal):
        return fn.loc + (fn.scale_tril @ noise.unsqueeze(-1)).squeeze(-1)
    located: Tensor = fn.loc + fn.scale * noise
    return located


def _is_affine_or_exp(fn: Any) -> bool:
    """Return whether all transforms are affine or exp: their inverses are exact up to rounding."""
    return isinstance(fn, TransformedDistribution) and all(
        isinstance(transform, AffineTransform | ExpTransform) for transform in fn.transforms
    )
