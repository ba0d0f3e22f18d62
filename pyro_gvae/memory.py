"""How much memory there is, and what a request for more is answered."""

import psutil
import torch

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
