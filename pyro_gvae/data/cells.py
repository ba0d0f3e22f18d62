"""Convert the cells of a table to numbers, and levels to text."""

import warnings
from collections.abc import Hashable, Iterable
from typing import TYPE_CHECKING, Any

import numpy as np

from ..config.names import COUNTED, ColumnKind

if TYPE_CHECKING:  # imported where used: it takes a second
    import pandas as pd

#: Counts of at least this are not exact in float32.
MOST_COUNT = 2**24
#: Numbers of at least this size are refused: their squares, which standard deviations need, would overflow.
MOST_NUMBER = 1e100
#: Cells that have no unit in which they could be numbers, as pandas names them, and what to call them.
TIMES = {
    **dict.fromkeys(("datetime64", "datetime", "date", "period"), "dates"),
    **dict.fromkeys(("timedelta64", "timedelta", "time"), "times"),
    "complex": "complex numbers",
}


def as_numbers(cells: "pd.Series[Any]") -> np.ndarray:
    """Return cells as float64, with NaN where they are missing or not numbers; dates and times are no numbers."""
    import pandas as pd

    if kind_of_cells(cells) in TIMES:
        return np.full(len(cells), np.nan)
    return pd.to_numeric(cells, errors="coerce").to_numpy(np.float64, na_value=np.nan)


def kind_of_cells(cells: "pd.Series[Any]") -> str:
    """Return what cells are, as `pandas.api.types.infer_dtype` names it: "string", "floating", "decimal", "date", .."""
    from pandas.api.types import infer_dtype

    return str(infer_dtype(cells, skipna=True))


def different_levels(name: str, cells: "pd.Series[Any]", rows: np.ndarray | None = None) -> Any:
    """Return the different cells of a column that are not missing.

    Args:
        name: the name of the column.
        cells: some of its cells.
        rows: their row numbers in the table, from 0; None if these are all rows.

    Raises:
        ValueError: if a cell is a list or another collection.
    """
    try:
        return cells.dropna().unique()
    except TypeError as error:
        place = next(place for place, cell in enumerate(cells) if not isinstance(cell, Hashable))
        raise ValueError(
            f"Expected numbers or texts in column '{name}', but found a {type(cells.iloc[place]).__name__} in row "
            f"{(place if rows is None else int(rows[place])) + 1}. Try a column for each of its values."
        ) from error


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
    wrong = (np.isnan(values) & ~cells.isna().to_numpy()) | (np.abs(values) >= MOST_NUMBER)
    if kind == "positive":
        wrong |= values <= 0
    if kind in COUNTED:
        wrong |= (values < 0) | (values >= MOST_COUNT) | (values != values.round()) & ~np.isnan(values)
    missing = cells.isna().to_numpy()
    if kind == "word" and missing.any():
        place = int(missing.argmax())
        raise ValueError(
            f"Expected a count of the word '{name}' in each row, without which the number of words is unknown, but "
            f"found none in row {(place if rows is None else int(rows[place])) + 1}. Try 0, or --columns {name}=count."
        )
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


def warn_of_unknown(classes: Iterable[str]) -> None:
    """Warn if -1, which often marks an unknown label, is a class beside two or more of 0, 1, .. .

    Args:
        classes: the names of the classes.

    Warns:
        RuntimeWarning: if it is.
    """
    others = {*classes} - {"-1"}
    if len(others) > 1 and "-1" in classes and all(name.isdecimal() for name in others):
        warnings.warn(
            "The label -1 is taken as a class. If it stands for an unknown label, leave the cell empty, or pass None "
            "or NaN.",
            RuntimeWarning,
            stacklevel=4,
        )
