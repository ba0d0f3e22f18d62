"""How much memory there is, what a computation takes of it, and what a request for more is answered."""

import ctypes
import errno
import sys
import weakref
from collections.abc import Callable
from functools import cache
from typing import Any, final

import torch

from .compat.torch import Watching, storage_id, tensors_in

#: Bytes that a computation takes unless its caller says otherwise: the same on every machine, be its memory free or
#: not, since a sum that is cut into other slices is rounded otherwise.
DEFAULT_MEMORY = 4e9


def memory_limit(max_memory: float | None) -> int:
    """Bytes that a computation may take: `max_memory` (bytes) if given, else 4 GB.

    Raises:
        ValueError: if `max_memory` is not positive.
    """
    limit = DEFAULT_MEMORY if max_memory is None else max_memory
    if not isinstance(limit, int | float) or not limit > 0:  # a stage may say anything
        raise ValueError(f"Expected max_memory in bytes, a positive number, but found {max_memory}. Try 2e9.")
    return int(min(limit, sys.maxsize))  # an infinite one, too


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that the system, or a device, has no memory left."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    if isinstance(error, OSError) and error.errno == errno.ENOMEM:
        return True
    return any(isinstance(error, kind) and any(words in str(error) for words in said) for kind, said in _SAID.items())


#: By which words torch says so, and the system where it loads no more of a library.
_SAID: dict[type[BaseException], tuple[str, ...]] = {
    RuntimeError: ("allocate memory", "bad_alloc"),
    ImportError: ("allocate memory", "failed to map segment"),
}


def return_freed_memory() -> None:
    """Return memory that was freed to the system, which the C library of Linux (glibc) keeps from 32 MiB downwards.

    Until glibc 2.38 a block that was freed is often too small, by its alignment, for the next one of its size. So where
    large tensors and small ones that stay are made in turns, a process grows by a large tensor each time. Elsewhere
    than on glibc this does nothing.
    """
    trim = getattr(_this_process(), "malloc_trim", None)
    if trim is not None:
        trim(0)


@cache
def _this_process() -> Any:
    """What this process has loaded of the C library; None where there is no such thing."""
    return ctypes.CDLL(None) if sys.platform.startswith("linux") else None


def keep_freed_memory() -> None:
    """Let this process keep blocks of up to 31 MiB that it frees, for the next step to use again.

    The C library of Linux (glibc) returns large blocks to the system when they are freed; a step that takes them anew
    faults their pages in, one by one. Once a block has been freed, it keeps those of that size, up to 32 MiB (the
    "dynamic mmap threshold" of mallopt(3)), and this function allocates and frees one. Exact steps at 8x4 had 0 page
    faults in place of up to 6,900 a step on two cores; what that is worth in time depends on the machine.

    The setting is the whole process's, so nothing in this package calls it for you but the command line, in its own
    processes. Elsewhere than on glibc it does nothing.
    """
    torch.empty(31 * 2**20, dtype=torch.uint8)


def in_words(num_bytes: float) -> str:
    """A number of bytes as a person reads it.

    Example:
        >>> in_words(3.2e9), in_words(512)
        ('3.2 GB', '512 bytes')
    """
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if num_bytes >= size:
            return f"{num_bytes / size:.1f} {unit}"
    return f"{num_bytes:.0f} bytes"


def peak_memory(run: Callable[[], Any]) -> int:
    """Bytes of tensors that a computation holds at its peak, beyond those that were there before it.

    Counted are the results of torch's operations, backward passes included, on every device, for as long as they live;
    not what a kernel takes and gives back inside of one operation.

    Example:
        >>> peak_memory(lambda: [torch.zeros(1000).exp().sum() for _ in range(5)]) // 1000
        8
    """
    with _PeakMemory() as watched:
        run()
    return watched.peak


@final
class _PeakMemory(Watching):
    """Follows every new storage from the operation that makes it to its end."""

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
