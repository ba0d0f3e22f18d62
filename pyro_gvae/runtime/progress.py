"""Progress, of which no work ever fails: a bar on a terminal, and a line every so often in a log."""

import re
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from typing import Any, TextIO, final

from tqdm import tqdm

#: Seconds between two lines where there is no terminal.
EVERY = 30.0
#: What a terminal makes of a bar: the beginning of the line, and moves of the cursor.
CONTROL = re.compile(r"[\r\n]|\x1b\[\w")


#: Whether progress is hidden.
_HIDDEN = ContextVar("hidden", default=False)


@contextmanager
def hidden_progress() -> Iterator[None]:
    """Show no progress inside the block.

    Example:
        >>> with hidden_progress():
        ...     sum(Progress([1, 2, 3]))
        6
    """
    token = _HIDDEN.set(True)
    try:
        yield
    finally:
        _HIDDEN.reset(token)


def is_progress_hidden() -> bool:
    """Tell whether progress is hidden here."""
    return _HIDDEN.get()


@final
class Progress(tqdm):  # type: ignore[type-arg]
    """A bar of tqdm's on stderr, if there is one; lines in place of a bar if it is no terminal.

    It starts no thread, and where stderr is closed, full, or without the bar's letters, the bar is not seen and the
    work goes on.

    Args:
        iterable: what to walk through; None if `update` is called.
        disable: show nothing.
        **options: others of tqdm's.

    Example:
        >>> sum(Progress([1, 2, 3], disable=True))
        6
    """

    monitor_interval = 0

    def __init__(self, iterable: Iterable[Any] | None = None, *, disable: bool = False, **options: Any) -> None:
        disable = disable or is_progress_hidden()
        nobody = sys.stderr is None  # as `2>&-` and windows without a terminal have it
        stream = _Patient(sys.stderr)
        self._lines = None if nobody or disable or stream.is_terminal() else _Lines(stream)
        if self._lines is not None:
            of = "" if options.get("total") is None and iterable is None else "/{total_fmt}"
            options |= {"bar_format": "{l_bar} {n_fmt}" + of + " {unit}, {elapsed}, {rate_fmt}{postfix}"}
        super().__init__(iterable, disable=disable or nobody, file=self._lines or stream, **options)

    def close(self) -> None:
        """Show where the work stands, and no more."""
        super().close()
        if self._lines is not None and self.leave is not False:
            self._lines.end()


@final
class _Patient:
    """A stream that can be written to, whatever has become of it."""

    def __init__(self, stream: TextIO | None) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def is_terminal(self) -> bool:
        """Tell whether a person sees what is written at once; not of a stream that is closed."""
        with suppress(OSError, ValueError, AttributeError):
            return self._stream is not None and self._stream.isatty()
        return False

    def write(self, text: str) -> None:
        """Write, or do not."""
        with suppress(OSError, ValueError):  # letters that cannot be written, and closed files, are a ValueError
            if self._stream is not None:
                self._stream.write(text)

    def flush(self) -> None:
        """Flush, or do not."""
        with suppress(OSError, ValueError):
            if self._stream is not None:
                self._stream.flush()


@final
class _Lines:
    """A stream that writes what a bar shows as a line, every so often, and at the end."""

    def __init__(self, stream: _Patient) -> None:
        self._stream = stream
        self._said = time.monotonic()
        self._waiting = ""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> None:
        """Take what the bar shows now."""
        shown = CONTROL.sub("", text).strip()
        if shown:
            self._waiting = shown
        if time.monotonic() - self._said >= EVERY:
            self.end()

    def end(self) -> None:
        """Write what has not been written yet."""
        if self._waiting:
            self._stream.write(f"{self._waiting}\n")
            self._stream.flush()
        self._waiting, self._said = "", time.monotonic()
