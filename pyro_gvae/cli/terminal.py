"""What a command says, whoever listens: a terminal, a pipe, a file, or nobody."""

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

#: Letters that tables have, for streams that cannot write them.
PLAIN = str.maketrans({"±": "+/-", "–": "-"})

#: The folder of this package.
PACKAGE = Path(__file__).parents[1]


def open_streams() -> None:
    """Open the standard streams that this process was started without, and let none fail of a letter.

    Else the next file that is opened would have the number of a closed stream, and hold what libraries write there.
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
        sys.stdout.reconfigure(errors="replace")  # stderr does likewise


def say(text: str, stream: TextIO) -> None:
    """Write a text and the end of its line; if nobody listens any more, that is the listener's choice and no error.

    Letters that the stream's encoding does not have are replaced by others.
    """
    encoding = stream.encoding or "utf-8"
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        text = text.translate(PLAIN).encode(encoding, "backslashreplace").decode(encoding)
    try:
        print(text, file=stream, flush=True)
    except OSError as error:
        if error.errno not in (errno.EPIPE, errno.EIO):  # a pipe, and a terminal, without another end
            raise
        discard(stream)


def tell(text: str) -> None:
    """Say on stderr, once and beside the results, which data were read; not with --quiet."""
    from ..runtime.distributed import is_main  # imported here, since it imports torch

    if is_main() and not is_progress_hidden():
        say(text, sys.stderr)


def listed(lines: Mapping[str, Any]) -> str:
    """Return names and values as lines, the values below one another.

    Example:
        >>> print(listed({"seed": 0, "epochs": 20}))
        seed    0
        epochs  20
    """
    width = max(map(len, lines))
    return "\n".join(f"{name.ljust(width)}  {value}" for name, value in lines.items())


@contextmanager
def warnings_as_sentences() -> Iterator[None]:
    """Let warnings of this package be a sentence, as its errors are; those of others say where they come from."""
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
    """Write to nobody, from now on, what a stream is given, and what waits in it until the process ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def check_letters(arguments: list[str]) -> None:
    """Refuse arguments that are no text: results name them in files that are.

    Raises:
        ValueError: if one has bytes that the system's encoding does not know.
    """
    for word in arguments:
        try:
            word.encode()
        except UnicodeEncodeError:
            raise ValueError(
                f"Expected arguments that are text, but found {word.encode(errors='surrogateescape')!r}. Try another "
                "name, or a locale of UTF-8."
            ) from None
