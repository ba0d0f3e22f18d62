"""A program together with the handler of its runs: something that is called, copied and pickled as the program is."""

import functools
import sys
import types
from collections.abc import Callable
from typing import Any, final

from torch import nn

from .one_hot_messenger import ProgramMessenger
from .sites import Program

Make = Callable[[], ProgramMessenger]


def handle(make: Make, program: Program) -> Program:
    """Handle each run of a program by a messenger of its own, so that it may call itself or run in two places."""
    return HandledModule(make, program) if isinstance(program, nn.Module) else HandledFunction(make, program)


def _run(make: Make, program: Program, args: Any, kwargs: Any) -> Any:
    with make() as messenger:
        result = program(*args, **kwargs)
    messenger.check(program, args, kwargs)
    return result


@final
class HandledModule(nn.Module):
    """A module whose calls are handled; it has the module's parameters, buffers and modes.

    Attributes:
        program: the module. What it holds has the prefix "program." in a `state_dict`, and no other name in Pyro's
            param store.
    """

    def __init__(self, make: Make, program: nn.Module) -> None:
        super().__init__()
        self.program = program
        self.training = program.training
        self._make = make

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Call the module."""
        return _run(self._make, self.program, args, kwargs)


@final
class HandledFunction:
    """A function, method or other callable whose calls are handled; a method if it is one of a class."""

    def __init__(self, make: Make, program: Program) -> None:
        functools.update_wrapper(self, program)
        self._make = make
        self._program = program

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the program."""
        return _run(self._make, self._program, args, kwargs)

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        return self if instance is None else types.MethodType(self, instance)

    def __reduce__(self) -> str | tuple[Any, ...]:
        # What a decorator has put in its program's place is found by the program's name, as a function is.
        name = getattr(self, "__qualname__", "")
        return name if _found(self.__module__, name) is self else (HandledFunction, (self._make, self._program))


def _found(module: str, name: str) -> Any:
    """What has that dotted name in a module of Python, if anything has."""
    return functools.reduce(lambda owner, part: getattr(owner, part, None), name.split("."), sys.modules.get(module))
