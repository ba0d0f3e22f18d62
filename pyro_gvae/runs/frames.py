"""Tables as files: CSV and JSON lines, which commands read back, and Parquet for other programs; needs pandas."""

import warnings
from pathlib import Path
from typing import Any

import pandas as pd

from ..runtime.extras import import_extra
from .files import read_records, replacing, write_text_atomic


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


def read_json_lines(path: Path, kind: type[Any] | None = None) -> pd.DataFrame:
    """Read a file of JSON lines into a table; leave out lines that a crash has torn, with a warning.

    Args:
        path: A file that `append_json_line` wrote.
        kind: The names that a line has at least, with their types; any if None.

    Returns:
        One row for each complete line, in order; `null` is NaN. `frame.attrs["torn_lines"]` lists the numbers
        (from 1) of the lines left out.

    Warns:
        RuntimeWarning: If a line was left out.
    """
    records, torn = read_records(path, kind)
    if torn:
        numbers = ", ".join(map(str, torn))
        warnings.warn(f"{path}: left out torn line {numbers} (an interrupted write).", RuntimeWarning, stacklevel=2)
    frame = pd.DataFrame(records)
    # A column of only null would have type object, and arithmetic on it would fail.
    frame = frame.astype({name: float for name in frame if frame[name].isna().all()})
    frame.attrs["torn_lines"] = torn
    return frame
