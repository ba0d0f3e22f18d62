"""Shuffled minibatches that depend only on seed and epoch."""

from collections.abc import Iterator
from itertools import islice
from typing import overload

import torch
from torch import Tensor

from .columns import Data, columns, mapped, num_data
from .dataset import Dataset, bernoulli_draw, generator_for
from .rows import Rows
from .sliced import AnyDataset, SlicedDataset


@overload
def epoch_batches(
    data: AnyDataset | Tensor,
    batch_size: int,
    *,
    seed: int,
    epoch: int,
    drop_last: bool = False,
    skip: int = 0,
    labels: None = None,
) -> Iterator[Tensor]: ...
@overload
def epoch_batches(
    data: AnyDataset | Data | Rows,
    batch_size: int,
    *,
    seed: int,
    epoch: int,
    drop_last: bool = False,
    skip: int = 0,
    labels: Tensor | None = None,
) -> Iterator[Data]: ...
def epoch_batches(
    data: AnyDataset | Data | Rows,
    batch_size: int,
    *,
    seed: int,
    epoch: int,
    drop_last: bool = False,
    skip: int = 0,
    labels: Tensor | None = None,
) -> Iterator[Data]:
    """Iterate over the shuffled minibatches of one epoch, which depend only on seed and epoch.

    So a resumed run does not replay earlier epochs, and `skip=k` continues an epoch after k batches. A separate CPU
    generator makes the order and the draws: they are the same on every device and in every process.

    Args:
        data: a data set, whose ``train`` images are used, sampled anew if its binarization is "dynamic"; or a tensor
            (M, D); or a tuple or a dictionary of tensors of M rows, with batches of the same form; or rows that are
            read in slices, whose order is only partly random: see :class:`~pyro_gvae.data.blocks.ParquetRows`.
        batch_size: B, from 1 to M.
        seed: seed of the order, and of the draws of dynamic binarization.
        epoch: 0, 1, 2, ...; each has its own order.
        drop_last: leave out the last batch if it has fewer than B images.
        skip: how many batches to leave out at the beginning.
        labels: labels (M,) of a data set; batches are then `(x, y)`.

    Returns:
        An iterator over batches (B, D) on the device of the data; the last one may be smaller.

    Raises:
        ValueError: if the batch size is not in 1 .. M; raised by the call, not by the first batch.

    Example:
        >>> x = torch.arange(5.0).unsqueeze(1)
        >>> [batch.flatten().tolist() for batch in epoch_batches(x, 2, seed=0, epoch=0)]
        [[3.0, 4.0], [1.0, 2.0], [0.0]]
    """
    data = data.train if isinstance(data, SlicedDataset) else data
    if isinstance(data, Rows):
        check_batch_size(batch_size, len(data))
        most = len(data) // batch_size - skip if drop_last else None
        return islice(data.batches(batch_size, seed=seed, epoch=epoch, skip=skip), most)
    whole, dynamic = (data.train, data.binarize == "dynamic") if isinstance(data, Dataset) else (data, False)
    x = columns(whole)[0]
    check_batch_size(batch_size, len(x))
    generator = generator_for("batches", seed, epoch)
    order = torch.randperm(len(x), generator=generator, device="cpu").to(x.device)  # (M,)
    if drop_last:
        order = order[: len(x) // batch_size * batch_size]

    def batch(rows: Tensor) -> Data:
        own = mapped(lambda column: column.index_select(0, rows), whole)
        own = mapped(lambda x: bernoulli_draw(x, generator), own) if dynamic else own  # in batch order
        return own if labels is None else (*columns(own), labels[rows])

    return islice(map(batch, order.split(batch_size)), skip, None)  # each (B, D)


@overload
def sample_of(data: Tensor, count: int) -> Tensor: ...
@overload
def sample_of(data: Data | Rows, count: int) -> Data: ...
def sample_of(data: Data | Rows, count: int) -> Data:
    """Return up to `count` random rows, the same in every call; for rows in slices, from the first block.

    Example:
        >>> sample_of(torch.arange(5.0).unsqueeze(1), 3).flatten().tolist()
        [3.0, 4.0, 1.0]
    """
    if isinstance(data, Rows):
        return data.sample(count)
    return next(epoch_batches(data, min(count, num_data(data)), seed=0, epoch=0))


def check_batch_size(batch_size: int, num_data: int) -> None:
    """Refuse a batch size for which there are too few data.

    Raises:
        ValueError: if the batch size is not in 1 .. M.
    """
    if not 1 <= batch_size <= num_data:
        raise ValueError(
            f"Expected a batch size from 1 to the {num_data} training data, but found {batch_size}. Try batch_size="
            f"{num_data}."
        )
