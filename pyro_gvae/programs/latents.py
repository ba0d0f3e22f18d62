"""The values of discrete latents and their joint codes."""

from typing import NamedTuple

import torch
from torch import Size, Tensor

from ..distributions.codes import num_codes, numbered_codes
from ..handlers.sites import EVERY_SITE, Kind, Sites


class Roles(NamedTuple):
    """What a loss does with the latents of a program; latents without a role are drawn by `rsample`.

    Attributes:
        read: discrete latents whose codes the loss gives to the programs.
        scored: latents without `rsample` that are drawn with a score.
    """

    read: Sites = EVERY_SITE
    scored: Sites = frozenset()


READ_ALL = Roles()


class TooManyCodesError(ValueError):
    """There are more joint codes than can be numbered or held in memory."""


class TooManyJointCodesError(TooManyCodesError):
    """A sum over all K^N joint codes would not end."""


class Latent(NamedTuple):
    """The name of a discrete latent, and the form of its values."""

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
        """Convert codes (..., N, K) to values of the latent, (..., *event_shape)."""
        codes = codes.reshape(*codes.shape[:-2], *self.shape, self.num_categories)
        return self.kind.values_of(codes).to(self.dtype)


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
        """Return one-hot codes (..., N, K) of each latent, by name, for joint codes with the given numbers (...)."""
        found = {}
        for latent in reversed(self.latents):
            own = numbers % latent.num_codes if len(self.latents) > 1 else numbers
            found[latent.name] = numbered_codes(own, latent.num_latents, latent.num_categories, dtype=dtype)
            numbers = numbers.div(latent.num_codes, rounding_mode="floor") if len(self.latents) > 1 else numbers
        return {latent.name: found[latent.name] for latent in self.latents}
