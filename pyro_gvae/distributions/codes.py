"""Joint codes: their number, and the codes themselves."""

import torch
from torch import Tensor


def num_codes(num_latents: int, num_categories: int) -> int:
    """S = K^N, the number of joint codes."""
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
    """Joint codes number `start` to `stop` - 1 of the K^N, in lexicographic order (the last latent varies fastest).

    Args:
        num_latents: N.
        num_categories: K.
        start: the first code, 0 <= start.
        stop: one past the last code, at most S = K^N, which is the default.
        dtype: of the result; torch's default floating type if not given.
        device: of the result.

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
    """Joint codes of the given numbers in lexicographic order: shape (...) -> one-hot (..., N, K).

    Example:
        >>> numbered_codes(torch.tensor([3, 8]), 2, 3).argmax(-1).tolist()
        [[1, 0], [2, 2]]
    """
    place = [num_categories ** (num_latents - 1 - n) for n in range(num_latents)]
    places = torch.tensor(place, device=number.device)  # (N,)
    category = number.unsqueeze(-1).div(places, rounding_mode="floor") % num_categories  # (..., N)
    codes = torch.zeros(*category.shape, num_categories, dtype=dtype, device=number.device)
    return codes.scatter_(-1, category.unsqueeze(-1), 1.0)  # (..., N, K)
