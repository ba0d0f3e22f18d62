"""Blocks of a table row: an exponential family for all columns of one kind, whose cells may be missing."""

import copy
import math
from abc import ABC, abstractmethod
from typing import Self, final

import torch
from torch import Tensor
from torch.distributions import Gamma, Multinomial
from torch.nn.functional import softplus
from typing_extensions import override


class Block(ABC):
    """Abstract base: one family over D_k columns, whose cells are independent given the natural parameters.

    In all methods, x holds the cells (..., D_k), 0 where a cell is missing, and `kept` is True where a cell is present.

    Args:
        places: positions (D_k,) of the columns in a row.
    """

    def __init__(self, places: Tensor) -> None:
        self.places = places

    @property
    def width(self) -> int:
        """The number of natural parameters."""
        return len(self.places)

    @abstractmethod
    def statistics(self, x: Tensor, kept: Tensor) -> Tensor:
        """Return T(x), of shape (..., M_k)."""

    @abstractmethod
    def coefficients(self, natural: Tensor) -> Tensor:
        """Return the coefficients of T(x), of shape (..., M_k)."""

    @abstractmethod
    def mean(self, natural: Tensor) -> Tensor:
        """Return one value for each column (..., D_k): the mean, or the most probable level."""

    @abstractmethod
    def draw(self, natural: Tensor) -> Tensor:
        """Draw cells (..., D_k)."""

    @abstractmethod
    def holds(self, x: Tensor) -> Tensor:
        """Return which cells (..., D_k) lie in the family's support."""

    def accepts(self, x: Tensor) -> Tensor:
        """Return which cells (..., D_k), NaN where they are missing, a row may have."""
        return x.isnan() | self.holds(x)

    def base(self, x: Tensor, kept: Tensor) -> Tensor:
        """Return terms of the log base measure h(x), which are summed over the last axis, such as one for each cell."""
        return x.new_zeros(())

    def double(self) -> Self:
        """Return the same block with its parameters in float64."""
        new = copy.copy(self)
        for name, value in vars(self).items():
            if isinstance(value, Tensor) and value.is_floating_point():
                setattr(new, name, value.double())
        return new


def _with_presence(x: Tensor, kept: Tensor) -> Tensor:
    return torch.cat([x, kept.to(x.dtype)], -1)


def _are_counts(x: Tensor) -> Tensor:
    """Return which numbers are 0, 1, 2, ..: False for NaN."""
    return (x >= 0) & (x == x.round())


@final
class BinaryBlock(Block):
    """Cells 0 and 1; the natural parameters are log-odds."""

    @override
    def statistics(self, x: Tensor, kept: Tensor) -> Tensor:
        return _with_presence(x, kept)

    @override
    def coefficients(self, natural: Tensor) -> Tensor:
        return torch.cat([natural, -softplus(natural)], -1)

    @override
    def mean(self, natural: Tensor) -> Tensor:
        return natural.sigmoid()

    @override
    def draw(self, natural: Tensor) -> Tensor:
        return natural.sigmoid().bernoulli()

    @override
    def holds(self, x: Tensor) -> Tensor:
        return (x == 0) | (x == 1)


@final
class CategoricalBlock(Block):
    """Levels 0 to L - 1, where L may differ between columns; the natural parameters are logits, column by column.

    Args:
        places: see :class:`Block`.
        is_level: (D_k, largest L), True for the first L entries of each column: the levels that it has.
        levels: (width,), the positions of these entries in the flattened `is_level`.
    """

    def __init__(self, places: Tensor, is_level: Tensor, levels: Tensor) -> None:
        super().__init__(places)
        self.is_level, self.levels = is_level, levels
        # Indices that spread logits into a table (D_k, L); the entries of missing levels are arbitrary, and masked.
        self._into = (is_level.flatten().cumsum(0) - 1).clamp_min(0)

    @property
    @override
    def width(self) -> int:
        return len(self.levels)

    def log_probs(self, natural: Tensor) -> Tensor:
        """Return log-probabilities (..., D_k, L) of levels, -inf for levels that a column does not have."""
        padded = natural.index_select(-1, self._into).unflatten(-1, self.is_level.shape)
        return padded.masked_fill(~self.is_level, -math.inf).log_softmax(-1)

    def one_hots(self, x: Tensor, kept: Tensor) -> Tensor:
        """Return the levels as one-hots side by side (..., width), zeros where a cell is missing."""
        is_here = x.unsqueeze(-1) == torch.arange(self.is_level.shape[1], device=x.device, dtype=x.dtype)
        is_here = is_here & kept.unsqueeze(-1)
        return is_here.to(x.dtype).flatten(-2).index_select(-1, self.levels)

    @override
    def statistics(self, x: Tensor, kept: Tensor) -> Tensor:
        return self.one_hots(x, kept)

    @override
    def coefficients(self, natural: Tensor) -> Tensor:
        return self.log_probs(natural).flatten(-2).index_select(-1, self.levels)

    @override
    def mean(self, natural: Tensor) -> Tensor:
        return self.log_probs(natural).argmax(-1).to(natural.dtype)

    @override
    def draw(self, natural: Tensor) -> Tensor:
        probs = self.log_probs(natural).exp()
        return probs.reshape(-1, probs.shape[-1]).multinomial(1).reshape(probs.shape[:-1]).to(natural.dtype)

    @override
    def holds(self, x: Tensor) -> Tensor:
        return _are_counts(x) & (x < self.is_level.sum(-1))


@final
class GaussianBlock(Block):
    """Numbers x with normal noise around the natural parameters, scored in the units of the original table.

    A cell x stands for a value v with log(dv / dx) = log_unit + slope x: v = centre + spread x has log_unit = log
    spread and slope 0; v = exp(centre + spread x), which is log-normal, has log_unit = centre + log spread and slope
    spread. Scores are densities of v, so they can be compared with those of other models of the same table.

    Args:
        places: see :class:`Block`.
        scale: standard deviations of x (D_k,).
        log_unit: as above, (D_k,).
        slope: as above, (D_k,).
    """

    def __init__(self, places: Tensor, scale: Tensor, log_unit: Tensor, slope: Tensor) -> None:
        super().__init__(places)
        self.scale, self.log_unit, self.slope = scale, log_unit, slope

    @override
    def statistics(self, x: Tensor, kept: Tensor) -> Tensor:
        return _with_presence(x, kept)

    @override
    def coefficients(self, natural: Tensor) -> Tensor:
        precision = self.scale.square().reciprocal()
        return torch.cat([natural * precision, -0.5 * precision * natural.square()], -1)

    @override
    def base(self, x: Tensor, kept: Tensor) -> Tensor:
        normal = -0.5 * (x / self.scale).square() - self.scale.log() - 0.5 * math.log(2 * math.pi)
        return torch.where(kept, normal - self.log_unit - self.slope * x, 0.0)

    @override
    def mean(self, natural: Tensor) -> Tensor:
        return natural

    @override
    def draw(self, natural: Tensor) -> Tensor:
        return natural + self.scale * torch.randn_like(natural)

    @override
    def holds(self, x: Tensor) -> Tensor:
        return x.isfinite()


@final
class CountBlock(Block):
    """Counts 0, 1, .. with negative binomial noise; the natural parameters are logarithms of means.

    A count of mean m has variance m + m^2 / dispersion. With a large dispersion, counts are nearly Poisson.

    Args:
        places: see :class:`Block`.
        log_dispersion: logarithms of the dispersions (D_k,).
    """

    def __init__(self, places: Tensor, log_dispersion: Tensor) -> None:
        super().__init__(places)
        self.log_dispersion = log_dispersion

    @override
    def statistics(self, x: Tensor, kept: Tensor) -> Tensor:
        return _with_presence(x, kept)

    @override
    def coefficients(self, natural: Tensor) -> Tensor:
        log_odds = natural - self.log_dispersion
        return torch.cat([-softplus(-log_odds), -self.log_dispersion.exp() * softplus(log_odds)], -1)

    @override
    def base(self, x: Tensor, kept: Tensor) -> Tensor:
        dispersion = self.log_dispersion.exp()
        ways = torch.lgamma(x + dispersion) - torch.lgamma(dispersion) - torch.lgamma(x + 1)
        return torch.where(kept, ways, 0.0)

    @override
    def mean(self, natural: Tensor) -> Tensor:
        return natural.exp()

    @override
    def draw(self, natural: Tensor) -> Tensor:
        dispersion = self.log_dispersion.exp().expand_as(natural)
        rate = Gamma(dispersion, dispersion / natural.exp()).sample()
        return torch.poisson(rate)

    @override
    def holds(self, x: Tensor) -> Tensor:
        return _are_counts(x)


@final
class WordBlock(Block):
    """Counts of words, where each word of a row is drawn from softmax(natural): a bag of words.

    As in :class:`~pyro_gvae.distributions.observations.Multinomial`, the number of words of a row is given. It is
    unknown if a cell is missing, so no cell may be.

    Args:
        places: see :class:`Block`.
        length: the number of words in rows that are drawn, and in means.
    """

    def __init__(self, places: Tensor, length: int) -> None:
        super().__init__(places)
        self.length = length

    @override
    def statistics(self, x: Tensor, kept: Tensor) -> Tensor:
        return x

    @override
    def coefficients(self, natural: Tensor) -> Tensor:
        return natural.log_softmax(-1)

    @override
    def base(self, x: Tensor, kept: Tensor) -> Tensor:
        return torch.cat([torch.lgamma(x.sum(-1, keepdim=True) + 1), -torch.lgamma(x + 1)], -1)

    @override
    def mean(self, natural: Tensor) -> Tensor:
        return self.length * natural.softmax(-1)

    @override
    def draw(self, natural: Tensor) -> Tensor:
        found: Tensor = Multinomial(self.length, logits=natural, validate_args=False).sample()
        return found

    @override
    def holds(self, x: Tensor) -> Tensor:
        return _are_counts(x)

    @override
    def accepts(self, x: Tensor) -> Tensor:
        return self.holds(x)
