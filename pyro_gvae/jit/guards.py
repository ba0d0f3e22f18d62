"""Guards: what a Pyro program reads besides its arguments, and whether that has changed.

A recorded graph refers to parameters and buffers as tensor objects, so their values may change in place. It becomes
stale if another tensor takes the place of one, or another number the place of a number. A `Guard` walks over everything
that can be reached from a program, and remembers which object is where.
"""

import sys
import types
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import chain
from operator import attrgetter, is_
from typing import Any, final

from torch import Tensor, nn

from ..programs.kept import Kept

# Packages whose classes and functions are not followed; instances of their classes are.
LIBRARIES = {"numpy", "pyro", "pyro_gvae", "torch", "torchvision", *sys.stdlib_module_names} - {"__main__"}
# Packages whose objects change without any meaning for a program.
RESTLESS = {"logging", "threading", "weakref"}
KIND = attrgetter("requires_grad", "dtype", "device", "shape")
Reader = Callable[[], Iterable[Any]]


@final
class Guard:
    """The state that functions, methods, modules and objects refer to, directly or indirectly.

    Followed are: a module's parameters, buffers, children, `training` and other attributes; the instance behind a bound
    method; closures, defaults, `functools.partial` and `functools.wraps`; global variables that are used by functions
    outside libraries; attributes of objects and of their classes; lists, tuples, sets and dictionaries. Not followed
    are attributes of Python modules (`config.beta`), elements of arrays, and :class:`~pyro_gvae.programs.kept.Kept`.

    Args:
        roots: where to start: model, guide, ELBO.
    """

    def __init__(self, roots: Iterable[Any]) -> None:
        self.tensors: dict[int, Tensor] = {}  # by id: the tensors that a graph may read
        self.modules: list[nn.Module] = []
        self._readers: list[Reader] = []
        self._empty: list[Any] = []  # empty containers, mostly modules' hooks, which are cheaper to check than to read
        self._walk(roots)
        self._seen = list(self._read())
        self._kinds = list(map(KIND, self.tensors.values()))

    def holds(self) -> bool:
        """Return whether each place still has the same tensor, function or object, or an equal number."""
        if any(self._empty):
            return False
        now = list(self._read())
        same = len(now) == len(self._seen) and (all(map(is_, now, self._seen)) or all(map(_same, now, self._seen)))
        # module.double() and requires_grad_() change a parameter in place.
        return same and list(map(KIND, self.tensors.values())) == self._kinds

    def changes(self) -> list[Any]:
        """Return the objects that were not there when the guard was made."""
        before = set(map(id, self._seen))
        return [*filter(None, self._empty), *(thing for thing in self._read() if id(thing) not in before)]

    def _read(self) -> Iterator[Any]:
        return chain.from_iterable(read() for read in self._readers)

    def _walk(self, roots: Iterable[Any]) -> None:
        visited: dict[int, Any] = {}  # keeps objects alive, so that their ids are not reused
        waiting = deque(roots)
        while waiting:
            thing = waiting.popleft()
            if id(thing) in visited:
                continue
            visited[id(thing)] = thing
            if isinstance(thing, Tensor):
                self.tensors[id(thing)] = thing
            if isinstance(thing, nn.Module):
                self.modules.append(thing)
            if isinstance(thing, dict | list | set) and not thing:
                self._empty.append(thing)
                continue
            for read in _readers(thing):
                self._readers.append(read)
                waiting.extend(read())


def _readers(thing: Any) -> list[Reader]:
    """Return functions that read, now and later, what an object refers to."""
    if isinstance(thing, types.ModuleType | types.GenericAlias | Tensor | Kept) or _root(type(thing)) in RESTLESS:
        return []
    if isinstance(thing, dict):
        return [thing.values]
    if isinstance(thing, list | tuple | set | frozenset):
        return [thing.__iter__]
    if isinstance(thing, types.MethodType):
        return [lambda: (thing.__self__, thing.__func__)]
    if isinstance(thing, partial):
        return [lambda: (thing.func, *thing.args, *thing.keywords.values())]
    if isinstance(thing, types.FunctionType):
        return _readers_of_function(thing)
    if isinstance(thing, type):
        return [] if _root(thing) in LIBRARIES else [vars(thing).values]
    return [partial(lambda t: (type(t), vars(t)), thing)] if hasattr(thing, "__dict__") else []


def _readers_of_function(function: types.FunctionType) -> list[Reader]:
    read: list[Reader] = [vars(function).values]  # functools.wraps leaves __wrapped__ here
    read.append(lambda: (function.__code__, *(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()))
    read += [partial(_contents, cell) for cell in function.__closure__ or ()]
    if _root(function) not in LIBRARIES:
        variables = function.__globals__
        names = [name for name in _names(function.__code__) if name in variables]
        read.append(lambda: map(variables.get, names))
    return read


def _contents(cell: types.CellType) -> tuple[Any, ...]:
    try:
        return (cell.cell_contents,)
    except ValueError:  # not assigned yet
        return ()


def _names(code: types.CodeType) -> set[str]:
    inner = (constant for constant in code.co_consts if isinstance(constant, types.CodeType))
    return set(code.co_names).union(*map(_names, inner))


def _root(thing: Any) -> str:
    name = getattr(thing, "__module__", None)
    return name.partition(".")[0] if isinstance(name, str) else ""


def _same(now: Any, before: Any) -> bool:
    """Return whether two values are one object, equal numbers or strings, or containers of such values."""
    if now is before:
        return True
    if type(now) is not type(before):
        return False
    if isinstance(now, dict):
        return list(now) == list(before) and all(map(_same, now.values(), before.values()))
    if isinstance(now, list | tuple):
        return len(now) == len(before) and all(map(_same, now, before))
    return isinstance(now, int | float | str) and now == before
