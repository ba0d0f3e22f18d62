"""Tables as files: CSV and JSON lines, which commands read back, and Parquet for other programs; needs pandas."""

import json
import warnings
from pathlib import Path

import pandas as pd

from ..runtime.extras import import_extra
from .files import replacing, write_text_atomic


def require_parquet() -> None:
    """Check that Parquet can be written.

    Raises:
        ValueError: If pyarrow is absent.
    """
    import_extra("pyarrow", extra="parquet", purpose="Parquet files")


def write_parquet(path: Path, frame: pd.DataFrame) -> None:
    """Write the columns of `frame` (not its index) as Parquet, atomically."""
    with replacing(path) as temporary:
        frame.to_parquet(temporary, engine="pyarrow", index=False)


def write_csv(path: Path, frame: pd.DataFrame) -> None:
    """Write the columns of `frame` (not its index) as CSV, atomically."""
    write_text_atomic(path, frame.to_csv(index=False))


def read_json_lines(path: Path) -> pd.DataFrame:
    """Read a file of JSON lines into a table; leave out lines that a crash has torn, with a warning.

    Args:
        path: A file that `append_json_line` wrote.

    Returns:
        One row for each complete line, in order; `null` is NaN. `frame.attrs["torn_lines"]` lists the numbers
        (from 1) of the lines left out.

    Warns:
        RuntimeWarning: If a line was left out.
    """
    records, torn = [], []
    for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").split("\n"), start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            torn.append(number)
        else:
            records.append(record)
    if torn:
        numbers = ", ".join(map(str, torn))
        warnings.warn(f"{path}: left out torn line {numbers} (an interrupted write).", RuntimeWarning, stacklevel=2)
    frame = pd.DataFrame(records)
    # A column of only null would have type object, and arithmetic on it would fail.
    frame = frame.astype({name: float for name in frame if frame[name].isna().all()})
    frame.attrs["torn_lines"] = torn
    return frame
