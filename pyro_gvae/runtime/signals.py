"""Ctrl-C and SIGTERM as a wish that a loop reads when it can, in place of an exception in the middle of something."""

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
    """Which signal asked to stop; None as long as there was none."""

    asked: Signals | None = None


@contextmanager
def stop_on_signal() -> Iterator[Stop]:
    """Inside of the block, the first SIGINT or SIGTERM is noted; a second one does what it did before.

    Handlers are as before after the block. Only a process's main thread hears signals; elsewhere nothing is noted.

    Yields:
        What says which signal has come.
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
