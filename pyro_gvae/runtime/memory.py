"""Limit and measure the memory of computations, and recognize errors that report a lack of it."""

import ctypes
import errno
import sys
import weakref
from collections.abc import Callable
from functools import cache
from typing import Any, final

import torch

from .compat.torch import Watching, storage_id, tensors_in

#: Bytes that a computation may take unless its caller says otherwise. It is the same on every machine, however much
#: memory is free, because a sum that is cut into other slices is rounded differently.
DEFAULT_MEMORY = 4e9


def memory_limit(max_memory: float | None) -> int:
    """Return the bytes that a computation may take: `max_memory` (bytes) if given, else 4 GB.

    Raises:
        ValueError: if `max_memory` is not positive.
    """
    limit = DEFAULT_MEMORY if max_memory is None else max_memory
    if not isinstance(limit, int | float) or not limit > 0:  # a stage may set it to anything
        raise ValueError(f"Expected max_memory in bytes, a positive number, but found {max_memory}. Try 2e9.")
    return int(min(limit, sys.maxsize))  # an infinite one, too


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error says that the system, or a device, has no memory left."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    if isinstance(error, OSError) and error.errno == errno.ENOMEM:
        return True
    return any(isinstance(error, kind) and any(words in str(error) for words in said) for kind, said in _SAID.items())


#: The words by which torch says so, and by which the system says that it cannot load a library.
_SAID: dict[type[BaseException], tuple[str, ...]] = {
    RuntimeError: ("allocate memory", "bad_alloc"),
    ImportError: ("allocate memory", "failed to map segment"),
}


def return_freed_memory() -> None:
    """Return freed memory to the system; the C library of Linux (glibc) keeps blocks of up to 32 MiB.

    Until glibc 2.38, a freed block is often too small, because of its alignment, for the next one of the same size. So
    if large tensors and small, lasting ones are created in turn, a process grows by a large tensor each time. Without
    glibc this does nothing.
    """
    trim = getattr(_this_process(), "malloc_trim", None)
    if trim is not None:
        trim(0)


@cache
def _this_process() -> Any:
    """Return the C library that this process has loaded; None on systems other than Linux."""
    return ctypes.CDLL(None) if sys.platform.startswith("linux") else None


def keep_freed_memory() -> None:
    """Let this process keep freed blocks of up to 31 MiB, so that the next step can use them again.

    The C library of Linux (glibc) returns large blocks to the system when they are freed; a step that allocates them
    again faults their pages in, one by one. Once a block of up to 32 MiB has been freed, glibc keeps blocks of that
    size (the "dynamic mmap threshold" of mallopt(3)), so this function allocates and frees one. Exact steps at 8x4 had
    0 page faults instead of up to 6,900 a step on two cores; the time that this saves depends on the machine.

    The setting applies to the whole process, so in this package only the command line calls this function, in its own
    processes. Without glibc it does nothing.
    """
    torch.empty(31 * 2**20, dtype=torch.uint8)


def in_words(num_bytes: float) -> str:
    """Return a number of bytes in readable units.

    Example:
        >>> in_words(3.2e9), in_words(512)
        ('3.2 GB', '512 bytes')
    """
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if num_bytes >= size:
            return f"{num_bytes / size:.1f} {unit}"
    return f"{num_bytes:.0f} bytes"


def peak_memory(run: Callable[[], Any]) -> int:
    """Return the bytes of tensors that a computation holds at its peak, beyond those that existed before.

    This counts the results of torch's operations for as long as they live, backward passes included, on every device.
    It does not count memory that a kernel allocates and frees inside of one operation.

    Example:
        >>> peak_memory(lambda: [torch.zeros(1000).exp().sum() for _ in range(5)]) // 1000
        8
    """
    with _PeakMemory() as watched:
        run()
    return watched.peak


@final
class _PeakMemory(Watching):
    """Follows every new storage from the operation that creates it until it is freed."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.living: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        known = {storage_id(tensor) for tensor in tensors_in((args, kwargs))}
        result = func(*args, **(kwargs or {}))
        for tensor in tensors_in(result):
            storage, number = tensor.untyped_storage(), storage_id(tensor)
            if number not in self.living and number not in known:
                self.living.add(number)
                self.now += storage.nbytes()
                weakref.finalize(storage, self._ended, number, storage.nbytes())
        self.peak = max(self.peak, self.now)
        return result

    def _ended(self, storage: int, num_bytes: int) -> None:
        self.living.discard(storage)
        self.now -= num_bytes


def lacks_memory(error: Exception) -> bool:
    """Return whether torch has raised an error because memory was not enough."""
    return isinstance(error, torch.OutOfMemoryError) or "allocate memory" in str(error)
