"""A batch as the arguments of a program: `model(x)`, `model(x, y)` or `model(x=x, y=y)`."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor

#: Data (B, ...), a tuple or list of all arguments, as `DataLoader` yields it, or a dictionary of keyword arguments.
Batch: TypeAlias = Tensor | tuple[Any, ...] | list[Any] | Mapping[str, Any]


class Arguments(NamedTuple):
    """Arguments of a program."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]


def arguments(*batch: Any, **others: Any) -> Arguments:
    """Return a batch as the arguments of a program.

    Args:
        *batch: the arguments; a single tuple or list, as `DataLoader` yields them, is unpacked, and a single dictionary
            is taken as keyword arguments.
        **others: keyword arguments.

    Example:
        >>> arguments({"x": 1}), arguments((1, 2))
        (Arguments(args=(), kwargs={'x': 1}), Arguments(args=(1, 2), kwargs={}))
    """
    if len(batch) != 1:
        return Arguments(batch, others)
    (single,) = batch
    if isinstance(single, Mapping):
        return Arguments((), {**single, **others})
    return Arguments(tuple(single) if isinstance(single, tuple | list) else (single,), others)


def tensors(batch: Batch) -> list[Tensor]:
    """List the arguments that are tensors."""
    given = arguments(batch)
    return [value for value in (*given.args, *given.kwargs.values()) if isinstance(value, Tensor)]


def num_data(batch: Batch) -> int:
    """Return the number of data B, which is the length of the first tensor; numbers alone are one datum.

    Example:
        >>> import torch
        >>> num_data({"temperature": torch.tensor(0.5), "x": torch.tensor([1, 2])})
        2
    """
    return next((len(value) for value in tensors(batch) if value.dim()), 1)


def device_of(batch: Batch) -> torch.device:
    """Return the device of the first tensor; the CPU if there is none."""
    return next((value.device for value in tensors(batch)), torch.device("cpu"))


def mapped(function: Callable[[Any], Any], batch: Batch) -> Batch:
    """Return the batch with a function applied to each argument."""
    if isinstance(batch, Mapping):
        return {name: function(value) for name, value in batch.items()}
    return tuple(map(function, batch)) if isinstance(batch, tuple | list) else function(batch)


def with_rows(function: Callable[[Tensor], Tensor], batch: Batch) -> Batch:
    """Return the batch with a function applied to each tensor that is as long as the first."""
    length = num_data(batch)

    def changed(value: Any) -> Any:
        has_rows = isinstance(value, Tensor) and value.dim() > 0 and len(value) == length
        return function(value) if has_rows else value

    return mapped(changed, batch)


def split(batch: Batch, size: int) -> Iterator[Batch]:
    """Yield a batch in parts of at most `size` data.

    Tensors as long as the first are cut along their first dimension. Each part gets all other arguments.

    Raises:
        ValueError: if there are no data.

    Example:
        >>> import torch
        >>> list(split((torch.tensor([1, 2, 3]), 0.5), 2))
        [(tensor([1, 2]), 0.5), (tensor([3]), 0.5)]
    """
    check_has_data(batch)
    for start in range(0, num_data(batch), size):
        yield with_rows(lambda value, start=start: value[start : start + size], batch)  # type: ignore[misc]


def check_has_data(batch: Batch) -> None:
    """Refuse tensors without rows.

    Raises:
        ValueError: if there are no data.
    """
    if num_data(batch) == 0:
        raise ValueError("Expected one datum or more, but found none. Try x[:1] to see the shape of a result.")
