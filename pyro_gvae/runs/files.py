"""Write files atomically, and append JSON lines.

So a run folder survives a crash at any moment: files are replaced atomically, and `metrics.jsonl` is only appended to,
so that at worst its last line is torn.
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
    """Yield a temporary path in the same folder, whose file replaces `path` when the block ends without an error.

    If the block raises, the temporary file is removed and the old file is unchanged. The data are on the disk before
    the file is renamed, so a reader sees either the old or the new file, never a part of one.

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
    """Write `text` to `path` as UTF-8, atomically (see `replacing`)."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented, strict JSON, atomically; a number that is not finite becomes `null`."""
    write_text_atomic(path, json.dumps(_plain(value), indent=2, allow_nan=False) + "\n")


def append_json_line(path: Path, record: dict[str, Any]) -> None:
    """Append `record` as one line of strict JSON; it is on the disk when this returns.

    A number that is not finite becomes `null`. If a crash has torn the last line, the record starts a new line, so
    that only the torn line is lost. If the disk is full, the file is unchanged.

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
        if size is not None and path.stat().st_size > size:  # the disk is full, and a part of the line was written
            os.truncate(path, size)
        raise


def _plain(value: Any) -> Any:
    """Convert a value to JSON's types."""
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
    """Write one line of strict JSON for each record, atomically; `null` as in `append_json_line`."""
    write_text_atomic(path, "".join(json.dumps(_plain(record), allow_nan=False) + "\n" for record in records))
