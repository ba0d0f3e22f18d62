"""Guards: what a Pyro program reads besides its arguments, and whether that has changed.

A recorded graph refers to parameters and buffers as tensor objects, so their values may change in place. It becomes
stale if a tensor is replaced by another one, or a number by another number. A `Guard` walks over everything that can be
reached from a program, and remembers which object is where.
"""

import os
import sys
import types
from array import array
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextvars import ContextVar
from ctypes import c_double
from functools import partial
from itertools import chain
from operator import attrgetter, call, is_, methodcaller
from typing import Any, final

import numpy as np
from torch import Tensor, nn

from ..programs.kept import Kept
from ..runtime.compat.pyro import indices_of_full_plate, state_of_plate
from ..runtime.compat.torch import hooks_of, hooks_of_all_modules
from .unguarded import (
    LIBRARIES,
    MOST_BYTES,
    calls_next,
    imports_in,
    inherited,
    is_own,
    iterator,
    names_in,
    root_of,
    unguarded,
)

# Packages whose objects change without any effect on a program.
RESTLESS = {"logging", "threading", "weakref"}
KIND = attrgetter("requires_grad", "dtype", "device", "shape")
_PARTS_OF_FUNCTION = attrgetter("__code__", "__defaults__", "__kwdefaults__", "__dict__")
_PARTS_OF_PARTIAL = attrgetter("func", "args", "keywords")
_VALUES = methodcaller("values")
_C_NUMBER = c_double.__mro__[1]  # of multiprocessing.Value
#: How many levels of new objects are compared with the old ones.
MOST_DEPTH = 8
_NOTHING = object()  # in an empty slot or cell
Reader = Callable[[], Iterable[Any]]


@final
class Guard:
    """The state that functions, methods, modules and objects refer to, directly or indirectly.

    It follows a module's parameters, buffers, children, `training` and other attributes; the instance behind a
    bound method; closures, defaults, `functools.partial` and `functools.wraps`; global variables that are used by
    functions outside libraries, and attributes of Python modules (`config.beta`), also of those that they import;
    environment variables; attributes and slots of objects, and attributes and properties of their classes and base
    classes; lists, tuples, sets, deques and dictionaries; small arrays; hooks of tensors and of all modules. It
    does not follow :class:`~pyro_gvae.programs.kept.Kept`.

    Args:
        roots: where to start: model, guide, ELBO.

    Attributes:
        unguarded: state whose changes would not be noticed, in a sentence each: elements of larger, writable arrays,
            iterators, and what functions look up in `globals()`.
    """

    def __init__(self, roots: Iterable[Any]) -> None:
        self.tensors: dict[int, Tensor] = {}  # by id: the tensors that a graph may read
        self.modules: list[nn.Module] = []
        self.unguarded: list[str] = []
        # Objects whose places may change, grouped by the way they are read, so that the loops over them run in C: a
        # guard is checked in each step, and a step may be short.
        self._objects: list[Any] = []
        self._functions: list[types.FunctionType] = []
        self._partials: list[partial[Any]] = []
        self._dictionaries: list[Any] = []
        self._collections: list[Any] = []
        self._readers: list[Reader] = []
        self._empty: list[Any] = []  # empty containers, mostly modules' hooks, which are cheaper to check than to read
        self._walk([*roots, *hooks_of_all_modules()])
        self._keys = self._read_keys()
        self._lengths = self._read_lengths()
        self._seen = list(self._read())
        self._kinds = list(map(KIND, self.tensors.values()))

    def holds(self) -> bool:
        """Return whether each place is unchanged, and tensors are of the same kind."""
        # module.double() and requires_grad_() change a parameter in place.
        return self.places_hold() and list(map(KIND, self.tensors.values())) == self._kinds

    def places_hold(self) -> bool:
        """Return whether each place still has the same tensor, function or object, or an equal number."""
        if any(self._empty) or self._read_lengths() != self._lengths or self._read_keys() != self._keys:
            return False
        return all(map(is_, self._read(), self._seen)) or all(map(_same, self._read(), self._seen))

    def changes(self) -> list[Any]:
        """Return the objects that were not there when the guard was made."""
        before = set(map(id, self._seen))
        return [*filter(None, self._empty), *(thing for thing in self._read() if id(thing) not in before)]

    def _read_lengths(self) -> list[int]:
        # Without them, an object that moves from the end of a list to the start of the next one would not be noticed.
        return list(map(len, chain(self._dictionaries, self._collections)))

    def _read_keys(self) -> list[Any]:
        return list(chain.from_iterable(self._dictionaries))

    def _read(self) -> Iterator[Any]:
        """Read all places, whose number is unchanged if the lengths are."""
        every = chain.from_iterable
        return chain(
            map(type, self._objects),
            map(vars, self._objects),
            every(map(_PARTS_OF_FUNCTION, self._functions)),
            every(map(_PARTS_OF_PARTIAL, self._partials)),
            every(map(_VALUES, self._dictionaries)),
            every(self._collections),
            every(map(call, self._readers)),
        )

    def _walk(self, roots: Iterable[Any]) -> None:
        visited: dict[int, Any] = {}  # keeps objects alive, so that their ids are not reused
        iterators: list[str] = []
        advances = False
        waiting = deque(roots)
        while waiting:
            thing = waiting.popleft()
            if id(thing) in visited:
                continue
            visited[id(thing)] = thing
            if isinstance(thing, Tensor):
                self.tensors[id(thing)] = thing
                waiting.extend(hooks_of(thing))
            if isinstance(thing, nn.Module):
                self.modules.append(thing)
            self.unguarded += unguarded(thing)
            iterators += iterator(thing)
            advances = advances or calls_next(thing)
            indices = indices_of_full_plate(thing)
            if indices is not None:  # they follow from the plate's size, which is guarded
                self.tensors[id(indices)] = indices
            waiting.extend(self._follow(thing))
        if advances:
            self.unguarded += iterators

    def _follow(self, thing: Any) -> Iterable[Any]:
        """Return what an object refers to, and remember how to read it again, unless it cannot change."""
        if isinstance(thing, types.ModuleType | types.GenericAlias | Tensor | Kept) or root_of(type(thing)) in RESTLESS:
            return ()
        if isinstance(thing, tuple | frozenset):
            return thing
        if isinstance(thing, types.MethodType):
            return thing.__self__, thing.__func__
        if isinstance(thing, dict | list | set | deque) and not thing:
            self._empty.append(thing)
            return ()
        if isinstance(thing, dict):
            self._dictionaries.append(thing)
            return thing.values()
        if isinstance(thing, list | set | deque):
            self._collections.append(thing)
            return thing
        if isinstance(thing, type):
            if root_of(thing) in LIBRARIES:
                return ()
            bases = [base for base in thing.__mro__[1:] if is_own(base)] if is_own(thing) else []
            self._dictionaries += map(vars, (thing, *bases))
            return [type(thing), *vars(thing).values(), *inherited(thing, bases)]
        if isinstance(thing, property):
            return (thing.fget,)
        if isinstance(thing, staticmethod | classmethod):
            return (thing.__func__,)
        if isinstance(thing, partial):
            self._partials.append(thing)
            return _PARTS_OF_PARTIAL(thing)
        readers = _readers(thing)
        self._readers += readers
        parts = list(chain.from_iterable(map(call, readers)))
        if isinstance(thing, types.FunctionType):
            self._functions.append(thing)
            return [*_PARTS_OF_FUNCTION(thing), *parts]  # functools.wraps leaves __wrapped__ in __dict__
        if hasattr(thing, "__dict__") and state_of_plate(thing) is None:
            self._objects.append(thing)
            return [type(thing), vars(thing), *parts]
        return parts


def _readers(thing: Any) -> list[Reader]:
    """Return functions that read, now and later, what an object refers to besides its attributes."""
    if state_of_plate(thing) is not None:
        return [lambda: (state_of_plate(thing),)]
    if isinstance(thing, np.ndarray):
        if thing.dtype.hasobject:
            return [lambda: thing.ravel().tolist()]
        return [lambda: (thing.tobytes(),)] if thing.nbytes <= MOST_BYTES else []
    if isinstance(thing, bytearray | array):
        return [lambda: (bytes(thing),)]
    if isinstance(thing, ContextVar):
        return [lambda: (thing.get(_NOTHING),)]
    if isinstance(thing, _C_NUMBER):
        return [lambda: (thing.value,)]  # type: ignore[attr-defined]
    if isinstance(thing, types.FunctionType):
        return _readers_of_function(thing)
    slots = _slots(type(thing))
    return [partial(_in_slots, thing, slots)] if slots else []


def _slots(kind: type) -> list[types.MemberDescriptorType]:
    members = chain.from_iterable(vars(k).values() for k in kind.__mro__ if "__slots__" in vars(k))
    return [member for member in members if isinstance(member, types.MemberDescriptorType)]


def _in_slots(thing: Any, slots: Sequence[types.MemberDescriptorType]) -> list[Any]:
    return [getattr(thing, slot.__name__, _NOTHING) for slot in slots]


def _readers_of_function(function: types.FunctionType) -> list[Reader]:
    read: list[Reader] = [partial(_contents, cell) for cell in function.__closure__ or ()]
    if root_of(function) not in LIBRARIES:
        names = names_in(function.__code__)
        imports = imports_in(function.__code__) if is_own(function) else set()
        read += _readers_of_variables(function.__globals__, names, imports)
        if names & {"environ", "getenv"}:
            read.append(lambda: (repr(sorted(os.environ.items())),))
    return read


def _readers_of_variables(variables: dict[str, Any], names: set[str], imports: set[str]) -> list[Reader]:
    """Return functions that read the variables that code names, those of other modules included (`config.beta`)."""
    read: list[Reader] = []
    visited: list[dict[str, Any]] = []
    package = variables.get("__package__")
    imported = [sys.modules.get(name) or sys.modules.get(f"{package}.{name}") for name in imports]
    waiting = [variables, *(vars(module) for module in imported if module and _root_name(module) not in LIBRARIES)]
    while waiting:
        module = waiting.pop()
        if any(module is known for known in visited):
            continue
        visited.append(module)
        found = [name for name in names if name in module]
        read.append(partial(map, module.get, found))
        modules = [module[name] for name in found if isinstance(module[name], types.ModuleType)]
        waiting += [vars(other) for other in modules if _root_name(other) not in LIBRARIES]
    return read


def _root_name(module: types.ModuleType) -> str:
    return module.__name__.partition(".")[0]


def _contents(cell: types.CellType) -> tuple[Any]:
    try:
        return (cell.cell_contents,)
    except ValueError:  # not assigned yet
        return (_NOTHING,)


def _same(now: Any, before: Any, depth: int = MOST_DEPTH) -> bool:
    """Return whether two values are one object, equal numbers or strings, or containers, plates or objects of such."""
    if now is before:
        return True
    if type(now) is not type(before) or not depth:
        return False
    same = partial(_same, depth=depth - 1)
    if isinstance(now, dict):
        return list(now) == list(before) and all(map(same, now.values(), before.values()))
    if isinstance(now, list | tuple | deque):
        return len(now) == len(before) and all(map(same, now, before))
    if isinstance(now, int | float | str | bytes):
        return now == before
    if state_of_plate(now) is not None:
        return state_of_plate(now) == state_of_plate(before)
    if isinstance(now, Tensor | type | types.FunctionType) or _slots(type(now)):
        return False
    # An object of a class written in C may have state besides its attributes.
    return is_(type(now).__new__, object.__new__) and same(vars(now), vars(before))
