"""A run folder: atomic files, and a JSON line for each evaluation.

A run folder survives a crash at any moment: whole files are replaced atomically, and `metrics.jsonl` only grows,
so that at worst its last line is torn. Everything here reads and writes results; nothing here trains.
"""

import json
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yields a temporary path beside `path`, which takes its place when the block ends well.

    If the block raises, the temporary file is removed and the old file stays as it was. The data reach the disk
    before the name does, so that a reader sees the old file or the new one and never half of either.

    Args:
        path: The file to write or to replace; its folder is made if it is absent.

    Yields:
        The path to write to, in the same folder.

    Example:
        >>> from tempfile import mkdtemp
        >>> target = Path(mkdtemp()) / "note.txt"
        >>> with replacing(target) as temporary:
        ...     _ = temporary.write_text("whole")
        >>> target.read_text()
        'whole'
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text_atomic(path: Path, text: str) -> None:
    """Writes `text` to `path` as UTF-8: wholly or not at all (see `replacing`)."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Writes `value` as indented, strict JSON, atomically; a number that is not finite becomes `null`."""
    write_text_atomic(path, json.dumps(_plain(value), indent=2, allow_nan=False) + "\n")


def append_json_line(path: Path, record: dict[str, Any]) -> None:
    """Appends `record` as one line of strict JSON, on the disk when this returns.

    A number that is not finite becomes `null`. If a crash left the last line torn, the record starts a new one, so
    that only the torn line is lost. If the disk is full, the file is as it was.

    Args:
        path: The file, made if it is absent.
        record: Names to numbers, strings, `None`, or NumPy and torch scalars.
    """
    line = json.dumps(_plain(record), allow_nan=False).encode() + b"\n"
    size = path.stat().st_size if path.exists() else None
    try:
        with path.open("a+b") as file:
            if size:
                file.seek(-1, os.SEEK_END)
                line = line if file.read(1) == b"\n" else b"\n" + line
            file.write(line)
            file.flush()
            os.fsync(file.fileno())
    except OSError:
        if size is not None and path.stat().st_size > size:  # a part of the line, on a disk that is full
            os.truncate(path, size)
        raise


def _plain(value: Any) -> Any:
    """The same value in JSON's own types."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    if hasattr(value, "item"):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_json_lines(path: Path, records: list[dict[str, Any]]) -> None:
    """Writes one line of strict JSON for each record, atomically; `null` as in `append_json_line`."""
    write_text_atomic(path, "".join(json.dumps(_plain(record), allow_nan=False) + "\n" for record in records))
