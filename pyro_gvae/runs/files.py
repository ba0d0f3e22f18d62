"""Read the files of a run folder, write them atomically, and append JSON lines.

A run folder survives a crash at any moment: files are replaced atomically, and `metrics.jsonl` is only appended to, so
at worst its last line is torn. A folder from somebody else is safe to use, even if it is changed meanwhile (see
`staying_inside`): nothing here follows a link, changes a file that a hard link shares with another folder, waits for a
pipe, or reads a file that is too large for the memory.
"""

import errno
import json
import math
import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from secrets import token_hex
from typing import IO, Any

import psutil

from ..config.json import fits
from .inside import in_place, sync_folder

try:
    import fcntl
except ImportError:  # Windows, where nobody can remove a file that is open
    fcntl = None  # type: ignore[assignment]

#: The name of a temporary file: the beginning of the final name, and 16 digits that nobody can predict.
UNFINISHED = re.compile(r"\..*\.[0-9a-f]{16}\.tmp")
#: The largest file that is read at once, as a share of the machine's memory.
MOST_MEMORY = 0.25
_NO_LINK = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)


def _opened(path: Path, flags: int) -> IO[bytes]:
    """Open a regular file; refuse a link, and a pipe or a device, on which reading could block."""
    try:
        with in_place(path) as place:
            descriptor = os.open(place, flags | _NO_LINK, 0o666)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise _no_file(path) from error
        raise
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise _no_file(path)
    return os.fdopen(descriptor, "r+b" if flags & os.O_RDWR else "rb")


def _opened_to_change(path: Path) -> IO[bytes]:
    """Open a file for reading and writing; copy it first if it has hard links, whose other names keep the old file."""
    file = _opened(path, os.O_RDWR | os.O_CREAT)
    if os.fstat(file.fileno()).st_nlink == 1:
        return file
    with file, replacing(path) as temporary:
        temporary.write_bytes(file.read())
    return _opened(path, os.O_RDWR)


def _no_file(path: Path) -> ValueError:
    return ValueError(f"Expected a file, but found that '{path}' is a link or not a regular file. Try removing it.")


def read_bytes(path: Path) -> bytes:
    """Read a whole file.

    Raises:
        ValueError: If it is a link, not a regular file, or too large for the memory of this machine.
        OSError: If it is absent or cannot be read.
    """
    with _opened(path, os.O_RDONLY) as file:
        size = os.fstat(file.fileno()).st_size
        if size > MOST_MEMORY * psutil.virtual_memory().total:
            raise ValueError(f"Expected a file that fits into memory, but found that '{path}' has {size:,} bytes.")
        return file.read()


def read_text(path: Path) -> str:
    """Read a text file as `read_bytes` does; bytes that are not valid UTF-8 become the replacement character."""
    return read_bytes(path).decode("utf-8", "replace")


def parse_json(text: str) -> Any:
    """Parse strict JSON: no NaN or infinity, and no integer of more than 64 bits.

    Raises:
        ValueError: If the text is anything else; the message continues the sentence "..., but found that".

    Example:
        >>> parse_json('{"a": 1}')
        {'a': 1}
    """
    try:
        return json.loads(text, parse_constant=_number, parse_float=_number, parse_int=_whole_number)
    except json.JSONDecodeError as error:
        raise ValueError(f"it is not valid JSON at line {error.lineno}, column {error.colno}") from None
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _number(text: str) -> float:
    if not math.isfinite(value := float(text)):
        raise ValueError(f"it contains {text[:20]}, which is not a finite number")
    return value


def _whole_number(text: str) -> int:
    if len(text) > 20 or abs(value := int(text)) >= 2**63:
        raise ValueError(f"it contains {text[:20]}.., which has more than 64 bits")
    return value


def read_records(path: Path, kind: type[Any] | None = None) -> tuple[list[dict[str, Any]], list[int]]:
    """Read JSON lines; also return the numbers (from 1) of the lines that are torn or do not have the given names.

    Args:
        path: A file that `append_json_line` wrote.
        kind: The names that every line must have, with their types; any names if None.
    """
    records, torn = [], []
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            record = parse_json(line)
        except ValueError:
            record = None
        plain = isinstance(record, dict) and not any(isinstance(value, list | dict) for value in record.values())
        if plain and (kind is None or fits(kind, record)):
            records.append(record)
        else:
            torn.append(number)
    return records, torn


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path in the same folder, whose file replaces `path` when the block ends without an error.

    If the block raises, the temporary file is removed and the old file is unchanged. The data are on the disk before
    the file is renamed, so a reader sees either the old or the new file, never a part of one. Only its writer can read
    the temporary file; `remove_unfinished` removes it if the process is killed. The folder is created if it is absent.

    Example:
        >>> from tempfile import mkdtemp
        >>> target = Path(mkdtemp()) / "note.txt"
        >>> with replacing(target) as temporary:
        ...     _ = temporary.write_text("whole")
        >>> target.read_text()
        'whole'
    """
    mask = os.umask(0o77)  # setting the mask is the only way to read it
    os.umask(mask)
    with in_place(path, make=True) as place:
        temporary, descriptor = _new_file(place)
        held: int | None = descriptor
        try:
            yield temporary
            os.fsync(descriptor)
            temporary.chmod(0o666 & ~mask)
            if fcntl is None:
                held = os.close(descriptor)  # Windows cannot rename an open file
            temporary.replace(place)
        finally:
            if held is not None:
                os.close(held)
            temporary.unlink(missing_ok=True)
        sync_folder(place.parent)


def _new_file(path: Path) -> tuple[Path, int]:
    """Create a new file, which this process locks for as long as the descriptor is open."""
    while True:
        temporary = path.with_name(f".{path.name[:100]}.{token_hex(8)}.tmp")
        descriptor = os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_RDWR | _NO_LINK, 0o600)
        if fcntl is None:
            return temporary, descriptor
        with suppress(OSError):  # a file system without locks: remove_unfinished then removes nothing
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        if os.fstat(descriptor).st_nlink:
            return temporary, descriptor
        os.close(descriptor)  # another process removed it as a leftover before it was locked


def remove_unfinished(folder: Path, depth: int = 2) -> None:
    """Remove the temporary files that killed processes left in a folder, and in its subfolders down to this depth.

    Files that a living process is writing stay, and so do those that cannot be removed.
    """
    with suppress(OSError, ValueError), in_place(folder / "file") as place, os.scandir(place.parent) as entries:
        for entry in entries:
            path = folder / entry.name
            with suppress(OSError, ValueError):
                if entry.is_dir(follow_symlinks=False) and depth:
                    remove_unfinished(path, depth - 1)
                elif UNFINISHED.fullmatch(entry.name) and entry.is_file(follow_symlinks=False):
                    remove_unless_held(path)


def remove(path: Path) -> None:
    """Remove a file, or the link of that name, if there is one."""
    with suppress(FileNotFoundError), in_place(path) as place:
        place.unlink()


def remove_unless_held(path: Path) -> None:
    """Remove a file that no process has locked.

    Raises:
        OSError: If a process has locked it, or the file is absent or cannot be removed.
    """
    with in_place(path) as place:
        if fcntl is None:
            place.unlink()
            return
        with _opened(place, os.O_RDWR) as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            place.unlink()


def write_text_atomic(path: Path, text: str) -> None:
    """Write `text` to `path` as UTF-8, atomically (see `replacing`)."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented, strict JSON, atomically; a number that is not finite becomes `null`."""
    write_text_atomic(path, json.dumps(plain(value), indent=2, allow_nan=False) + "\n")


def append_json_line(path: Path, record: dict[str, Any]) -> None:
    """Append `record` as one line of strict JSON; the line is on the disk when this returns.

    A number that is not finite becomes `null`. If a crash has torn the last line, the record starts a new line, so
    that only the torn line is lost. If the disk is full, the file is unchanged.

    Args:
        path: The file, created if it is absent.
        record: Names to numbers, strings, `None`, or NumPy and torch scalars.

    Raises:
        ValueError: If `path` is a link.
        OSError: If the file cannot be written.
    """
    line = json.dumps(plain(record), allow_nan=False).encode() + b"\n"
    size = None
    try:
        with _opened_to_change(path) as file:
            size = file.seek(0, os.SEEK_END)
            if size:
                file.seek(-1, os.SEEK_END)
                line = line if file.read(1) == b"\n" else b"\n" + line
            file.write(line)
            file.flush()
            os.fsync(file.fileno())
    except OSError:
        if size is not None:
            cut(path, size)  # the disk is full, and a part of the line was written
        raise
    if not size:
        with in_place(path) as place:
            sync_folder(place.parent)


def cut(path: Path, size: int) -> bool:
    """Truncate a file to its first `size` bytes; create it if it is absent.

    Returns:
        Whether the file had that many bytes.

    Raises:
        ValueError: If `path` is a link.
    """
    with _opened_to_change(path) as file:
        found = os.fstat(file.fileno()).st_size
        os.ftruncate(file.fileno(), min(size, found))
    return found >= size


def plain(value: Any) -> Any:
    """Convert a value to JSON's types."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    if hasattr(value, "item"):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_json_lines(path: Path, records: list[dict[str, Any]]) -> None:
    """Write one line of strict JSON for each record, atomically; `null` as in `append_json_line`."""
    write_text_atomic(path, "".join(json.dumps(plain(record), allow_nan=False) + "\n" for record in records))
