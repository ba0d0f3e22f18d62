"""Restrict work to one thread of a process at a time."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

_LOCK = threading.RLock()


@contextmanager
def only_thread(work: str) -> Iterator[None]:
    """Refuse other threads for the time of the block; the same thread may nest blocks.

    Random states, Pyro's handlers and its parameters belong to the process. Two threads that use them would draw each
    other's numbers, or take each other's handlers, mostly without an error.

    Args:
        work: what the block does, in words.

    Raises:
        ValueError: if another thread is in such a block.

    Example:
        >>> with only_thread("an example"), only_thread("the same thread"):
        ...     pass
    """
    if not _LOCK.acquire(blocking=False):
        raise ValueError(
            f"Expected {work} in one thread of a process, whose random states and Pyro handlers all threads share, but "
            "found that another thread is using them. Try processes."
        )
    try:
        yield
    finally:
        _LOCK.release()
