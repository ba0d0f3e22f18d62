"""The ranges of data that a program has validated, and which data lie outside of them.

A recorded step does not validate its data. Observations have a range, such as [0, 1] or the whole numbers from 0 on,
and outside of it most densities are still finite numbers. So the program itself validates a batch if its values are
smaller or larger than all before, or are the first that are not whole numbers.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor


class Range(NamedTuple):
    """The values of a tensor: the smallest and the largest one, and whether all are whole numbers."""

    low: float
    high: float
    is_whole: bool

    def holds(self, x: Tensor) -> bool:
        """Return whether all values of a tensor are in this range, or some are not finite, which the loss shows."""
        low, high = _ends(x)
        if not math.isfinite(low) or not math.isfinite(high):
            return True
        return self.low <= low and high <= self.high and (not self.is_whole or _is_whole(x))

    def joined(self, x: Tensor) -> Self:
        """Return the range that also includes a tensor; the same range if values are missing or not finite."""
        low, high = _ends(x)
        if not math.isfinite(low) or not math.isfinite(high):
            return self
        return self._replace(low=min(self.low, low), high=max(self.high, high), is_whole=self.is_whole and _is_whole(x))


#: The range of each argument that holds data, by position or name.
Ranges = Mapping[int | str, Range]


def widened(known: Ranges, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Ranges:
    """Return the ranges of known data and of these arguments; the known ranges themselves if they hold these data.

    Example:
        >>> known = widened({}, [torch.tensor([0.0, 1.0])], {})
        >>> widened(known, [torch.tensor([1.0])], {}) is known
        True
        >>> widened(known, [torch.tensor([0.5])], {})
        {0: Range(low=0.0, high=1.0, is_whole=False)}
    """
    named: Iterable[tuple[int | str, Any]] = (*enumerate(args), *kwargs.items())
    data = {place: x for place, x in named if _has_range(x)}
    wider = {place: x for place, x in data.items() if place not in known or not known[place].holds(x)}
    if not wider:
        return known
    nothing = Range(math.inf, -math.inf, True)
    return {**known, **{place: known.get(place, nothing).joined(x) for place, x in wider.items()}}


def _has_range(x: Any) -> bool:
    """Return whether an argument is data: a dense tensor of numbers, not a scalar such as a scheduled weight."""
    is_dense = isinstance(x, Tensor) and x.layout is torch.strided and x.dim() > 0 and x.numel() > 0
    return is_dense and x.dtype is not torch.bool and not x.is_complex()


def _ends(x: Tensor) -> tuple[float, float]:
    low, high = torch.stack(x.detach().aminmax()).tolist()  # waits for a GPU only once
    return low, high


def _is_whole(x: Tensor) -> bool:
    # A sum of magnitudes is 0 only if all are, and takes a third of the time of a comparison of tensors.
    return not x.is_floating_point() or not x.detach().frac().abs_().sum().item()
