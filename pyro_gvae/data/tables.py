"""Tables of mixed columns as one matrix of floating-point numbers, and back; a missing cell is NaN."""

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ..config.data import Wanted, column_kinds
from ..config.names import ColumnKind
from ..models.table import Column

if TYPE_CHECKING:  # imported where used: it takes a second
    import pandas as pd

#: More levels than this, most of which occur once, are names and not categories.
MOST_LEVELS = 100
#: Counts from here on are not exact as float32.
MOST_COUNT = 2**24
#: Whole numbers that begin above this are measured and not counted.
LEAST_MEASURED = 20


def guess_kind(cells: "pd.Series[Any]") -> ColumnKind:
    """Guess the kind of a column from its cells.

    Two levels are binary, and texts categorical. Numbers that are whole, not negative and begin near 0 are counts.
    Other numbers are positive if they are so and span a factor of 10, and real if not.

    Raises:
        ValueError: if all cells are missing, or they are texts that nearly all differ.

    Example:
        >>> import pandas as pd
        >>> [guess_kind(pd.Series(cells)) for cells in (["a", "b", "c"], [True, False], [0, 3, 7], [0.1, 5.0, 2.5])]
        ['categorical', 'binary', 'count', 'positive']
    """
    from pandas.api.types import is_bool_dtype, is_numeric_dtype

    found = cells.dropna()
    different = found.nunique()
    if not different:
        raise ValueError(
            f"Expected cells in column '{cells.name}', but found that all are missing. "
            f"Try --columns {cells.name}=ignore."
        )
    if different == 2 or is_bool_dtype(found):
        return "binary" if different == 2 else "categorical"
    if different == 1:
        return "categorical"
    if not is_numeric_dtype(found):
        if different > max(MOST_LEVELS, len(found) // 2):
            raise ValueError(
                f"Expected levels in column '{cells.name}', but found {different} different texts in {len(found)} "
                f"cells. Try --columns {cells.name}=ignore, or {cells.name}=categorical."
            )
        return "categorical"
    numbers = found.to_numpy(np.float64)
    if (numbers == numbers.round()).all() and 0 <= numbers.min() <= LEAST_MEASURED and numbers.max() < MOST_COUNT:
        return "count"
    return "positive" if numbers.min() > 0 and numbers.max() >= 10 * numbers.min() else "real"


def columns_of(
    frame: "pd.DataFrame", kinds: str | Mapping[str, Wanted] | None = None, *, train: Sequence[int] | None = None
) -> tuple[Column, ...]:
    """Describe the columns of a table.

    Args:
        frame: the table.
        kinds: the kinds of some columns, such as `{"age": "real"}` or "age=real,name=ignore"; others are guessed.
        train: numbers of the training rows, whose means and standard deviations standardize; all if None.

    Raises:
        ValueError: if a column is unknown, no column is left, or cells are not of the kind that was asked for.

    Example:
        >>> import pandas as pd
        >>> columns_of(pd.DataFrame({"age": [30.0, 50.0], "sex": ["f", "m"]}), "age=real")[0]
        Column(name='age', kind='real', levels=(), centre=40.0, spread=10.0)
    """
    wanted: Mapping[str, Wanted] = column_kinds(kinds) if isinstance(kinds, str) or kinds is None else kinds
    names = [str(name) for name in frame.columns]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"Expected columns of different names, but found '{twice}' twice.")
    for name in wanted:
        if name not in names:
            raise ValueError(f"Expected a column among {', '.join(names)}, but found '{name}'.")
    found = []
    for name, (_, cells) in zip(names, frame.items(), strict=True):
        kind = wanted.get(name)
        if kind != "ignore":
            found.append(_column(name, guess_kind(cells) if kind is None else kind, cells, train))
    if not found:
        raise ValueError("Expected a table with columns, but found none.")
    return tuple(found)


def _column(name: str, kind: ColumnKind, cells: "pd.Series[Any]", train: Sequence[int] | None) -> Column:
    if kind in ("binary", "categorical"):
        levels = tuple(text_of(level) for level in _in_order(cells.dropna().unique()))
        if not levels or (kind == "binary" and len(levels) != 2):
            raise ValueError(
                f"Expected {'two levels' if levels else 'cells'} in the {kind} column '{name}', but found "
                f"{', '.join(levels[:5]) or 'that all are missing'}. "
                f"Try --columns {name}=categorical, or {name}=ignore."
            )
        return Column(name, kind, levels)
    plain = _numbers(Column(name, kind), cells)
    values = _scaled(kind, plain if train is None else plain[np.asarray(train)])
    values = values[~np.isnan(values)]
    if not len(values):
        raise ValueError(f"Expected training cells in column '{name}', but found none. Try --columns {name}=ignore.")
    spread = float(values.std())
    return Column(name, kind, (), float(values.mean()), spread if spread > 0 else 1.0)


def _scaled(kind: ColumnKind, values: np.ndarray) -> np.ndarray:
    if kind == "positive":
        return np.log(values)
    return np.log1p(values) if kind == "count" else values


def encoded(frame: "pd.DataFrame", columns: Sequence[Column]) -> Tensor:
    """Write the cells of a table as numbers (M, D), float32, with NaN for missing ones.

    Raises:
        ValueError: if a column is absent, or a cell is not of its kind or has a level that is unknown; the sentence
            says in which row, from 1.

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
    cells = [_encoded(column, by_name[column.name]) for column in columns]
    return torch.from_numpy(np.stack(cells, 1).astype(np.float32))


def _encoded(column: Column, cells: "pd.Series[Any]") -> np.ndarray:
    if column.levels:
        number = {level: float(index) for index, level in enumerate(column.levels)}
        known = {value: number.get(text_of(value)) for value in cells.dropna().unique()}
        for value, index in known.items():
            if index is None:
                row = int(np.flatnonzero((cells == value).to_numpy())[0])
                raise ValueError(
                    f"Expected one of {', '.join(column.levels[:10])} in column '{column.name}', but found "
                    f"'{text_of(value)}' in row {row + 1}. Try leaving the cell empty."
                )
        return np.array([np.nan if found is None else found for found in map(known.get, cells)], np.float64)
    values = _numbers(column, cells)
    return values if column.kind == "count" else (_scaled(column.kind, values) - column.centre) / column.spread


def _numbers(column: Column, cells: "pd.Series[Any]") -> np.ndarray:
    """Return the cells of a column of numbers, and refuse the first that it cannot have."""
    import pandas as pd

    values = pd.to_numeric(cells, errors="coerce").to_numpy(np.float64, na_value=np.nan)
    wrong = (np.isnan(values) & ~cells.isna().to_numpy()) | np.isinf(values)
    if column.kind == "positive":
        wrong |= values <= 0
    if column.kind == "count":
        wrong |= (values < 0) | (values >= MOST_COUNT) | (values != values.round()) & ~np.isnan(values)
    if wrong.any():
        row = int(np.flatnonzero(wrong)[0])
        raise ValueError(
            f"Expected {column.kind} cells in column '{column.name}', but found '{cells.iloc[row]}' in row {row + 1}. "
            "Try another kind for the column, or an empty cell."
        )
    return values


def decoded(x: Tensor, columns: Sequence[Column]) -> "pd.DataFrame":
    """Write numbers (M, D) as the cells that they stand for: levels as text, numbers in their own units.

    A number between two levels stands for the nearer one.

    Example:
        >>> columns = [Column("sex", "binary", ("f", "m")), Column("age", "real", (), 40.0, 10.0)]
        >>> decoded(torch.tensor([[0.8, -1.0]]), columns).to_dict("records")
        [{'sex': 'm', 'age': 30.0}]
    """
    import pandas as pd

    return pd.DataFrame({column.name: _decoded(column, x[:, place]) for place, column in enumerate(columns)})


def beside(found: "pd.DataFrame", reconstructed: "pd.DataFrame") -> "pd.DataFrame":
    """Put each row of a table above its reconstruction; the first column tells which is which."""
    import pandas as pd

    rows = pd.concat([found.assign(**{"": "data"}), reconstructed.assign(**{"": "from its code"})])
    rows = rows.sort_index(kind="stable").reset_index(drop=True)
    return rows[["", *found.columns]]


def _decoded(column: Column, x: Tensor) -> Any:
    values = x.detach().cpu().numpy().astype(np.float64)
    if column.levels:
        return [None if np.isnan(value) else column.levels[round(value)] for value in values]
    if column.kind == "count":
        return values
    values = column.centre + column.spread * values
    return np.exp(values) if column.kind == "positive" else values


def _in_order(levels: Iterable[Any]) -> list[Any]:
    try:
        return sorted(levels)
    except TypeError:  # of numbers and texts
        return sorted(levels, key=str)


def text_of(level: Any) -> str:
    """Numbers are the same level whether a file has them as 1 or, beside a missing cell, as 1.0."""
    if isinstance(level, float | np.floating) and float(level).is_integer():
        return str(int(level))
    return str(level)
