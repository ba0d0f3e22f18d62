"""Rows that are read in slices: a replacement for a tensor of data that does not fit into memory."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import NamedTuple, Self, TypeAlias

import torch
from torch import Tensor

#: Some rows: data x (B, D), or data with labels (B,).
Slice: TypeAlias = Tensor | tuple[Tensor, Tensor]


class Part(NamedTuple):
    """The training or test data of a data set, or some of their rows."""

    x: Tensor  # (M, D)
    labels: Tensor | None  # (M,)

    def mapped(self, function: Callable[[Tensor], Tensor]) -> "Part":
        """Return data and labels with a function applied to both."""
        return Part(function(self.x), None if self.labels is None else function(self.labels))


class Rows(ABC):
    """M rows of D numbers, read when they are needed.

    Training needs the same from data in memory and from rows: their number, the first rows, all rows in chunks, the
    shuffled batches of an epoch, and a hash. The functions of `columns` and
    :func:`~pyro_gvae.data.batches.epoch_batches` take both. Slices of the rows that :meth:`labelled` returns are data
    with labels, which are -1 if they are missing.
    """

    @property
    @abstractmethod
    def shape(self) -> torch.Size:
        """The size (M, D)."""

    @property
    @abstractmethod
    def device(self) -> torch.device:
        """The device of the slices."""

    @abstractmethod
    def labelled(self, *, every: bool) -> Self:
        """Return the same rows with their labels.

        Args:
            every: refuse a row without a label when it is read.

        Raises:
            ValueError: if the rows have no labels.
        """

    @property
    @abstractmethod
    def is_labelled(self) -> bool:
        """Whether slices are data with labels."""

    @abstractmethod
    def parts(self, size: int) -> Iterator[Part]:
        """Yield all rows in order, `size` at a time, with their labels."""

    @abstractmethod
    def batches(self, batch_size: int, *, seed: int, epoch: int, skip: int = 0) -> Iterator[Slice]:
        """Iterate over the shuffled batches of an epoch, which depend on seed and epoch alone.

        Args:
            batch_size: B, from 1 to M.
            seed: seed of the order.
            epoch: 0, 1, 2, ...
            skip: how many batches to leave out at the beginning; rows that only they need are not read.
        """

    @abstractmethod
    def sample(self, count: int) -> Slice:
        """Return up to `count` rows, shuffled, the same ones in every call."""

    @abstractmethod
    def digest(self) -> str:
        """Hash the rows, their order and how they are shuffled."""

    @abstractmethod
    def to(self, device: str | torch.device) -> "Rows":
        """Return the same rows with slices on another device."""

    def __len__(self) -> int:
        return self.shape[0]

    def chunks(self, size: int) -> Iterator[Slice]:
        """Yield all rows in order, `size` at a time."""
        for x, labels in self.parts(size):
            yield (x, labels) if self.is_labelled and labels is not None else x

    def first(self, count: int) -> Part:
        """Return the first rows, with their labels."""
        return next(self.parts(count))
