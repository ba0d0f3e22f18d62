"""What ends a process: signals, noted or raised as exceptions, and the end of the process that started this one."""

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

#: Ctrl-C, the end of a service or a job, and, where the system has it, the end of a terminal.
STOPPING = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
#: Seconds between two looks at whether the parent still lives.
WATCH_EVERY = 0.5


@dataclass
class Stop:
    """Which signal asked to stop; None as long as there was none."""

    asked: Signals | None = None


@final
class StoppedError(KeyboardInterrupt):
    """A signal ended what the main thread was doing.

    Attributes:
        signal: which one it was.
    """

    def __init__(self, number: Signals) -> None:
        super().__init__(f"stopped by {number.name}")
        self.signal = number

    def __reduce__(self) -> tuple[Any, ...]:
        return StoppedError, (self.signal,)  # from one process to another


@contextmanager
def stop_on_signal() -> Iterator[Stop]:
    """Inside of the block, the first signal that asks to stop is noted; a second one does what it did before.

    Handlers are as before after the block. A signal that was noted and not heeded, by an exception such as
    `KeyboardInterrupt`, is sent again then: it came too late for the block, and not for what is around it. Signals that
    the process ignores, as `nohup` has it do, stay ignored. Only a process's main thread hears signals; elsewhere
    nothing is noted.

    Yields:
        What says which signal has come.
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
    """Inside of the block, the first signal that asks to stop ends it by an exception, as Ctrl-C does.

    So files that are half written are removed, and what was finished can be reported. Handlers are as before from then
    on. Signals that the process ignores stay ignored, and only the main thread hears any.

    Raises:
        StoppedError: when a signal comes.
    """

    def end(number: Signals) -> None:
        raise StoppedError(number)

    with _heard(end):
        yield


@contextmanager
def _heard(hear: Callable[[Signals], None]) -> Iterator[None]:
    """Call a function at the first signal that asks to stop and is not ignored; handlers are as before by then."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handlers: dict[Signals, Any] = {number: signal.getsignal(number) for number in STOPPING}
    # None is a handler of another language, which Python could not put back.
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
    """End this process at once when its parent has ended, however that did: nobody waits for its work any more.

    Args:
        parent: the number of the process that has started this one.
    """

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(WATCH_EVERY)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, name="end with parent", daemon=True).start()
