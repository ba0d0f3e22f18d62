"""Sums over an event dimension as one matrix product, where the batch dimensions of two tensors do not meet."""

import torch
from torch import Tensor


def _aligned(first: torch.Size, second: torch.Size) -> tuple[torch.Size, torch.Size]:
    rank = max(len(first), len(second))
    return torch.Size((1,) * (rank - len(first)) + first), torch.Size((1,) * (rank - len(second)) + second)


def outer_product_applies(first: torch.Size, second: torch.Size) -> bool:
    """Whether two batch shapes broadcast to their outer product: both are larger than 1, and never in the same dimension.

    Example:
        >>> outer_product_applies(torch.Size((9, 1)), torch.Size((5,)))
        True
        >>> outer_product_applies(torch.Size((9, 5)), torch.Size((5,)))
        False
    """
    first, second = _aligned(first, second)
    disjoint = all(a == 1 or b == 1 for a, b in zip(first, second, strict=True))
    return disjoint and first.numel() > 1 and second.numel() > 1


def outer_sum(first: Tensor, second: Tensor) -> Tensor:
    """sum_m first[..., m] second[..., m], broadcast, as one matrix product that never holds the broadcast (..., M).

    Args:
        first: shape (..., M), for example codes (S, 1, M).
        second: shape (..., M), for example data (B, M), whose batch shape meets the other's in no dimension.

    Returns:
        The broadcast batch shape, in the example (S, B).
    """
    a_shape, b_shape = _aligned(first.shape[:-1], second.shape[:-1])
    table = first.reshape(-1, first.shape[-1]) @ second.reshape(-1, second.shape[-1]).T
    # (a_1 .. a_R, b_1 .. b_R) -> (a_1, b_1, .. a_R, b_R): one of each pair is 1, so the pairs merge.
    rank = len(a_shape)
    order = [dim for r in range(rank) for dim in (r, rank + r)]
    return (
        table.reshape(a_shape + b_shape)
        .permute(order)
        .reshape([a * b for a, b in zip(a_shape, b_shape, strict=True)])
    )
