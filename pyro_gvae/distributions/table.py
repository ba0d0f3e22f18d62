"""Table rows with columns of several kinds and missing cells, scored by one matrix product.

Columns of one kind form a block: an exponential family over its cells. The statistics of a missing cell (NaN) are zero,
so it drops out of the product: it is integrated out. With all blocks side by side,

    log p(x | eta) = coefficients(eta) . T(x) + h(x),

where T(x) holds, for each cell present, the statistics of its family and a 1 whose coefficient is minus the normalizer.
"""

import copy
from collections.abc import Sequence
from typing import Any, ClassVar, Self, final

import torch
from torch import Size, Tensor
from torch.distributions import constraints
from typing_extensions import override

from .blocks import Block
from .exponential_family import ExponentialFamily
from .parameters import no_nan


class _Rows(constraints.Constraint):
    """Rows in which each cell is missing or in the support of its block."""

    event_dim = 1

    def __init__(self, blocks: Sequence[Block]) -> None:
        super().__init__()
        self.blocks = blocks

    @override
    def check(self, value: Tensor) -> Tensor:
        cells = (value.index_select(-1, block.places) for block in self.blocks)
        held = [block.accepts(x).all(-1) for x, block in zip(cells, self.blocks, strict=True)]
        return torch.stack(held).all(0)


@final
class TableRow(ExponentialFamily):
    """A row of D cells in blocks of columns; NaN marks a missing cell, which is integrated out.

    Scores are computed in float64 and rounded once: a row has few cells, and some of them may be certain.

    Args:
        natural: natural parameters (..., sum of the widths of blocks), block by block.
        blocks: the blocks, which together contain each column once.
        validate_args: see :class:`ExponentialFamily`, which also lists the errors.

    Example:
        >>> import math
        >>> from pyro_gvae.distributions.blocks import BinaryBlock
        >>> row = TableRow(torch.zeros(7, 1, 2), [BinaryBlock(torch.tensor([0, 1]))])
        >>> row.log_prob(torch.tensor([[0.0, 1.0], [math.nan, 1.0]]))[0]
        tensor([-1.3863, -0.6931])
    """

    arg_constraints: ClassVar[dict[str, Any]] = {"natural": no_nan}
    _domain = "whose cells are missing (NaN) or valid for their columns' kinds"

    def __init__(self, natural: Tensor, blocks: Sequence[Block], validate_args: bool | None = None) -> None:
        self.blocks = blocks
        self._widths = [block.width for block in blocks]
        if natural.shape[-1:] != (sum(self._widths),):
            raise ValueError(
                f"Expected natural of shape (..., {sum(self._widths)}), but found {tuple(natural.shape)}. Try a "
                "decoder with as many outputs as the observation's natural_dim."
            )
        super().__init__(natural, 1, validate_args)
        self._event_shape = Size([sum(len(block.places) for block in blocks)])

    @constraints.dependent_property(is_discrete=False, event_dim=1)
    @override
    def support(self) -> Any:
        return _Rows(self.blocks)

    @property
    @override
    def coefficients(self) -> Tensor:
        return self._side_by_side(lambda block, natural: block.coefficients(natural))

    @override
    def sufficient_statistics(self, x: Tensor) -> Tensor:
        return torch.cat([block.statistics(*_cells(block, x)) for block in self.blocks], -1)

    @override
    def log_normalizer(self) -> Tensor:
        return self.natural.new_zeros(self.natural.shape[:-1])  # it is part of the product

    @override
    def log_base_measure(self, x: Tensor) -> Tensor:
        zero = x.new_zeros(x.shape[:-1])
        return sum((block.base(*_cells(block, x)).sum(-1) for block in self.blocks), zero)

    def _centred(self, x: Tensor) -> tuple[Self, Tensor]:
        family = copy.copy(self)
        family.natural, family.blocks = self.natural.double(), [block.double() for block in self.blocks]
        return family, x.double()

    def _outer_scores(self, x: Tensor) -> Tensor:
        return self.coefficients @ self.sufficient_statistics(x).mT + self.log_base_measure(x)

    def _paired_log_prob(self, x: Tensor) -> Tensor:
        family, x = self._centred(x)
        products = (family.coefficients * family.sufficient_statistics(x)).sum(-1)
        return (products + family.log_base_measure(x)).to(self.natural.dtype)

    def _pixel_mean(self) -> Tensor:
        return self._in_order(self._side_by_side(lambda block, natural: block.mean(natural)))

    @torch.no_grad()
    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Draw rows without missing cells, of shape ``sample_shape + batch_shape + (D,)``."""
        row = copy.copy(self)
        shape = self._extended_shape(sample_shape)[:-1]
        row.natural = self.natural.expand(*shape, self.natural.shape[-1])
        return row._in_order(row._side_by_side(lambda block, natural: block.draw(natural)))

    def by_block(self) -> list[tuple[Block, Tensor]]:
        """Return each block with its natural parameters (..., width), in float64."""
        return list(zip(self.blocks, self.natural.double().split(self._widths, -1), strict=True))

    def _side_by_side(self, function: Any) -> Tensor:
        parts = zip(self.blocks, self.natural.split(self._widths, -1), strict=True)
        return torch.cat([function(block, natural) for block, natural in parts], -1)

    def _in_order(self, values: Tensor) -> Tensor:
        """Put values of the columns, block by block, into the order of a row."""
        return values.index_select(-1, torch.cat([block.places for block in self.blocks]).argsort())


def _cells(block: Block, x: Tensor) -> tuple[Tensor, Tensor]:
    cells = x.index_select(-1, block.places)
    kept = ~cells.isnan()
    return torch.where(kept, cells, 0.0), kept
