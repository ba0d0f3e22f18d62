"""What a guard follows, and state whose changes it would not notice, so that such programs are not recorded."""

import dis
import sys
import types
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

# Packages whose classes and functions are not followed; instances of their classes are.
LIBRARIES = {"numpy", "pyro", "pyro_gvae", "torch", "torchvision", *sys.stdlib_module_names} - {"__main__"}
#: Methods that are called from outside of a class.
ENTRIES = ("model", "guide", "forward", "__call__")
#: Largest size in bytes of arrays whose elements are compared before each run, which takes about 20 microseconds.
MOST_BYTES = 2**18


def unguarded(thing: Any) -> list[str]:
    """Return a sentence for an object whose changes would not be noticed; see :func:`iterator` for others."""
    if isinstance(thing, np.ndarray) and thing.nbytes > MOST_BYTES and _is_writable(thing):
        return [
            "Expected arrays in model, guide and loss that are small or cannot be written, but found a large array of "
            f"shape {thing.shape}, whose changes are not noticed. Try a buffer, torch.from_numpy(array), or "
            "array.flags.writeable = False."
        ]
    if isinstance(thing, types.FunctionType) and is_own(thing) and "globals" in variables_in(thing.__code__):
        return [
            f"Expected functions that name the variables that they use, but found globals() in '{thing.__name__}'. Try "
            "the name of the variable."
        ]
    return []


def iterator(thing: Any) -> list[str]:
    """Return a sentence for an iterator, whose state cannot be read."""
    if not isinstance(thing, Iterator) or type(thing).__module__ not in ("builtins", "itertools"):
        return []
    return [
        "Expected model, guide and loss without iterators, whose state cannot be read, but found a "
        f"{type(thing).__name__}. Try a number that the training loop changes."
    ]


def calls_next(thing: Any) -> bool:
    """Return whether a function may advance an iterator; one that is only held does not matter."""
    is_own_function = isinstance(thing, types.FunctionType) and is_own(thing)
    return thing is next or (is_own_function and bool({"next", "__next__"} & names_in(thing.__code__)))


def is_own(thing: Any) -> bool:
    """Return whether a class or function is of the user's own code, and not of an installed package.

    Of those in installed packages, what they inherit and import is not followed, which would take seconds.
    """
    file = getattr(sys.modules.get(getattr(thing, "__module__", None) or ""), "__file__", None) or ""
    return root_of(thing) not in LIBRARIES and "site-packages" not in file and "dist-packages" not in file


def inherited(kind: type, bases: Sequence[type]) -> list[Any]:
    """Return what a class inherits: attributes, and methods that its own ones may call, by their names."""
    names = set(ENTRIES).union(*(names_in(code) for member in vars(kind).values() for code in _codes(member)))
    members = [(name, member) for base in bases for name, member in vars(base).items()]
    found: list[Any] = [member for _, member in members if not _codes(member)]
    waiting = [(name, member) for name, member in members if _codes(member)]
    while called := [one for one in waiting if one[0] in names]:
        waiting = [one for one in waiting if one[0] not in names]
        found += [member for _, member in called]
        names = names.union(*(names_in(code) for _, member in called for code in _codes(member)))
    return found


def _codes(member: Any) -> list[types.CodeType]:
    """Return the code of a method or property."""
    member = member.fget if isinstance(member, property) else getattr(member, "__func__", member)
    return [member.__code__] if isinstance(member, types.FunctionType) else []


def _is_writable(array: Any) -> bool:
    """Return whether an array, or one that it is a view of, can be written."""
    while isinstance(array, np.ndarray):
        if array.flags.writeable:
            return True
        array = array.base
    return not isinstance(array, bytes | None)


def names_in(code: types.CodeType) -> set[str]:
    """Return the names of variables and attributes in a code and in the functions that it defines."""
    return set().union(*(own.co_names for own in _nested(code)))


def variables_in(code: types.CodeType) -> set[str]:
    """Return the names of global variables in a code and in the functions that it defines."""
    return _names_by("LOAD_GLOBAL", code) | _names_by("LOAD_NAME", code)


def imports_in(code: types.CodeType) -> set[str]:
    """Return the modules that a code imports, itself or in the functions that it defines."""
    return _names_by("IMPORT_NAME", code)


def _names_by(operation: str, code: types.CodeType) -> set[str]:
    found = (one for own in _nested(code) for one in dis.get_instructions(own))
    return {str(one.argval) for one in found if one.opname == operation}


def _nested(code: types.CodeType) -> Iterator[types.CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _nested(constant)


def root_of(thing: Any) -> str:
    """Return the package that a class or function is from."""
    name = getattr(thing, "__module__", None)
    return name.partition(".")[0] if isinstance(name, str) else ""
