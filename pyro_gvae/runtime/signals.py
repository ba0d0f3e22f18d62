"""Ctrl-C and SIGTERM as a request that a loop checks, instead of an exception in the middle of its work."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from signal import Signals
from types import FrameType
from typing import Any

STOPPING = (signal.SIGINT, signal.SIGTERM)


@dataclass
class Stop:
    """The signal that asked to stop; None as long as there was none."""

    asked: Signals | None = None


@contextmanager
def stop_on_signal() -> Iterator[Stop]:
    """Note the first SIGINT or SIGTERM inside the block; a second one has its usual effect.

    The previous handlers are restored after the block. Only the main thread of a process receives signals; in other
    threads nothing is noted.

    Yields:
        A :class:`Stop` that holds the signal.
    """
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before: dict[Signals, Any] = {number: signal.getsignal(number) for number in STOPPING}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def note(number: int, frame: FrameType | None) -> None:
        stop.asked = Signals(number)
        restore()

    for number in STOPPING:
        signal.signal(number, note)
    try:
        yield stop
    finally:
        restore()
