"""Shuffled minibatches as a function of seed and epoch."""

from collections.abc import Iterator

import torch
from torch import Tensor

from .dataset import Dataset, bernoulli_draw, generator_for


def epoch_batches(
    data: Dataset | Tensor, batch_size: int, *, seed: int, epoch: int, drop_last: bool = False
) -> Iterator[Tensor]:
    """The shuffled minibatches of one epoch: the same for the same (seed, epoch), whatever ran before.

    A resumed run needs no epoch replayed, and inside an epoch ``itertools.islice(batches, k, None)`` goes on
    after k batches. Order and draws come from a CPU generator of their own: they are the same on every device
    and in every process.

    Args:
        data: a data set, whose ``train`` is cut and, if it is "dynamic", drawn; or a tensor (M, D) as it is.
        batch_size: B, from 1 to M.
        seed: of the order, and of the draws of dynamic binarization.
        epoch: 0, 1, 2, ...; each has its own order.
        drop_last: leave out the last batch where it has fewer than B images.

    Returns:
        An iterator of batches (B, D) on the device of the data; the last one may be smaller.

    Raises:
        ValueError: where the batch size is not in 1 .. M; at the call, not at the first batch.

    Example:
        >>> x = torch.arange(5.0).unsqueeze(1)
        >>> [batch.flatten().tolist() for batch in epoch_batches(x, 2, seed=0, epoch=0)]
        [[3.0, 4.0], [1.0, 2.0], [0.0]]
    """
    x, dynamic = (data.train, data.binarize == "dynamic") if isinstance(data, Dataset) else (data, False)
    check_batch_size(batch_size, len(x))
    generator = generator_for("batches", seed, epoch)
    order = torch.randperm(len(x), generator=generator, device="cpu").to(x.device)  # (M,)
    if drop_last:
        order = order[: len(x) // batch_size * batch_size]
    batches = (x.index_select(0, rows) for rows in order.split(batch_size))  # each (B, D)
    return (bernoulli_draw(batch, generator) for batch in batches) if dynamic else batches


def check_batch_size(batch_size: int, num_data: int) -> None:
    """Refuses batches that there are not enough data for.

    Raises:
        ValueError: where the batch size is not in 1 .. M.
    """
    if not 1 <= batch_size <= num_data:
        raise ValueError(f"Expected a batch size from 1 to the {num_data} images, but found {batch_size}.")
