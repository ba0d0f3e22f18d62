"""Convert the cells of a table to numbers, and levels to text."""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np

from ..config.names import ColumnKind

if TYPE_CHECKING:  # imported where used: it takes a second
    import pandas as pd

#: Counts of at least this are not exact in float32.
MOST_COUNT = 2**24


def as_numbers(cells: "pd.Series[Any]") -> np.ndarray:
    """Return cells as float64, with NaN where they are missing or not numbers."""
    import pandas as pd

    return pd.to_numeric(cells, errors="coerce").to_numpy(np.float64, na_value=np.nan)


def numbers_in(name: str, kind: ColumnKind, cells: "pd.Series[Any]", rows: np.ndarray | None = None) -> np.ndarray:
    """Return the cells of a numeric column as numbers; refuse invalid ones.

    Args:
        name: the name of the column.
        kind: its kind.
        cells: some of its cells.
        rows: their row numbers in the table, from 0; None if these are all rows.

    Raises:
        ValueError: if a cell is not of the kind.
    """
    values = as_numbers(cells)
    wrong = (np.isnan(values) & ~cells.isna().to_numpy()) | np.isinf(values)
    if kind == "positive":
        wrong |= values <= 0
    if kind == "count":
        wrong |= (values < 0) | (values >= MOST_COUNT) | (values != values.round()) & ~np.isnan(values)
    if wrong.any():
        place = int(np.flatnonzero(wrong)[0])
        raise wrong_number(name, kind, cells.iloc[place], place if rows is None else int(rows[place]))
    return values


def wrong_number(name: str, kind: ColumnKind, cell: Any, row: int) -> ValueError:
    """Return the error for an invalid cell; `row` counts from 0."""
    return ValueError(
        f"Expected {kind} cells in column '{name}', but found '{cell}' in row {row + 1}. "
        "Try another kind for the column, or an empty cell."
    )


def scaled(kind: ColumnKind, values: np.ndarray) -> np.ndarray:
    """Transform numbers before they are standardized: logarithms of positive cells, and log(1 + count)."""
    if kind == "positive":
        return np.log(values)
    return np.log1p(values) if kind == "count" else values


def in_order(levels: Iterable[Any]) -> list[Any]:
    """Sort levels, by their text if they are numbers and texts."""
    try:
        return sorted(levels)
    except TypeError:
        return sorted(levels, key=str)


def text_of(level: Any) -> str:
    """Return a level as text; whole floats as integers, since missing cells turn a column of 1 into 1.0."""
    if isinstance(level, float | np.floating) and float(level).is_integer():
        return str(int(level))
    return str(level)


def check_labelled(missing: np.ndarray, rows: np.ndarray) -> None:
    """Refuse a row without a label.

    Args:
        missing: a mask of the rows without a label.
        rows: the numbers of the rows, from 0.

    Raises:
        ValueError: if there is one.
    """
    if missing.any():
        raise ValueError(
            f"Expected a label in each row, since the model is of data given their labels, but found none in row "
            f"{int(rows[missing.argmax()]) + 1}. Try without such rows, or a semi-supervised model."
        )
