"""Rows of a Parquet file in blocks of row groups, shuffled within a block while the next one is read."""

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Literal, NamedTuple, Self, final

import numpy as np
import torch
from torch import Tensor
from typing_extensions import override

from ..models.table import Column
from .cells import check_labelled
from .dataset import generator_for
from .parquet import BYTES_OF_A_CELL, ParquetTable
from .rows import Part, Rows, Slice
from .shares import Shares
from .tables import encoded


class Block(NamedTuple):
    """A block of row groups, whose rows are shuffled: its number, in an epoch of a seed."""

    seed: int
    epoch: int
    number: int


@final
class ParquetRows(Rows):
    """The rows of one part of a Parquet file, as numbers.

    The rows of an epoch come in blocks. A block has as many row groups as fit into half of the memory, at least one,
    and its rows are shuffled uniformly. Each epoch has another order of groups. The order differs from a uniform one
    over all rows only in that rows of different blocks share a batch only where one block ends and the next begins.
    While one block is used for training, a thread reads the next: two are in memory.

    Args:
        table: the file.
        columns: the columns to encode as numbers.
        label: the column of labels, if there is one.
        shares: the assignment of rows to parts.
        part: "train", "validation" or "test".
        memory: bytes that the blocks may take.
        device: the device of batches.
        labels: whether slices have labels: none, of some rows, or of every row.
    """

    def __init__(
        self,
        table: ParquetTable,
        columns: Sequence[Column],
        label: Column | None,
        shares: Shares,
        part: str,
        *,
        memory: float,
        device: str | torch.device = "cpu",
        labels: Literal["none", "some", "every"] = "none",
    ) -> None:
        self._table, self._columns, self._label = table, tuple(columns), label
        self._shares, self._part, self._memory = shares, part, memory
        self._device, self._labels = torch.device(device), labels
        self._width = len(self._columns) + self.is_labelled  # in memory, labels are the last column
        self._sizes = np.array(
            [
                shares.of_part(part, int(start), int(size)).sum()
                for start, size in zip(table.starts, table.sizes, strict=True)
            ],
            dtype=np.int64,
        )
        self._ahead: tuple[Block, Future[Tensor]] | None = None
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="rows")

    @property
    @override
    def shape(self) -> torch.Size:
        return torch.Size([int(self._sizes.sum()), len(self._columns)])

    @property
    @override
    def device(self) -> torch.device:
        return self._device

    @override
    def to(self, device: str | torch.device) -> Self:
        of_file = self._table, self._columns, self._label, self._shares, self._part
        return type(self)(*of_file, memory=self._memory, device=device, labels=self._labels)

    @override
    def labelled(self, *, every: bool) -> Self:
        if self._label is None:
            raise ValueError(
                f"Expected rows with labels, but found none in '{self._table.path.name}'. Try labels=COLUMN."
            )
        of_file = self._table, self._columns, self._label, self._shares, self._part
        labels: Literal["some", "every"] = "every" if every else "some"
        return type(self)(*of_file, memory=self._memory, device=self._device, labels=labels)

    @property
    @override
    def is_labelled(self) -> bool:
        return self._labels != "none"

    @override
    def digest(self) -> str:
        columns = [column._asdict() for column in self._columns]
        label = self._label._asdict() if self._label is not None and self.is_labelled else None
        said = [self._table.digest, columns, self._shares, self._part, self._memory, label]
        return hashlib.sha256(json.dumps(said).encode()).hexdigest()

    @override
    def parts(self, size: int) -> Iterator[Part]:
        held: list[Part] = []
        for part in self._read(range(len(self._sizes))):
            held.append(part)
            while sum(len(one.x) for one in held) >= size:
                whole = _joined(held)
                yield whole.mapped(lambda own: own[:size].to(self._device))
                held = [whole.mapped(lambda own: own[size:])]
        if sum(len(one.x) for one in held):
            yield _joined(held).mapped(lambda own: own.to(self._device))

    @override
    def batches(self, batch_size: int, *, seed: int, epoch: int, skip: int = 0) -> Iterator[Slice]:
        ends = np.cumsum([self._sizes[groups].sum() for groups in self._blocks(seed, epoch)])
        if skip * batch_size >= len(self):
            return
        number = int(np.searchsorted(ends, skip * batch_size, side="right"))
        start = skip * batch_size - (int(ends[number - 1]) if number else 0)
        rest = torch.empty(0, self._width)  # rows left over from earlier blocks, less than a batch
        for here in range(number, len(ends)):
            block = self._block(Block(seed, epoch, here), is_last=here + 1 == len(ends))
            if len(rest):
                start = min(batch_size - len(rest), len(block))
                rest = torch.cat([rest, block[:start]])
                if len(rest) == batch_size:
                    yield self._given(rest)
                    rest = rest[:0]
            whole = start + (len(block) - start) // batch_size * batch_size
            for at in range(start, whole, batch_size):
                yield self._given(block[at : at + batch_size])
            rest, start = torch.cat([rest, block[whole:]]), 0
            del block  # so that at most two are in memory while the next but one is read
        if len(rest):
            yield self._given(rest)

    @override
    def sample(self, count: int) -> Slice:
        return self._given(self._mixed(Block(0, 0, 0))[:count])

    def _given(self, rows: Tensor) -> Slice:
        """Return a copy of some rows of a block as a slice."""
        copied = rows.to(self._device, copy=True)
        return (copied[:, :-1].contiguous(), copied[:, -1].long()) if self.is_labelled else copied

    def _blocks(self, seed: int, epoch: int) -> list[list[int]]:
        """Return the groups of each block of an epoch."""
        most = self._memory / 2 / BYTES_OF_A_CELL / self._width
        blocks: list[list[int]] = []
        filled = 0
        order = torch.randperm(len(self._sizes), generator=generator_for("row groups", seed, epoch), device="cpu")
        for group in order.tolist():
            size = int(self._sizes[group])
            if not size:
                continue
            if not blocks or filled + size > most:
                blocks.append([])
                filled = 0
            blocks[-1].append(group)
            filled += size
        return blocks

    def _block(self, block: Block, *, is_last: bool) -> Tensor:
        """Return a block, and begin to read the next one; after the last, the first of the next epoch."""
        ready, self._ahead = self._ahead, None
        if ready is not None and ready[0] != block:
            ready[1].cancel()
            wait([ready[1]])
            ready = None
        found = self._mixed(block) if ready is None else ready[1].result()
        after = Block(block.seed, block.epoch + 1, 0) if is_last else block._replace(number=block.number + 1)
        self._ahead = after, self._reader.submit(self._mixed, after)
        return found

    def _mixed(self, block: Block) -> Tensor:
        """Read the rows of a block, each into its place in the shuffled order."""
        groups = self._blocks(block.seed, block.epoch)[block.number]
        generator = generator_for(f"block {block.number}", block.seed, block.epoch)
        places = torch.randperm(int(self._sizes[groups].sum()), generator=generator, device="cpu")
        mixed = torch.empty(len(places), self._width)
        start = 0
        for x, labels in self._read(groups):
            own = places[start : start + len(x)]
            mixed[own, : len(self._columns)] = x
            if self.is_labelled and labels is not None:
                mixed[own, -1] = labels.to(mixed.dtype)
            start += len(x)
        return mixed

    def _read(self, groups: Iterable[int]) -> Iterator[Part]:
        """Yield the rows of groups in order, a few thousand at a time."""
        columns = [*self._columns, *(() if self._label is None else (self._label,))]

        def kept(start: int, count: int) -> np.ndarray:
            return self._shares.of_part(self._part, start, count)

        for cells, rows in self._table.frames(groups, [column.name for column in columns], kept):
            x = encoded(cells, columns, rows)
            if self._label is None:
                yield Part(x, None)
            else:
                labels = torch.where(torch.from_numpy(self._shares.keeps_labels(self._part, rows)), x[:, -1], torch.nan)
                if self._labels == "every":
                    check_labelled(labels.isnan().numpy(), rows)
                yield Part(x[:, :-1], labels.nan_to_num(-1.0).long())


def _joined(parts: Sequence[Part]) -> Part:
    labels = [part.labels for part in parts if part.labels is not None]
    return Part(torch.cat([part.x for part in parts]), torch.cat(labels) if labels else None)
