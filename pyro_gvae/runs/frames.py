"""Write tables as CSV, JSON lines, and Parquet for other programs; read JSON lines back."""

import csv
import io
import math
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..runtime.extras import import_extra
from .files import read_records, replacing, write_text_atomic

if TYPE_CHECKING:
    import pandas as pd


def require_parquet() -> None:
    """Check that Parquet can be written.

    Raises:
        ValueError: If pyarrow is absent.
    """
    import_extra("pyarrow", extra="parquet", purpose="Parquet files")


def write_parquet(path: Path, frame: "pd.DataFrame") -> None:
    """Write the columns of `frame` (not its index) as Parquet, atomically."""
    with replacing(path) as temporary:
        frame.to_parquet(temporary, engine="pyarrow", index=False)


def write_csv(path: Path, frame: "pd.DataFrame") -> None:
    """Write the columns of `frame` (not its index) as CSV, atomically."""
    write_text_atomic(path, frame.to_csv(index=False))


def write_records(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows with the same names as CSV, as :func:`write_csv` does, without pandas."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    for row in rows:
        is_empty = {
            name: value is None or (isinstance(value, float) and math.isnan(value)) for name, value in row.items()
        }
        writer.writerow({name: "" if is_empty[name] else value for name, value in row.items()})
    write_text_atomic(path, text.getvalue())


def read_lines(path: Path, kind: type[Any] | None = None) -> tuple[list[dict[str, Any]], list[int]]:
    """Read a file of JSON lines; leave out lines that a crash has torn, with a warning, and return their numbers.

    Args:
        path: A file that `append_json_line` wrote.
        kind: The names that a line has at least, with their types; any if None.

    Warns:
        RuntimeWarning: If a line was left out.
    """
    records, torn = read_records(path, kind)
    if torn:
        numbers = ", ".join(map(str, torn))
        warnings.warn(f"{path}: left out torn line {numbers} (an interrupted write).", RuntimeWarning, stacklevel=3)
    return records, torn


def read_json_lines(path: Path, kind: type[Any] | None = None) -> "pd.DataFrame":
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
    import pandas as pd  # imported here, since a table of one run needs none

    records, torn = read_lines(path, kind)
    frame = pd.DataFrame(records)
    # A column of only null would have type object, and arithmetic on it would fail.
    frame = frame.astype({name: float for name in frame if frame[name].isna().all()})
    frame.attrs["torn_lines"] = torn
    return frame
