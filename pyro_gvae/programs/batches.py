"""A batch as the arguments of a program: `model(x)`, `model(x, y)` or `model(x=x, y=y)`."""

import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn

#: Data (B, ...), a tuple or list of all arguments, as `DataLoader` yields it, or a dictionary of keyword arguments.
Batch: TypeAlias = Tensor | tuple[Any, ...] | list[Any] | Mapping[str, Any]
#: The place of an argument in a tuple, or its name in a dictionary.
Key: TypeAlias = int | str
Keys: TypeAlias = frozenset[Key]


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


def check_taken(program: Callable[..., Any], given: Arguments) -> None:
    """Refuse arguments that a program does not take.

    Raises:
        ValueError: if there are too many or too few, or others.
    """
    called = program.forward if isinstance(program, nn.Module) else program
    try:
        # A decorator may supply arguments, and keeps the signature of what it wraps.
        inspect.signature(called, follow_wrapped=False).bind(*given.args, **given.kwargs)
    except TypeError as error:
        name = getattr(program, "__name__", type(program).__name__)
        tried = "({..},) for a program that takes one dictionary" if given.kwargs else "a tuple of all arguments"
        raise ValueError(
            f"Expected the arguments of '{name}', but found {len(given.args)} by place and {sorted(given.kwargs)} by "
            f"name: {error}. Try {tried}."
        ) from error
    except ValueError:  # a callable without a signature
        return


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


def as_long_as_data(batch: Batch) -> list[Key]:
    """Return the places or names of the arguments that are tensors as long as the first, which are the data."""
    total = num_data(batch)
    return [key for key, value in _items(batch) if isinstance(value, Tensor) and value.dim() and len(value) == total]


def mapped(function: Callable[[Any], Any], batch: Batch) -> Batch:
    """Return the batch with a function applied to each argument."""
    return _changed(lambda _, value: function(value), batch)


def with_rows(function: Callable[[Tensor], Tensor], batch: Batch, keys: Keys | None = None) -> Batch:
    """Return the batch with a function applied to tensors that have a row for each datum.

    Args:
        function: the function.
        batch: the batch.
        keys: the places or names of these arguments; those of :func:`as_long_as_data` if None.

    Example:
        >>> import torch
        >>> with_rows(lambda rows: rows[:2], (torch.tensor([1, 2, 3]), 0.5))
        (tensor([1, 2]), 0.5)
    """
    chosen = frozenset(as_long_as_data(batch)) if keys is None else keys
    return _changed(lambda key, value: function(value) if key in chosen else value, batch)


def _items(batch: Batch) -> Iterator[tuple[Key, Any]]:
    if isinstance(batch, Mapping):
        yield from batch.items()
    else:
        yield from enumerate(batch if isinstance(batch, tuple | list) else (batch,))


def _changed(function: Callable[[Key, Any], Any], batch: Batch) -> Batch:
    found = {key: function(key, value) for key, value in _items(batch)}
    if isinstance(batch, Mapping):
        return {str(name): value for name, value in found.items()}
    return tuple(found.values()) if isinstance(batch, tuple | list) else found[0]


def check_has_data(batch: Batch) -> None:
    """Refuse tensors without rows.

    Raises:
        ValueError: if there are no data.
    """
    if num_data(batch) == 0:
        raise ValueError("Expected one datum or more, but found none. Try x[:1] to see the shape of a result.")
