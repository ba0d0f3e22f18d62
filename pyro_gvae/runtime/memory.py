"""Memory: how much is free, how much a computation takes, and how much it may take."""

import weakref
from collections.abc import Callable
from typing import Any, final

import psutil
import torch

from .compat.torch import TorchDispatchMode, storage_id, tensors_in

#: Default fraction of the free memory that a computation may take.
DEFAULT_FRACTION = 0.25


def memory_limit(max_memory: float | None, device: torch.device) -> int:
    """Return the bytes that a computation may take: `max_memory`, or a quarter of the device's free memory if None.

    Raises:
        ValueError: if `max_memory` is not positive.
    """
    if max_memory is not None:
        if not max_memory > 0:
            raise ValueError(f"Expected max_memory in bytes, a positive number, but found {max_memory}. Try 2e9.")
        return int(max_memory)
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return int(DEFAULT_FRACTION * free)
    return int(DEFAULT_FRACTION * psutil.virtual_memory().available)


def keep_freed_memory() -> None:
    """Let this process keep freed blocks of up to 31 MiB, so that the next step can use them again.

    The C library of Linux (glibc) returns large blocks to the system when they are freed. A step that allocates them
    again then has a page fault for every page. After a block was freed, glibc keeps blocks up to its size, at most 32
    MiB (the "dynamic mmap threshold" of mallopt(3)); this function allocates and frees one. Exact steps at 8x4 then had
    0 page faults instead of up to 6,900 per step, on two cores; how much time that saves depends on the machine.

    The setting is for the whole process. So only the command line calls this, in its own processes; a library user has
    to call it. Without glibc it does nothing.
    """
    torch.empty(31 * 2**20, dtype=torch.uint8)


def in_words(num_bytes: float) -> str:
    """Format a number of bytes for people.

    Example:
        >>> in_words(3.2e9), in_words(512)
        ('3.2 GB', '512 bytes')
    """
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if num_bytes >= size:
            return f"{num_bytes / size:.1f} {unit}"
    return f"{num_bytes:.0f} bytes"


def peak_memory(run: Callable[[], Any]) -> int:
    """Measure the peak memory in bytes of tensors that a computation creates.

    All results of torch's operations are counted while they live, in backward passes too and on every device. Memory
    that a kernel uses only internally is not counted.

    Example:
        >>> peak_memory(lambda: [torch.zeros(1000).exp().sum() for _ in range(5)]) // 1000
        8
    """
    with _PeakMemory() as watched:
        run()
    return watched.peak


@final
class _PeakMemory(TorchDispatchMode):
    """Tracks each new storage from the operation that creates it until it is freed."""

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
