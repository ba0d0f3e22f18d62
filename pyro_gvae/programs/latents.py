"""Discrete latents of every kind as one-hots: N digits of K categories, whichever distribution writes them."""

from enum import Enum
from typing import Any, NamedTuple

import torch
from pyro.distributions import (
    Independent,
    MaskedDistribution,
    RelaxedBernoulliStraightThrough,
)
from torch import Size, Tensor

from ..distributions.codes import num_codes, numbered_codes
from ..handlers.sites import one_hot_site
from ..runtime.compat.pyro import mask_of


class Kind(Enum):
    """What the values of a discrete latent are."""

    ONE_HOT = "one-hots"
    BIT = "bits"
    INTEGER = "integers"


class Discrete(NamedTuple):
    """What a discrete distribution says, whichever class says it."""

    kind: Kind
    logits: Tensor  # (*batch_shape, *shape, K)
    num_event_dims: int  # of shape
    mask: bool | Tensor | None
    dtype: torch.dtype  # of its values


def discrete(fn: Any) -> Discrete | None:
    """Read a distribution as one-hots, if it is a one-hot, a Bernoulli or a Categorical, relaxed or not; else None.

    A bit is a one-hot of two categories, whose value is the second digit; an integer is the place of the one.

    Raises:
        ValueError: if it is one of Pyro's straight-through distributions, whose samples hide what their gradient needs.
    """
    if isinstance(fn, RelaxedBernoulliStraightThrough):
        raise ValueError(
            f"Expected sites that are relaxed or discrete, but found a {type(fn).__name__}, which is both. Try "
            "Bernoulli, and straight_through(program)."
        )
    site = one_hot_site(fn)
    if site is not None:
        return Discrete(Kind.ONE_HOT, site.logits, site.num_event_dims - 1, site.mask, site.dtype)
    if isinstance(fn, MaskedDistribution):
        inner, mask = discrete(fn.base_dist), mask_of(fn)
        return inner and inner._replace(mask=mask if inner.mask is None else inner.mask & mask)
    if isinstance(fn, Independent):
        inner = discrete(fn.base_dist)
        return inner and inner._replace(num_event_dims=inner.num_event_dims + fn.reinterpreted_batch_ndims)
    if isinstance(fn, torch.distributions.Bernoulli | torch.distributions.RelaxedBernoulli):
        logits = torch.stack([torch.zeros_like(fn.logits), fn.logits], -1)
        return Discrete(Kind.BIT, logits, 0, None, fn.logits.dtype)
    if isinstance(fn, torch.distributions.Categorical):
        return Discrete(Kind.INTEGER, fn.logits, 0, None, torch.long)
    return None


class Latent(NamedTuple):
    """How the values of a discrete latent are written."""

    name: str
    kind: Kind
    shape: Size  # of its N digits
    num_categories: int  # K
    dtype: torch.dtype

    @property
    def num_latents(self) -> int:
        """N."""
        return self.shape.numel()

    @property
    def num_codes(self) -> int:
        """K^N."""
        return num_codes(self.num_latents, self.num_categories)

    def value(self, codes: Tensor) -> Tensor:
        """Codes (..., N, K) as values of the latent, (..., *event_shape)."""
        batch_shape = codes.shape[:-2]
        if self.kind is Kind.ONE_HOT:
            return codes.to(self.dtype).reshape((*batch_shape, *self.shape, self.num_categories))
        if self.kind is Kind.BIT:
            return codes[..., 1].to(self.dtype).reshape((*batch_shape, *self.shape))
        return codes.argmax(-1).reshape((*batch_shape, *self.shape))


class Space(NamedTuple):
    """The joint codes of several latents, numbered in lexicographic order: the last latent varies fastest."""

    latents: tuple[Latent, ...]

    @property
    def num_codes(self) -> int:
        """S, the product of all K^N."""
        total = 1
        for latent in self.latents:
            total *= latent.num_codes
        return total

    def codes(self, numbers: Tensor, dtype: torch.dtype) -> dict[str, Tensor]:
        """One-hot codes (..., N, K) of each latent, by name, of joint codes of the given numbers (...)."""
        found = {}
        for latent in reversed(self.latents):
            own = numbers % latent.num_codes if len(self.latents) > 1 else numbers
            found[latent.name] = numbered_codes(own, latent.num_latents, latent.num_categories, dtype=dtype)
            numbers = numbers.div(latent.num_codes, rounding_mode="floor") if len(self.latents) > 1 else numbers
        return {latent.name: found[latent.name] for latent in self.latents}
