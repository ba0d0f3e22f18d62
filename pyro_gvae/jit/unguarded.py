"""State whose changes a guard would not notice, so that programs that refer to it are not recorded."""

import sys
import types
from collections.abc import Iterator
from typing import Any

import numpy as np

# Packages whose classes and functions are not followed; instances of their classes are.
LIBRARIES = {"numpy", "pyro", "pyro_gvae", "torch", "torchvision", *sys.stdlib_module_names} - {"__main__"}
#: Largest size in bytes of arrays whose elements are compared before each run, which takes about 20 microseconds.
MOST_BYTES = 2**18


def unguarded(thing: Any) -> list[str]:
    """Return a sentence for an object whose changes would not be noticed."""
    if isinstance(thing, np.ndarray) and thing.nbytes > MOST_BYTES and _is_writable(thing):
        return [
            "Expected arrays in model, guide and loss that are small or cannot be written, but found a large array of "
            f"shape {thing.shape}, whose changes are not noticed. Try a buffer, torch.from_numpy(array), or "
            "array.flags.writeable = False."
        ]
    if isinstance(thing, Iterator) and type(thing).__module__ in ("builtins", "itertools"):
        return [
            "Expected model, guide and loss without iterators, whose state cannot be read, but found a "
            f"{type(thing).__name__}. Try a number that the training loop changes."
        ]
    is_own = isinstance(thing, types.FunctionType) and root_of(thing) not in LIBRARIES
    if is_own and "globals" in names_in(thing.__code__):
        return [
            f"Expected functions that name the variables that they use, but found globals() in '{thing.__name__}'. Try "
            "the name of the variable."
        ]
    return []


def _is_writable(array: Any) -> bool:
    """Return whether an array, or one that it is a view of, can be written."""
    while isinstance(array, np.ndarray):
        if array.flags.writeable:
            return True
        array = array.base
    return not isinstance(array, bytes | None)


def names_in(code: types.CodeType) -> set[str]:
    """Return the names in a code and in the functions that it defines."""
    inner = (constant for constant in code.co_consts if isinstance(constant, types.CodeType))
    return set(code.co_names).union(*map(names_in, inner))


def root_of(thing: Any) -> str:
    """Return the package that a class or function is from."""
    name = getattr(thing, "__module__", None)
    return name.partition(".")[0] if isinstance(name, str) else ""
