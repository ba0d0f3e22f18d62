"""What a command says, whoever listens: a terminal, a pipe, a file, or nobody."""

import errno
import io
import os
import sys
from typing import TextIO

#: Letters that tables have, for streams that cannot write them.
PLAIN = str.maketrans({"±": "+/-", "–": "-"})


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
