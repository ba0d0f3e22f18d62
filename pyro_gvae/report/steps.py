"""The steps in which a page computes a function, each of which makes one flat array."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor

from .arrays import Arrays

#: The most numbers of one value: a page stores positions in single precision, which is exact up to here.
MOST_PLACES = 2**24


class NotInAPageError(ValueError):
    """A function does something that a page cannot compute."""


@final
@dataclass(frozen=True)
class Value:
    """A tensor that depends on the input, as the page has it: a flat array of known shape."""

    number: int  # 0 is the input
    shape: torch.Size

    @property
    def size(self) -> int:
        """The number of its elements."""
        return self.shape.numel()


Operand = Value | Tensor | float | int | bool


@final
class Steps:
    """A list of steps, each of which computes one array from earlier ones.

    Args:
        store: the arrays of the page, to which constants are added.
        shape: the shape of the input.
    """

    def __init__(self, store: Arrays, shape: torch.Size) -> None:
        self.store = store
        self.steps: list[dict[str, Any]] = []
        self.input = Value(0, shape)
        self._constants: dict[int, tuple[Tensor, Value]] = {}

    def emit(self, op: str, of: Sequence[Value], shape: torch.Size, **numbers: Any) -> Value:
        """Append a step."""
        if shape.numel() > MOST_PLACES:
            raise NotInAPageError
        self.steps.append({"op": op, "of": [value.number for value in of], "size": shape.numel()} | numbers)
        return Value(len(self.steps), shape)

    def place(self, operand: Operand, *, is_weight: bool = False) -> Value:
        """Return an operand as a value; constants become steps of their own."""
        if isinstance(operand, Value):
            return operand
        if not isinstance(operand, Tensor):
            number = float(operand)
            written: Any = number if math.isfinite(number) else str(number).replace("inf", "Infinity")
            return self.emit("constant", [], torch.Size([]), number="NaN" if math.isnan(number) else written)
        if id(operand) not in self._constants:
            place = self.store.put(operand, is_weight=is_weight)
            self._constants[id(operand)] = operand, self.emit("constant", [], operand.shape, place=place)
        return self._constants[id(operand)][1]

    def pointwise(self, op: str, operands: Sequence[Operand], shape: torch.Size) -> Value:
        """Append an elementwise step, with its operands broadcast to the shape."""
        return self.emit(op, [self._spread(operand, shape) for operand in operands], shape)

    def _spread(self, operand: Operand, shape: torch.Size) -> Value:
        size = operand.size if isinstance(operand, Value) else operand.numel() if isinstance(operand, Tensor) else 1
        if size in (1, shape.numel()):  # equal sizes mean equal positions, since shapes broadcast
            return self.place(operand)
        if isinstance(operand, Tensor):
            return self.place(operand.expand(shape))
        assert isinstance(operand, Value)
        return self.move(lambda places: places.expand(shape), [operand])

    def move(self, function: Callable[..., Tensor], sources: Sequence[Operand], fill: float = 0.0) -> Value:
        """Append a step that only moves numbers; running the function on their positions shows where each one goes.

        Args:
            function: takes one tensor for each source; -1 in its result stands for `fill`.
            sources: the arrays to move.
            fill: the number at positions that no source fills.
        """
        values = [self.place(source) for source in sources]
        places, start = [], 0
        for value in values:
            places.append(torch.arange(start, start + value.size, dtype=torch.float64).reshape(value.shape))
            start += value.size
        found = function(*places)
        if start > MOST_PLACES or found.numel() > MOST_PLACES:
            raise NotInAPageError
        for value, own in zip(values, places, strict=True):
            if found.numel() == own.numel() and torch.equal(found.reshape(-1), own.reshape(-1)):
                return Value(value.number, found.shape)
        return self.emit("take", values, found.shape, index=self.store.put(found), fill=fill)
