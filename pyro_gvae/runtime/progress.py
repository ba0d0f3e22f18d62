"""Show progress without ever failing the work: as a bar on a terminal, or as a line from time to time in a log."""

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
#: The control characters of a bar, which return to the beginning of the line or move the cursor.
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
    """A tqdm bar on stderr, or lines instead of a bar if stderr is not a terminal.

    It starts no thread. If stderr is closed, full, or cannot encode the characters of the bar, the bar is not shown and
    the work goes on.

    Args:
        iterable: what to iterate over; None if `update` is called.
        disable: show nothing.
        **options: other options of tqdm.

    Example:
        >>> sum(Progress([1, 2, 3], disable=True))
        6
    """

    monitor_interval = 0

    def __init__(self, iterable: Iterable[Any] | None = None, *, disable: bool = False, **options: Any) -> None:
        disable = disable or is_progress_hidden()
        nobody = sys.stderr is None  # after `2>&-`, or in a program without a console on Windows
        stream = _Patient(sys.stderr)
        self._lines = None if nobody or disable or stream.is_terminal() else _Lines(stream)
        if self._lines is not None:
            of = "" if options.get("total") is None and iterable is None else "/{total_fmt}"
            options |= {"bar_format": "{l_bar} {n_fmt}" + of + " {unit}, {elapsed}, {rate_fmt}{postfix}"}
        super().__init__(iterable, disable=disable or nobody, file=self._lines or stream, **options)

    def close(self) -> None:
        """Show the bar for the last time."""
        super().close()
        if self._lines is not None and self.leave is not False:
            self._lines.end()


@final
class _Patient:
    """A stream that can always be written to, even if it is closed, full or missing."""

    def __init__(self, stream: TextIO | None) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def is_terminal(self) -> bool:
        """Return whether the stream is a terminal; False if it is closed."""
        with suppress(OSError, ValueError, AttributeError):
            return self._stream is not None and self._stream.isatty()
        return False

    def write(self, text: str) -> None:
        """Write text if possible."""
        with suppress(OSError, ValueError):  # closed files, and characters that cannot be encoded, are a ValueError
            if self._stream is not None:
                self._stream.write(text)

    def flush(self) -> None:
        """Flush if possible."""
        with suppress(OSError, ValueError):
            if self._stream is not None:
                self._stream.flush()


@final
class _Lines:
    """A stream that writes the text of a bar as a line, every 30 seconds and at the end."""

    def __init__(self, stream: _Patient) -> None:
        self._stream = stream
        self._said = time.monotonic()
        self._waiting = ""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> None:
        """Keep the text of the bar, and write it if the last line was long ago."""
        shown = CONTROL.sub("", text).strip()
        if shown:
            self._waiting = shown
        if time.monotonic() - self._said >= EVERY:
            self.end()

    def end(self) -> None:
        """Write the text that has not been written yet, as a line."""
        if self._waiting:
            self._stream.write(f"{self._waiting}\n")
            self._stream.flush()
        self._waiting, self._said = "", time.monotonic()
