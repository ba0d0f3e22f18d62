"""Where the cells of plates lie: plates of different sizes at the same dimension lie side by side.

With plates of 3 and of 5 data at dimension -1, that dimension has 8 cells. Values of a site in the first plate belong
to cells 0 to 2, and values of a site in the second one to cells 3 to 7. Outside of its cells, a latent has only its
first category, and a statement counts 0. A site outside of both plates is shared by all 8 cells. Plates of the same
size have the same cells.
"""

import itertools
from collections.abc import Collection, Iterable, Sequence
from typing import NamedTuple, Self

import torch
from torch import Size, Tensor
from torch.nn.functional import pad


class Cells(NamedTuple):
    """The cells of all sites.

    Attributes:
        shape: the number of cells along each batch dimension.
        ranges: the range of cells that plates of each size have, for each batch dimension.
    """

    shape: Size
    ranges: tuple[dict[int, slice], ...]

    @classmethod
    def of(cls, shapes: Iterable[Sequence[int]]) -> Self:
        """Return the cells of sites with these batch shapes."""
        columns = list(itertools.zip_longest(*(tuple(shape)[::-1] for shape in shapes), fillvalue=1))[::-1]
        ranges = []
        for column in columns:
            sizes = list(dict.fromkeys(size for size in column if size != 1))
            ends = list(itertools.accumulate(sizes))
            ranges.append({size: slice(end - size, end) for size, end in zip(sizes, ends, strict=True)})
        return cls(Size(sum(own) if own else 1 for own in ranges), tuple(ranges))

    @property
    def are_side_by_side(self) -> bool:
        """Whether plates of different sizes have the same dimension."""
        return any(len(own) > 1 for own in self.ranges)

    def sizes_along(self, dim: int) -> Collection[int]:
        """Return the sizes that sites of which no data are shared have along a batch dimension."""
        return self.ranges[dim] if -dim <= len(self.shape) and self.ranges[dim] else (1,)

    def sizes(self, batch_shape: Sequence[int]) -> Size:
        """Return a site's size along each batch dimension, 1 if it has fewer of them, without any further left."""
        rank = len(self.shape)
        return Size(((1,) * rank + tuple(batch_shape))[len(batch_shape) :])

    def own_shape(self, batch_shape: Sequence[int]) -> Size:
        """Return the number of cells along each batch dimension, with 1 where all cells share the site."""
        sizes = self.sizes(batch_shape)
        return Size(total if size != 1 else 1 for size, total in zip(sizes, self.shape, strict=True))

    def where(self, sizes: Sequence[int]) -> tuple[slice, ...]:
        """Return the cells of a site that has these sizes along the batch dimensions."""
        return tuple(slice(1) if size == 1 else own[size] for size, own in zip(sizes, self.ranges, strict=True))

    def is_placed(self, sizes: Sequence[int]) -> bool:
        """Return whether a site of these sizes has only some of the cells, since others belong to other plates."""
        return Size(sizes) != self.own_shape(sizes)

    def taken(self, values: Tensor, sizes: Sequence[int], event_dim: int = 0) -> Tensor:
        """Take the values (.., *shape, *event) of a site's cells: (.., *sizes, *event)."""
        return values[(..., *self.where(sizes), *(slice(None),) * event_dim)]

    def placed(self, values: Tensor, outside: Tensor | float, event_dim: int = 0) -> Tensor:
        """Put the values (.., *sizes, *event) of a site in its cells, and the value `outside` in all others.

        Where all cells share the site, its size stays 1.
        """
        last = values.dim() - event_dim
        sizes = values.shape[last - len(self.shape) : last]
        if not self.is_placed(sizes):
            return values
        widths = [0] * (2 * event_dim)
        for own, total in zip(reversed(self.where(sizes)), reversed(self.own_shape(sizes)), strict=True):
            start = own.start or 0
            widths += [start, total - own.stop]
        ones = torch.ones([*sizes, *(1,) * event_dim], dtype=torch.bool, device=values.device)
        return torch.where(pad(ones, widths), pad(values, widths), outside)


def summed_over(values: Tensor, batch_shape: Size, shape: Size) -> Tensor:
    """Sum values (s, B or 1) over the data that share a cell, where `shape` has 1 in a batch dimension: (s, cells)."""
    if shape == batch_shape:
        return values
    rows = values.expand(-1, batch_shape.numel()).reshape(-1, *batch_shape)
    return rows.sum_to_size(len(rows), *shape).reshape(len(rows), -1)


def first_of(values: Tensor, batch_shape: Size, shape: Size) -> Tensor:
    """Return the value of each cell, which all its data have in common: (s, B or 1) -> (s, cells)."""
    if shape == batch_shape:
        return values
    rows = values.expand(-1, batch_shape.numel()).reshape(-1, *batch_shape)
    return rows[(slice(None), *(slice(size) for size in shape))].reshape(len(values), -1)
