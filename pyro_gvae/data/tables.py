"""Convert tables of mixed columns to one matrix of floating-point numbers, and back; missing cells are NaN."""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ..config.data import Wanted, column_kinds
from ..config.names import COUNTED, ColumnKind
from ..models.table import Column
from .cells import numbers_in, scaled, text_of
from .summaries import Summary

if TYPE_CHECKING:  # imported where used: it takes a second
    import pandas as pd

#: The name that pandas gives to a first column without one, which has the numbers or names of the rows.
ROW_NAMES = "Unnamed: 0"
#: All columns whose kind is not given by name.
EVERY_COLUMN = "*"


def guess_kind(cells: "pd.Series[Any]") -> ColumnKind:
    """Guess the kind of a column from its cells.

    Columns of two levels are binary, and of texts categorical. Whole, non-negative numbers starting near 0 are counts.
    Other numbers are positive if they are above 0 and span a factor of 10, and real otherwise.

    Raises:
        ValueError: if all cells are missing, or they are texts that nearly all differ.

    Example:
        >>> import pandas as pd
        >>> [guess_kind(pd.Series(cells)) for cells in (["a", "b", "c"], [True, False], [0, 3, 7], [0.1, 5.0, 2.5])]
        ['categorical', 'binary', 'count', 'positive']
    """
    summary = Summary(str(cells.name))
    summary.add(cells)
    return summary.kind()


def summaries_of(
    names: Sequence[str], kinds: str | Mapping[str, Wanted] | None, *, most_levels: float = math.inf
) -> list[Summary]:
    """Return an empty summary for each column that is not ignored.

    Args:
        names: the names of all columns.
        kinds: the kinds of some columns, such as `{"age": "real"}` or "age=real,name=ignore"; others are guessed, or of
            the kind of `*`. A column that pandas named "Unnamed: 0" has the names of the rows, and is left out.
        most_levels: the most levels of a column that are held in memory.

    Raises:
        ValueError: if a column is unknown, or no column is left.
    """
    wanted: Mapping[str, Wanted] = column_kinds(kinds) if isinstance(kinds, str) or kinds is None else kinds
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"Expected columns of different names, but found '{twice}' twice.")
    for name in wanted:
        if name not in (*names, EVERY_COLUMN):
            raise ValueError(f"Expected a column among {', '.join(names)}, but found '{name}'.")
    found = []
    for name in names:
        kind = wanted.get(name, "ignore" if name == ROW_NAMES else wanted.get(EVERY_COLUMN))
        if kind != "ignore":
            found.append(Summary(name, kind, most_levels=most_levels))
    if not found:
        raise ValueError("Expected a table with columns, but found none.")
    return found


def columns_of(
    frame: "pd.DataFrame", kinds: str | Mapping[str, Wanted] | None = None, *, train: Sequence[int] | None = None
) -> tuple[Column, ...]:
    """Describe the columns of a table.

    Args:
        frame: the table.
        kinds: the kinds of some columns, such as `{"age": "real"}` or "age=real,name=ignore"; others are guessed.
        train: numbers of the training rows, whose means and standard deviations are used; all if None.

    Raises:
        ValueError: if a column is unknown, no column is left, or cells are not of the kind that was asked for.

    Example:
        >>> import pandas as pd
        >>> columns_of(pd.DataFrame({"age": [30.0, 50.0], "sex": ["f", "m"]}), "age=real")[0]
        Column(name='age', kind='real', levels=(), centre=40.0, spread=10.0)
    """
    summaries = summaries_of([str(name) for name in frame.columns], kinds)
    cells = {str(name): own for name, own in frame.items()}
    for summary in summaries:
        summary.add(cells[summary.name], None if train is None else np.asarray(train))
    return tuple(summary.column() for summary in summaries)


def encoded(frame: "pd.DataFrame", columns: Sequence[Column], rows: np.ndarray | None = None) -> Tensor:
    """Encode the cells of a table as numbers (M, D), float32, with NaN for missing cells.

    Args:
        frame: the table, or rows of it.
        columns: the columns to encode.
        rows: the numbers of its rows, from 0, if it is part of a larger table.

    Raises:
        ValueError: if a column is missing, or a cell is not of its kind or has an unknown level; the message gives the
            row, from 1.

    Example:
        >>> import pandas as pd
        >>> frame = pd.DataFrame({"age": [30.0, None], "sex": ["f", "m"]})
        >>> encoded(frame, [Column("sex", "binary", ("f", "m")), Column("age", "real", (), 40.0, 10.0)])
        tensor([[ 0., -1.],
                [ 1., nan]])
    """
    by_name = {str(name): cells for name, cells in frame.items()}
    for column in columns:
        if column.name not in by_name:
            raise ValueError(
                f"Expected a column '{column.name}', but found {', '.join(list(by_name)[:20]) or 'none'}. Try a table "
                "with the columns of the training data; all of its cells may be missing."
            )
    if not len(frame):
        raise ValueError("Expected a table with rows, but found none.")
    cells = [_encoded(column, by_name[column.name], rows) for column in columns]
    return torch.from_numpy(np.stack(cells, 1).astype(np.float32))


def _encoded(column: Column, cells: "pd.Series[Any]", rows: np.ndarray | None) -> np.ndarray:
    import pandas as pd

    if column.levels:
        number = {level: float(index) for index, level in enumerate(column.levels)}
        places, values = pd.factorize(cells)  # -1 where a cell is missing
        known = [number.get(text_of(value)) for value in values]
        if None in known:
            wrong = known.index(None)
            place = int(np.flatnonzero(places == wrong)[0])
            raise ValueError(
                f"Expected one of {', '.join(column.levels[:10])} in column '{column.name}', but found "
                f"'{text_of(values[wrong])}' in row {(place if rows is None else rows[place]) + 1}. Try leaving the "
                "cell empty."
            )
        return np.array([*known, np.nan], np.float64)[places]
    numbers = numbers_in(column.name, column.kind, cells, rows)
    return numbers if column.kind in COUNTED else (scaled(column.kind, numbers) - column.centre) / column.spread


def decoded(x: Tensor, columns: Sequence[Column]) -> "pd.DataFrame":
    """Decode numbers (M, D) to cells: levels as text, numbers in their own units.

    A number between two levels becomes the nearer one.

    Example:
        >>> columns = [Column("sex", "binary", ("f", "m")), Column("age", "real", (), 40.0, 10.0)]
        >>> decoded(torch.tensor([[0.8, -1.0]]), columns).to_dict("records")
        [{'sex': 'm', 'age': 30.0}]
    """
    import pandas as pd

    return pd.DataFrame({column.name: _decoded(column, x[:, place]) for place, column in enumerate(columns)})


def beside(found: "pd.DataFrame", reconstructed: "pd.DataFrame") -> "pd.DataFrame":
    """Put each row of a table above its reconstruction; the first column says which is which."""
    import pandas as pd

    rows = pd.concat([found.assign(**{"": "data"}), reconstructed.assign(**{"": "from its code"})])
    rows = rows.sort_index(kind="stable").reset_index(drop=True)
    return rows[["", *found.columns]]


def _decoded(column: Column, x: Tensor) -> Any:
    values = x.detach().cpu().numpy().astype(np.float64)
    if column.levels:
        return [None if np.isnan(value) else column.levels[round(value)] for value in values]
    if column.kind in COUNTED:
        return values
    values = column.centre + column.spread * values
    return np.exp(values) if column.kind == "positive" else values
