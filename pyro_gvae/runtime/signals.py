"""Stop a process: note signals or raise them as exceptions, and end together with the parent process."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from signal import Signals
from types import FrameType
from typing import Any, final

#: The signals of Ctrl-C, of the end of a service or a job, and, if the system has it, of the end of a terminal.
STOPPING = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
#: Seconds between two checks that the parent is alive.
WATCH_EVERY = 0.5


@dataclass
class Stop:
    """The signal that asked to stop; None if there was none so far."""

    asked: Signals | None = None


@final
class StoppedError(KeyboardInterrupt):
    """A signal stopped the work of the main thread.

    Attributes:
        signal: the signal.
    """

    def __init__(self, number: Signals) -> None:
        super().__init__(f"stopped by {number.name}")
        self.signal = number

    def __reduce__(self) -> tuple[Any, ...]:
        return StoppedError, (self.signal,)  # for pickles between processes


@contextmanager
def stop_on_signal() -> Iterator[Stop]:
    """Note the first signal inside of the block that asks to stop; a second one acts as it would without the block.

    Handlers are restored after the block. If a signal was noted, but the block did not react to it by an exception such
    as `KeyboardInterrupt`, it is raised again then: it came too late for the block, but not for the code around it.
    Signals that the process ignores, as under `nohup`, stay ignored. Only a process's main thread receives signals; in
    other threads nothing is noted.

    Yields:
        An object that holds the signal once it has come.
    """
    stop, is_heeded = Stop(), False

    def note(number: Signals) -> None:
        stop.asked = number

    try:
        with _heard(note):
            yield stop
    except KeyboardInterrupt:
        is_heeded = True
        raise
    finally:
        if stop.asked is not None and not is_heeded:
            signal.raise_signal(stop.asked)


@contextmanager
def raise_on_signal() -> Iterator[None]:
    """End the block by an exception, as Ctrl-C does, at the first signal that asks to stop.

    So partly written files are removed, and finished work can be reported. Handlers are restored when the signal comes.
    Signals that the process ignores stay ignored, and only the main thread receives any.

    Raises:
        StoppedError: when a signal comes.
    """

    def end(number: Signals) -> None:
        raise StoppedError(number)

    with _heard(end):
        yield


@contextmanager
def _heard(hear: Callable[[Signals], None]) -> Iterator[None]:
    """Restore all handlers and call a function at the first signal that asks to stop and is not ignored."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handlers: dict[Signals, Any] = {number: signal.getsignal(number) for number in STOPPING}
    # None is a handler that was not installed from Python, which Python could not restore.
    before = {number: found for number, found in handlers.items() if found not in (signal.SIG_IGN, None)}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def handle(number: int, frame: FrameType | None) -> None:
        restore()
        hear(Signals(number))

    for number in before:
        signal.signal(number, handle)
    try:
        yield
    finally:
        restore()


@cache
def end_with(parent: int) -> None:
    """End this process at once when its parent has ended, for any reason: nobody waits for its work any more.

    Args:
        parent: the id of the process that has started this one.
    """

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(WATCH_EVERY)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, name="end with parent", daemon=True).start()
