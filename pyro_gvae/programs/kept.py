"""A small cache of what trial runs of a program have found, for arguments of equal shapes."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Generic, TypeVar, final

from torch import Tensor

T = TypeVar("T")
R = TypeVar("R")


class OutdatedError(RuntimeError):
    """A program no longer has a property that was found before."""


@final
class Kept(Generic[T]):
    """A cache of results for the last few programs and shapes, such as those of full batches and the last batch.

    The results follow from a program and its arguments, so they are not state of the loss that holds the cache. Guards
    therefore skip this class (:class:`~pyro_gvae.jit.guards.Guard`): a recording for one shape remains valid when a
    result for another shape is added. Guards read all other attributes.
    """

    MOST = 8

    def __init__(self) -> None:
        self._found: list[tuple[Any, T]] = []

    def __reduce__(self) -> tuple[type, tuple[()]]:
        """Copy and pickle it empty: the programs that it knows may be functions that no pickle takes."""
        return Kept, ()

    def find(self, owner: Any, args: Sequence[Any], kwargs: Mapping[str, Any], make: Callable[[], T]) -> T:
        """Return the result of `make` for this owner and arguments like these, from the cache if it is there.

        Args:
            owner: the program and everything else that the result depends on, compared by equality.
            args: arguments of the program. Tensors match if their shape, dtype and device do; numbers, strings and None
                if they are equal. With any other argument, nothing is cached.
            kwargs: its keyword arguments.
            make: computes the result.
        """
        values = [*args, *kwargs.values()]
        if not all(isinstance(value, Tensor | int | float | str | None) for value in values):
            return make()
        key = (owner, list(kwargs), list(map(_kind, values)))
        for known, found in self._found:
            if known == key:
                return found
        self._found = [*self._found, (key, make())][-self.MOST :]
        return self._found[-1][1]

    def use(
        self,
        owner: Any,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        make: Callable[[], T],
        function: Callable[[T], R],
    ) -> R:
        """Apply a function to :meth:`find`; if that result is outdated, make it again.

        A program may change without a change of its arguments, by a flag of the user's.
        """
        try:
            return function(self.find(owner, args, kwargs, make))
        except OutdatedError:
            self._found = []
            return function(self.find(owner, args, kwargs, make))


def _kind(value: Any) -> Any:
    return (value.shape, value.dtype, value.device) if isinstance(value, Tensor) else (type(value), value)
