"""Joint codes: how many there are, the codes themselves, their Hamming neighbours, and those that pruning leaves."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor


def num_codes(num_latents: int, num_categories: int) -> int:
    """Return S = K^N, the number of joint codes."""
    return int(num_categories**num_latents)


def joint_codes(
    num_latents: int,
    num_categories: int,
    start: int = 0,
    stop: int | None = None,
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | None = None,
) -> Tensor:
    """Return the joint codes numbered `start` to `stop` - 1 in lexicographic order (the last latent varies fastest).

    Args:
        num_latents: N.
        num_categories: K.
        start: number of the first code, 0 <= start.
        stop: number of the last code plus one, at most S = K^N; S if None.
        dtype: dtype of the codes; torch's default floating-point type if None.
        device: device of the codes.

    Returns:
        One-hot codes, shape (stop - start, N, K).

    Raises:
        ValueError: if the slice does not lie within the S codes.

    Example:
        >>> joint_codes(2, 3, 3, 5).argmax(-1).tolist()
        [[1, 0], [1, 1]]
    """
    total = num_codes(num_latents, num_categories)
    stop = total if stop is None else stop
    if not 0 <= start <= stop <= total:
        raise ValueError(f"Expected 0 <= start <= stop <= {total:,} joint codes, but found start={start}, stop={stop}.")
    return numbered_codes(torch.arange(start, stop, device=device), num_latents, num_categories, dtype=dtype)


def numbered_codes(
    number: Tensor, num_latents: int, num_categories: int, *, dtype: torch.dtype | None = None
) -> Tensor:
    """Return the joint codes with the given numbers in lexicographic order.

    Args:
        number: integers 0 to K^N - 1, shape (...).
        num_latents: N.
        num_categories: K.
        dtype: dtype of the codes; torch's default floating-point type if None.

    Returns:
        One-hot codes, shape (..., N, K).

    Example:
        >>> numbered_codes(torch.tensor([3, 8]), 2, 3).argmax(-1).tolist()
        [[1, 0], [2, 2]]
    """
    places = _places(num_latents, num_categories, number.device)
    category = number.unsqueeze(-1).div(places, rounding_mode="floor") % num_categories  # (..., N)
    codes = torch.zeros(*category.shape, num_categories, dtype=dtype, device=number.device)
    return codes.scatter_(-1, category.unsqueeze(-1), 1.0)  # (..., N, K)


def code_numbers(codes: Tensor) -> Tensor:
    """Return the numbers of one-hot codes (..., N, K) in lexicographic order, shape (...).

    Example:
        >>> code_numbers(joint_codes(2, 3, 3, 5)).tolist()
        [3, 4]
    """
    num_latents, num_categories = codes.shape[-2:]
    return (codes.argmax(-1) * _places(num_latents, num_categories, codes.device)).sum(-1)


def _places(num_latents: int, num_categories: int, device: torch.device) -> Tensor:
    """Return the place value K^(N - 1 - n) of each latent in the number of a code, shape (N,)."""
    return torch.tensor([num_categories ** (num_latents - 1 - n) for n in range(num_latents)], device=device)


def hamming_neighbours(codes: Tensor, slice_size: int) -> Iterator[Tensor]:
    """Yield, slice by slice, the codes that differ from the given ones in exactly one latent.

    Only one slice is in memory at a time: all neighbours together have P N (K - 1) B N K elements.

    Args:
        codes: one-hot, (P, B, N, K): P codes of each of B data.
        slice_size: neighbours of each datum in a slice, 1 or more; the last slice may have fewer.

    Yields:
        One-hot codes (s, B, N, K) with s <= slice_size, P N (K - 1) per datum in all. They are ordered by code,
        then by the latent that changes, then by how far its category moves: 1 to K - 1, modulo K.

    Example:
        >>> z = joint_codes(2, 3, 5, 6)[:, None]
        >>> [part.argmax(-1).tolist() for part in hamming_neighbours(z, 3)]
        [[[[2, 2]], [[0, 2]], [[1, 0]]], [[[1, 1]]]]
    """
    num_codes, _, num_latents, num_categories = codes.shape
    category = codes.argmax(-1)  # (P, B, N)
    of_each = num_latents * (num_categories - 1)
    latents, categories = (torch.arange(size, device=codes.device) for size in codes.shape[-2:])
    for start in range(0, num_codes * of_each, slice_size):
        row = torch.arange(start, min(start + slice_size, num_codes * of_each), device=codes.device)  # (s,)
        code, change = row // of_each, row % of_each
        latent, further = change // (num_categories - 1), change % (num_categories - 1) + 1
        changed = (category[code, :, latent] + further.unsqueeze(-1)) % num_categories  # (s, B)
        one_hot = (changed.unsqueeze(-1) == categories).to(codes)  # (s, B, K)
        is_changed = latents == latent.unsqueeze(-1)  # (s, N)
        yield torch.where(is_changed[:, None, :, None], one_hot.unsqueeze(-2), codes.index_select(0, code))


class Left(NamedTuple):
    """The codes that are left of a larger program.

    Attributes:
        latents: the latents that are left, (N',).
        categories: the categories that are left of each, (N', K').
        fixed: the category that each latent of the larger program has where it is removed, (N,).

    Example:
        >>> left = Left(torch.tensor([1]), torch.tensor([[0, 2]]), torch.tensor([2, 0]))
        >>> left.larger(torch.eye(2).unsqueeze(-2)).tolist()
        [[2, 0], [2, 2]]
        >>> left.among(3).int().tolist()
        [[0, 0, 1], [1, 0, 1]]
    """

    latents: Tensor
    categories: Tensor
    fixed: Tensor

    def larger(self, codes: Tensor) -> Tensor:
        """Return the digits (..., N) in the larger program that codes (..., N', K') stand for."""
        numbers = self.fixed.expand(*codes.shape[:-2], -1).clone()
        own = self.categories.expand(*codes.shape[:-2], -1, -1).gather(-1, codes.argmax(-1, keepdim=True)).squeeze(-1)
        numbers[..., self.latents] = own
        return numbers

    def of_each(self, rows: Tensor) -> Tensor:
        """Return what is left of numbers for each category of each latent, (..., N, K) -> (..., N', K')."""
        own = rows.index_select(-2, self.latents)
        return own.gather(-1, self.categories.expand(*own.shape[:-2], -1, -1))

    def among(self, num_categories: int) -> Tensor:
        """Tell which categories a digit of the larger program has in the codes that are left, (N, K)."""
        is_left = torch.nn.functional.one_hot(self.fixed, num_categories).bool()
        is_left[self.latents] = False
        return is_left.index_put((self.latents.unsqueeze(-1), self.categories), is_left.new_ones(()))
