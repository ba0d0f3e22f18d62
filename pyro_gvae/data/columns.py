"""Data as arguments of programs: a tensor, a tuple, or a dictionary of keyword arguments, with B rows each."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeAlias, TypeVar, overload

import numpy as np
import torch
from torch import Tensor

from .dataset import as_tensor, check_finite, digest
from .rows import Rows

M = TypeVar("M", float, Tensor)

#: `model(x)`, `model(x, y)` or `model(x=x, y=y)`.
Data: TypeAlias = Tensor | tuple[Tensor, ...] | dict[str, Tensor]


def as_data(data: Any) -> Data:
    """Convert data to arguments of a program.

    Args:
        data: a tuple or a dictionary of tensors or arrays of the same length, whose integers, such as labels, stay
            integers; or data x alone, in any form that :func:`~pyro_gvae.data.dataset.as_tensor` takes. Shapes, such as
            those of sequences (M, T, D), do not change.

    Raises:
        ValueError: if there are no data, they have another type, or their lengths differ.

    Example:
        >>> x, y = as_data((torch.ones(3, 2), np.array([0, 1, 1])))
        >>> x.shape, y.dtype
        (torch.Size([3, 2]), torch.int64)
    """
    found: Data
    if isinstance(data, Mapping):
        found = {name: _column(value) for name, value in data.items()}
    elif isinstance(data, tuple) and data and all(isinstance(value, Tensor | np.ndarray) for value in data):
        found = tuple(map(_column, data))
    else:
        return as_tensor(data)
    lengths = [len(column) for column in columns(found)]
    if len(set(lengths)) != 1:
        raise ValueError(f"Expected as many data in each of {len(lengths)} tensors, but found {lengths}.")
    return found


def _column(value: Any) -> Tensor:
    is_integer = isinstance(value, np.ndarray) and not np.issubdtype(value.dtype, np.floating)
    return as_tensor(torch.as_tensor(value) if is_integer else value)


def columns(data: Data) -> list[Tensor]:
    """Return the tensors of the data."""
    if isinstance(data, Tensor):
        return [data]
    return list(data.values()) if isinstance(data, dict) else list(data)


def num_data(data: Data | Rows) -> int:
    """Return the number of rows."""
    return len(data) if isinstance(data, Rows) else len(columns(data)[0])


def device_of(data: Data | Rows) -> torch.device:
    """Return the device of data."""
    return data.device if isinstance(data, Rows) else columns(data)[0].device


def mapped(function: Callable[[Tensor], Tensor], data: Data) -> Data:
    """Return the data with a function applied to each of their tensors.

    Example:
        >>> mapped(lambda column: column[:2], {"x": torch.arange(5), "y": torch.ones(5)})
        {'x': tensor([0, 1]), 'y': tensor([1., 1.])}
    """
    if isinstance(data, Tensor):
        return function(data)
    if isinstance(data, dict):
        return {name: function(column) for name, column in data.items()}
    return tuple(map(function, data))


@overload
def first(data: Tensor, count: int) -> Tensor: ...
@overload
def first(data: Data | Rows, count: int) -> Data: ...
def first(data: Data | Rows, count: int) -> Data:
    """Return the first rows."""
    if isinstance(data, Rows):
        return next(data.chunks(count))
    return mapped(lambda column: column[:count], data)


def chunks(data: Data | Rows, size: int) -> Iterator[Data]:
    """Yield the data in parts of at most `size` rows."""
    if isinstance(data, Rows):
        yield from data.chunks(size)
        return
    for start in range(0, num_data(data), size):
        yield mapped(lambda column, start=start: column[start : start + size], data)  # type: ignore[misc]


def mean_of(mean: Callable[[Any], M], data: Data | Rows, size: int) -> M:
    """Return a mean over all data; for rows in slices, combine the means of the slices.

    Args:
        mean: a function that computes the mean over data in memory.
        data: the data.
        size: the number of rows in a slice.

    Example:
        >>> mean_of(lambda x: x.mean(0), torch.tensor([[1.0, 2.0], [3.0, 6.0]]), size=1)
        tensor([2., 4.])
    """
    if not isinstance(data, Rows):
        return mean(data)
    total: Any = sum(num_data(rows) / len(data) * mean(rows) for rows in data.chunks(size))
    found: M = total
    return found


def check_all_finite(data: Data) -> None:
    """Refuse data that are not all finite.

    Raises:
        ValueError: if a value is NaN or infinite.
    """
    for column in columns(data):
        check_finite(column)


def digest_of(data: Data | Rows) -> str:
    """Hash data, so that a resumed run can check that its data are the same."""
    if isinstance(data, Rows):
        return data.digest()
    names = [f"{name}=" for name in data] if isinstance(data, dict) else [""] * len(columns(data))
    return ",".join(name + digest(column) for name, column in zip(names, columns(data), strict=True))
