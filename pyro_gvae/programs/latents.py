"""The values of discrete latents and their joint codes."""

from typing import NamedTuple

import torch
from torch import Size, Tensor

from ..distributions.codes import num_codes, numbered_codes
from ..handlers.chosen import EVERY_SITE, Sites
from ..handlers.sites import Discrete, Kind


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
    """The name of a discrete latent, and the form of its values.

    Attributes:
        name: its name in the program.
        kind: the kind of its values: one-hots, bits or integers.
        shape: the shape of its N digits.
        num_categories: K.
        dtype: the dtype of its values.
    """

    name: str
    kind: Kind
    shape: Size
    num_categories: int
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
    """The joint codes of several latents, numbered in lexicographic order: the last latent varies fastest.

    Attributes:
        latents: the latents, in order.
    """

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


def first_value(name: str, found: Discrete) -> Tensor:
    """Return the first code of a latent, in the shape of a sample."""
    like = found.natural
    codes = torch.zeros(*found.batch_shape, *found.code_shape, dtype=like.dtype, device=like.device)
    codes[..., 0] = 1.0
    return latent_of(name, found).value(codes)


def first_shared_value(name: str, found: Discrete) -> Tensor:
    """Return the first code of a latent, with a batch shape of ones."""
    return first_value(name, found._replace(natural=found.natural[(slice(1),) * len(found.batch_shape)]))


def first_category(like: Tensor) -> Tensor:
    """Return the one-hots of the first category of every digit, for codes like (.., N, K): (N, K)."""
    is_first = torch.arange(like.shape[-1], device=like.device) == 0
    return is_first.to(like.dtype).expand(like.shape[-2:])


def flat(values: Tensor, found: Discrete) -> Tensor:
    """Reshape (*batch, *shape, K) as (*batch, N, K)."""
    return values.reshape(*found.batch_shape, *found.code_shape)


def latent_of(name: str, found: Discrete) -> Latent:
    """Return the name of a discrete latent, and the form of its values."""
    return Latent(name, found.kind, found.shape, found.num_categories, found.dtype)


def comes_and_goes(name: str) -> ValueError:
    """Return the error for a latent that a program draws only if others have certain values."""
    return ValueError(
        f"Expected programs that draw the same latents whatever their values, but found '{name}' only with some values "
        "of others, so that codes have no fixed shape. Try drawing it always, inside poutine.mask(mask=..) that is "
        "True where the program needs it: a masked latent counts as if it were not there."
    )
