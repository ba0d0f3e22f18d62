"""What a few small runs told about a program, kept while it is called with arguments of the same shapes."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Generic, TypeVar, final

from torch import Tensor

T = TypeVar("T")


@final
class Kept(Generic[T]):
    """What was found out about the last programs and shapes: those of whole batches and of an epoch's last one, say.

    It follows from a program and its arguments, and is no state of the loss that has it. So the class marks what guards
    do not read (:class:`~pyro_gvae.jit.guards.Guard`): a recording of one shape outlives what was found out about
    another. Nothing else is left out of an object's attributes.
    """

    MOST = 8

    def __init__(self) -> None:
        self._found: list[tuple[Any, T]] = []

    def find(self, owner: Any, args: Sequence[Any], kwargs: Mapping[str, Any], make: Callable[[], T]) -> T:
        """Return what `make` found out when it was last called for this owner and such arguments, or call it.

        Args:
            owner: the program, with whatever else the answer depends on, compared by equality.
            args: what the program is called with. Tensors are alike if shape, type and device are; numbers, words and
                None if they are equal; for other things `make` is called each time.
            kwargs: the same by name.
            make: finds it out.
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


def _kind(value: Any) -> Any:
    return (value.shape, value.dtype, value.device) if isinstance(value, Tensor) else (type(value), value)
