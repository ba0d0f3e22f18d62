"""Write a command's output to a terminal, a pipe, a file, or a stream that has been closed."""

import errno
import io
import os
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from ..runtime.progress import is_progress_hidden

#: Replacements for characters in tables that a stream's encoding cannot write.
PLAIN = str.maketrans({"±": "+/-", "–": "-"})

#: The folder of this package.
PACKAGE = Path(__file__).parents[1]


def open_streams() -> None:
    """Open the standard streams that this process was started without, and let none fail on a character.

    Otherwise the next file to be opened would get the number of a closed stream, and libraries would write into it.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115 (for as long as the process)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # as stderr does


def say(text: str, stream: TextIO) -> None:
    """Write a line of text; it is no error if the reader has closed the stream.

    Characters that the stream's encoding does not have are replaced.
    """
    encoding = stream.encoding or "utf-8"
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        text = text.translate(PLAIN).encode(encoding, "backslashreplace").decode(encoding)
    try:
        print(text, file=stream, flush=True)
    except OSError as error:
        if error.errno not in (errno.EPIPE, errno.EIO):  # the other end of a pipe or a terminal is closed
            raise
        discard(stream)


def tell(text: str) -> None:
    """Write on stderr which data were read and what is trained, from the main process only; not with --quiet."""
    from ..runtime.distributed import is_main  # imported here, since it imports torch

    if is_main() and not is_progress_hidden():
        say(text, sys.stderr)


def listed(lines: Mapping[str, Any]) -> str:
    """Return names and values as lines, with the values aligned.

    Example:
        >>> print(listed({"seed": 0, "epochs": 20}))
        seed    0
        epochs  20
    """
    width = max(map(len, lines))
    return "\n".join(f"{name.ljust(width)}  {value}" for name, value in lines.items())


@contextmanager
def warnings_as_sentences() -> Iterator[None]:
    """Print this package's warnings as one sentence, like its errors; other packages' warnings as usual."""
    before = warnings.formatwarning

    def formatted(
        message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
    ) -> str:
        if Path(filename).is_relative_to(PACKAGE):
            return f"pyro-gvae: warning: {message}\n"
        return before(message, category, filename, lineno, line)

    warnings.formatwarning = formatted
    try:
        yield
    finally:
        warnings.formatwarning = before


def discard(stream: TextIO) -> None:
    """Send the stream's further output, and what is still in its buffer, to the null device."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def check_letters(arguments: list[str]) -> None:
    """Refuse arguments that are not text, since they are written into text files.

    Raises:
        ValueError: if one has bytes that are invalid in the system's encoding.
    """
    for word in arguments:
        try:
            word.encode()
        except UnicodeEncodeError:
            raise ValueError(
                f"Expected arguments that are text, but found {word.encode(errors='surrogateescape')!r}. Try another "
                "name, or a locale of UTF-8."
            ) from None
