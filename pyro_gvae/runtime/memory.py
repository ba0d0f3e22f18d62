"""How much memory there is, what a computation takes of it, and what a request for more is answered."""

import weakref
from collections.abc import Callable
from typing import Any, final

import psutil
import torch

from .compat.torch import TorchDispatchMode, storage_id, tensors_in

#: The fraction of the free memory that a computation takes unless its caller says otherwise.
DEFAULT_FRACTION = 0.25


def memory_limit(max_memory: float | None, device: torch.device) -> int:
    """Bytes that a computation may take: `max_memory` (bytes) if given, else a quarter of what is free on the device.

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
class _PeakMemory(TorchDispatchMode):
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
