"""Collect kind, levels and scale of a column from its cells, slice by slice."""

import math
from typing import TYPE_CHECKING, Any, NamedTuple, final

import numpy as np

from ..config.names import ColumnKind
from ..models.table import Column
from .cells import (
    MOST_COUNT,
    MOST_NUMBER,
    TIMES,
    as_numbers,
    different_levels,
    in_order,
    kind_of_cells,
    numbers_in,
    scaled,
    text_of,
    wrong_number,
)

if TYPE_CHECKING:  # imported where used: it takes a second
    import pandas as pd

#: Texts with more levels than this, most of which occur once, are names rather than categories.
MOST_LEVELS = 20
#: Whole numbers that begin above this are measurements rather than counts.
LEAST_MEASURED = 20


class Moments(NamedTuple):
    """Size, mean and variance of a set of numbers."""

    size: int = 0
    mean: float = 0.0
    variance: float = 0.0

    def joined(self, values: np.ndarray) -> "Moments":
        """Return the moments of these numbers together with others, which must be finite.

        Example:
            >>> Moments().joined(np.array([1.0, 3.0])).joined(np.array([8.0]))
            Moments(size=3, mean=4.0, variance=8.666666666666666)
        """
        if not len(values):
            return self
        new = Moments(len(values), float(values.mean()), float(values.var()))
        if not self.size:
            return new
        total = self.size + new.size
        share, step = new.size / total, new.mean - self.mean
        variance = (1 - share) * self.variance + share * new.variance + share * (1 - share) * step**2
        return Moments(total, self.mean + share * step, variance)


@final
class Summary:
    """A summary of the cells of a column: kind, levels, scale, missing cells.

    Args:
        name: its name.
        kind: its kind; None guesses it.
        most_levels: the most levels that are held in memory.

    Attributes:
        missing: the number of missing cells.
    """

    def __init__(self, name: str, kind: ColumnKind | None = None, *, most_levels: float = math.inf) -> None:
        self.name, self.missing = name, 0
        self._kind, self._most_levels = kind, most_levels
        self._num_cells = 0
        self._levels: set[Any] = set()  # of numbers, only as many as show whether there are more than two
        self._is_numeric = self._is_whole = True
        self._least, self._most = math.inf, -math.inf
        self._infinite: tuple[Any, int] | None = None
        self._text: tuple[Any, int] | None = None  # the first text that is not a number, and its row
        self._moments: dict[ColumnKind, Moments] = {}

    def add(self, cells: "pd.Series[Any]", train: np.ndarray | None = None, rows: np.ndarray | None = None) -> None:
        """Add cells to the summary.

        Args:
            cells: some of the column's cells.
            train: the cells whose mean and standard deviation count, as a mask or positions; all if None.
            rows: their row numbers in the table, from 0; None if these are all rows.

        Raises:
            ValueError: if a cell is not of the kind that was asked for, or there are too many levels.
        """
        found = cells.dropna()
        self.missing += len(cells) - len(found)
        self._num_cells += len(found)
        kind = self._kind
        if kind in ("binary", "categorical"):
            self._add_levels(different_levels(self.name, cells, rows))
        elif kind is not None:
            self._add_moments(kind, numbers_in(self.name, kind, cells, rows), train)
        elif len(found):
            self._guess(cells, found, train, rows)

    def _guess(
        self, cells: "pd.Series[Any]", found: "pd.Series[Any]", train: np.ndarray | None, rows: np.ndarray | None
    ) -> None:
        from pandas.api.types import is_numeric_dtype

        what = kind_of_cells(found)
        if what in TIMES:
            raise ValueError(
                f"Expected numbers or texts in column '{self.name}', but found {TIMES[what]}. Try a column of numbers, "
                f"such as days since the first date, or --columns {self.name}=ignore, or {self.name}=categorical."
            )
        if not is_numeric_dtype(found) and what != "decimal":
            self._is_numeric = False
            self._add_levels(different_levels(self.name, cells, rows))
            texts = np.flatnonzero(np.isnan(as_numbers(cells)) & ~cells.isna().to_numpy())
            if len(texts) and self._text is None:
                place = int(texts[0])
                self._text = cells.iloc[place], place if rows is None else int(rows[place])
            return
        if len(self._levels) < 3:
            self._levels.update(found.unique()[:3].tolist())
        values = as_numbers(cells)
        infinite = np.flatnonzero(np.abs(values) >= MOST_NUMBER)
        if len(infinite) and self._infinite is None:
            place = int(infinite[0])
            self._infinite = cells.iloc[place], place if rows is None else int(rows[place])
        numbers = values[~np.isnan(values)]
        self._is_whole = self._is_whole and bool((numbers == numbers.round()).all())
        self._least, self._most = min(self._least, numbers.min()), max(self._most, numbers.max())
        if self._infinite is None:  # otherwise the column is refused
            self._add_moments("real", values, train)
            if self._least > 0:
                self._add_moments("positive", values, train)
            if self._least >= 0:
                self._add_moments("count", values, train)

    def _add_levels(self, levels: Any) -> None:
        self._levels.update(levels)
        if len(self._levels) > self._most_levels:
            raise ValueError(
                f"Expected at most {self._most_levels:,} levels in column '{self.name}', which are held in memory, but "
                f"found more. Try --columns {self.name}=ignore."
            )

    def _add_moments(self, kind: ColumnKind, values: np.ndarray, train: np.ndarray | None) -> None:
        values = scaled(kind, values if train is None else values[train])
        self._moments[kind] = self._moments.get(kind, Moments()).joined(values[~np.isnan(values)])

    def kind(self) -> ColumnKind:
        """Return the kind that was asked for, or a guess.

        Raises:
            ValueError: if all cells are missing, or they are texts that nearly all differ.
        """
        if self._kind is not None:
            return self._kind
        different = len({text_of(level) for level in self._levels})
        if not different:
            raise ValueError(
                f"Expected cells in column '{self.name}', but found that all are missing. "
                f"Try --columns {self.name}=ignore."
            )
        if different <= 2:
            return "binary" if different == 2 else "categorical"
        if not self._is_numeric:
            self._check_texts(different)
            return "categorical"
        if self._is_whole and 0 <= self._least <= LEAST_MEASURED and self._most < MOST_COUNT:
            return "count"
        return "positive" if self._least > 0 and self._most >= 10 * self._least else "real"

    def _check_texts(self, different: int) -> None:
        """Refuse texts that nearly all differ, or are nearly all numbers."""
        name = self.name
        if different <= MOST_LEVELS:
            return
        if self._text is None:
            if different > self._num_cells // 2:
                raise ValueError(
                    f"Expected levels in column '{name}', but found {different} different numbers, written as texts, "
                    f"in {self._num_cells} cells. Try --columns {name}=real, {name}=ignore, or {name}=categorical."
                )
            return
        text, row = self._text
        numbers = sum(_is_number(level) for level in self._levels)
        if 2 * numbers > different:
            raise ValueError(
                f"Expected numbers in column '{name}', but found '{text}' in row {row + 1}. Try an empty cell, or "
                f"--columns {name}=categorical, or {name}=ignore."
            )
        if different > self._num_cells // 2:
            raise ValueError(
                f"Expected levels in column '{name}', but found {different} different texts in {self._num_cells} "
                f"cells, such as '{text}'. Try --columns {name}=ignore, or {name}=categorical."
            )

    def column(self) -> Column:
        """Return the description of the column.

        Raises:
            ValueError: if the cells do not fit the kind.
        """
        name, kind = self.name, self.kind()
        if kind in ("binary", "categorical"):
            levels = tuple(dict.fromkeys(text_of(level) for level in in_order(self._levels)))
            if not levels or (kind == "binary" and len(levels) != 2):
                raise ValueError(
                    f"Expected {'two levels' if levels else 'cells'} in the {kind} column '{name}', but found "
                    f"{', '.join(levels[:5]) or 'that all are missing'}. "
                    f"Try --columns {name}=categorical, or {name}=ignore."
                )
            return Column(name, kind, levels)
        if self._infinite is not None:
            raise wrong_number(name, kind, *self._infinite)
        moments = self._moments.get(kind, Moments())
        if not moments.size:
            raise ValueError(
                f"Expected training cells in column '{name}', but found none. Try --columns {name}=ignore."
            )
        spread = math.sqrt(moments.variance)
        return Column(name, kind, (), moments.mean, spread if spread > 0 else 1.0)


def _is_number(level: Any) -> bool:
    try:
        return not math.isnan(float(level))
    except (TypeError, ValueError):
        return False
