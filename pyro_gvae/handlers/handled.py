"""Handled programs, which can be called, copied and pickled like the programs that they wrap."""

import functools
import sys
import types
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, final

from torch import nn

from .one_hot_messenger import ProgramMessenger
from .sites import Program

Make = Callable[[], ProgramMessenger]


def handle(make: Make, program: Program) -> Program:
    """Handle a program with a new messenger for each run, so that it may call itself or run in two places at once."""
    return HandledModule(make, program) if isinstance(program, nn.Module) else HandledFunction(make, program)


def handler_of(make: Make, program: Program | None) -> Any:
    """Handle a program, or return a decorator and context manager if there is none."""
    return DecoratorOrContext(make) if program is None else handle(make, program)


@final
class DecoratorOrContext(AbstractContextManager[None]):
    """A handler without its program, such as `relax(temperature=0.5)`: a decorator or a context manager."""

    def __init__(self, make: Make) -> None:
        self._make = make
        self._entered: list[ProgramMessenger] = []

    def __call__(self, program: Program) -> Program:
        """Handle a program."""
        return handle(self._make, program)

    def __enter__(self) -> None:
        self._entered.append(self._make())
        self._entered[-1].__enter__()

    def __exit__(self, *exception: Any) -> None:
        self._entered.pop().__exit__(*exception)


def _run(make: Make, program: Program, args: Any, kwargs: Any) -> Any:
    with make() as messenger:
        result = program(*args, **kwargs)
    messenger.check(program, args, kwargs)
    return result


@final
class HandledModule(nn.Module):
    """A module whose calls are handled, with the parameters, buffers and modes of that module.

    Attributes:
        program: the module. Its entries in a `state_dict` have the prefix "program."; their names in Pyro's param store
            do not change.
    """

    def __init__(self, make: Make, program: nn.Module) -> None:
        super().__init__()
        self.program = program
        self.training = program.training
        self._make = make

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Call the module under the handler."""
        return _run(self._make, self.program, args, kwargs)


@final
class HandledFunction:
    """A function, method or other callable whose calls are handled. In a class, it is a method."""

    def __init__(self, make: Make, program: Program) -> None:
        functools.update_wrapper(self, program)
        self._make = make
        self._program = program

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the program under the handler."""
        return _run(self._make, self._program, args, kwargs)

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        return self if instance is None else types.MethodType(self, instance)

    def __reduce__(self) -> str | tuple[Any, ...]:
        # If a decorator has replaced the program, pickle only the name, as for any function.
        name = getattr(self, "__qualname__", "")
        return name if _found(self.__module__, name) is self else (HandledFunction, (self._make, self._program))


def _found(module: str, name: str) -> Any:
    """Return the object with this dotted name in a Python module, or None."""
    return functools.reduce(lambda owner, part: getattr(owner, part, None), name.split("."), sys.modules.get(module))
