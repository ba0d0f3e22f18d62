"""Progress bars, of which no work ever fails."""

import sys
from collections.abc import Iterable
from contextlib import suppress
from typing import Any, TextIO, final

from tqdm import tqdm


@final
class Progress(tqdm):  # type: ignore[type-arg]
    """A bar of tqdm's on stderr, if there is one.

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
        nobody = sys.stderr is None  # as `2>&-` and windows without a terminal have it
        super().__init__(iterable, disable=disable or nobody, file=_Patient(sys.stderr), **options)


@final
class _Patient:
    """A stream that can be written to, whatever has become of it."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> None:
        """Write, or do not."""
        with suppress(OSError, ValueError):  # letters that cannot be written, and closed files, are a ValueError
            self._stream.write(text)

    def flush(self) -> None:
        """Flush, or do not."""
        with suppress(OSError, ValueError):
            self._stream.flush()
