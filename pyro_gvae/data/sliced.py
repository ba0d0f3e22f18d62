"""A data set that is read in slices, and the one pass over the file that describes its columns."""

import warnings
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias, final

import torch

from ..config.data import DATA_MEMORY, Wanted, check_shares
from ..models.table import Column
from ..runtime.memory import in_words
from .blocks import ParquetRows
from .cells import check_labelled, text_of, warn_of_unknown
from .dataset import Dataset
from .parquet import BYTES_OF_A_CELL, ParquetTable
from .rows import Rows
from .shares import Shares
from .summaries import Summary
from .tables import summaries_of

#: The most levels of a column of a table that is read in slices.
MOST_SLICED_LEVELS = 2**16


@final
@dataclass(frozen=True, eq=False)
class SlicedDataset:
    """A table whose rows are read in slices; :func:`sliced_dataset` makes one.

    Args:
        name: the name of the data in reports.
        train: training rows (M, D).
        test: test rows (M', D).
        columns: the columns, whose cells are encoded as :class:`~pyro_gvae.models.table.Column` says.
        label: the column of labels, if there is one.
        validation: validation rows (M'', D), or None.
        missing: the number of missing cells of each column, in all parts, if they were counted.
        labelled: the number of labelled training rows of each class, if there is a column of labels.
    """

    name: str
    train: Rows
    test: Rows
    columns: tuple[Column, ...]
    label: Column | None = None
    validation: Rows | None = None
    missing: tuple[int, ...] | None = None
    labelled: tuple[int, ...] | None = None

    def __repr__(self) -> str:
        sizes = ", ".join(f"{part} {len(getattr(self, part))}" for part in self.parts)
        return f"SlicedDataset('{self.name}', {sizes}, {len(self.columns)} columns)"

    @property
    def parts(self) -> tuple[str, ...]:
        """The names of its parts."""
        return ("train", "test") if self.validation is None else ("train", "validation", "test")

    @property
    def image_shape(self) -> tuple[int, int]:
        """The shape (1, D) of a row, since the rows are not images."""
        return 1, len(self.columns)


#: A data set in memory, or one that is read in slices.
AnyDataset: TypeAlias = Dataset | SlicedDataset


def sliced_dataset(
    path: Path | str,
    *,
    name: str | None = None,
    columns: str | Mapping[str, Wanted] | None = None,
    labels: str | None = None,
    every_label: bool = False,
    labelled_share: float = 1.0,
    test_share: float = 0.2,
    validation_share: float = 0.0,
    seed: int = 0,
    memory: float = DATA_MEMORY * 1e9,
    device: str | torch.device = "cpu",
) -> SlicedDataset:
    """Make a data set from a Parquet file that is too large for memory.

    One pass over the file finds the kinds of columns, their levels, and means and standard deviations of the training
    rows. A hash of its number decides to which part a row belongs.

    Args:
        path: the file.
        name: the name of the data in reports.
        columns: kinds of columns, such as "age=real,sex=binary", where the guess is wrong.
        labels: the column with labels; a missing label becomes -1.
        every_label: refuse rows without a label.
        labelled_share: share of the training labels that are kept, chosen by a hash of the row numbers.
        test_share: share of the rows held out for tests.
        validation_share: share of the rows held out for validation.
        seed: seed of the split.
        memory: bytes of rows that are in memory while training; a row group is read as a whole.
        device: the device of batches.

    Returns:
        The data set, whose rows are read when they are used.

    Raises:
        ValueError: if the file is damaged, has no such columns, or too few rows.
        OSError: if it cannot be read.

    Warns:
        RuntimeWarning: if two row groups take more than the memory.

    Example:
        >>> import pandas as pd
        >>> from tempfile import mkdtemp
        >>> file = Path(mkdtemp()) / "people.parquet"
        >>> pd.DataFrame({"age": range(90), "sex": ["f", "m", None] * 30}).to_parquet(file, row_group_size=10)
        >>> found = sliced_dataset(file, columns="age=real", validation_share=0.1)
        >>> found, found.missing
        (SlicedDataset('people.parquet', train 74, validation 5, test 11, 2 columns), (0, 30))
    """
    check_shares(test_share, validation_share)
    table, shares = ParquetTable(Path(path)), Shares(test_share, validation_share, seed, labelled_share)
    if labels is not None and labels not in table.names:
        raise ValueError(f"Expected labels in a column among {', '.join(table.names)}, but found '{labels}'.")
    names = [one for one in table.names if one != labels]
    summaries = summaries_of(names, columns, most_levels=MOST_SLICED_LEVELS)
    of_labels = [] if labels is None else [Summary(labels, "categorical", most_levels=MOST_SLICED_LEVELS)]
    described = [*summaries, *of_labels]
    labelled = _summarize(table, described, labels, shares, every_label=every_label)
    for level, count in labelled.items():
        if not count:
            raise ValueError(
                f"Expected a training row with a label of each class, but found that "
                f"labelled_share={labelled_share:g} keeps none of '{level}'. Try a larger share, or another seed."
            )
    label = of_labels[0].column() if of_labels else None
    warn_of_unknown(() if label is None else label.levels)
    found = tuple(summary.column() for summary in summaries)
    return split_rows(
        table,
        found,
        label,
        shares,
        name=name,
        memory=memory,
        device=device,
        missing=tuple(summary.missing for summary in summaries),
        labelled=None if label is None else tuple(labelled[level] for level in label.levels),
    )


def _summarize(
    table: ParquetTable, summaries: list[Summary], labels: str | None, shares: Shares, *, every_label: bool
) -> Counter[str]:
    """Add all rows to the summaries of columns; count the training rows that keep each label, also where none does."""
    labelled: Counter[str] = Counter()
    for cells, rows in table.frames(names=[one.name for one in summaries]):
        train = shares.of_part("train", int(rows[0]), len(rows))
        for summary in summaries:
            summary.add(cells[summary.name], train, rows)
        if labels is not None:
            lacking = cells[labels].isna().to_numpy()
            if every_label:
                check_labelled(lacking, rows)
            known = cells[labels][train & ~lacking]
            labelled.update(_counts(known[shares.keeps_labels("train", rows)[train & ~lacking]]))
            labelled.update(dict.fromkeys(_counts(known), 0))
    return labelled


def _counts(labels: Any) -> dict[str, int]:
    """Count the rows of each label; no label is missing."""
    return {text_of(level): int(count) for level, count in labels.value_counts().items() if count}


def large_table(path: Path | None, memory: float) -> ParquetTable | None:
    """Return the table of a Parquet file whose cells, as numbers, take more bytes than `memory`; None for other files.

    The size is computed from the file's metadata, so that every machine makes the same decision.
    """
    if path is None or path.suffix != ".parquet" or not path.expanduser().is_file():
        return None
    table = ParquetTable(path)
    return table if table.num_bytes > memory else None


def split_rows(
    table: ParquetTable,
    columns: tuple[Column, ...],
    label: Column | None,
    shares: Shares,
    *,
    name: str | None = None,
    memory: float = DATA_MEMORY * 1e9,
    device: str | torch.device = "cpu",
    missing: tuple[int, ...] | None = None,
    labelled: tuple[int, ...] | None = None,
) -> SlicedDataset:
    """Make a data set from a file whose columns are known, without reading its rows.

    Args:
        table: the file.
        columns: its columns.
        label: the column of labels, if there is one.
        shares: the assignment of rows to parts.
        name: the name of the data in reports.
        memory: bytes of rows that are in memory while training.
        device: the device of batches.
        missing: the number of missing cells of each column, if they were counted.
        labelled: the number of labelled training rows of each class, if there is a column of labels.

    Raises:
        ValueError: if there are no rows to train on, or to test with.
    """

    def rows(part: str) -> ParquetRows:
        return ParquetRows(table, columns, label, shares, part, memory=memory, device=device)

    train, validation, test = map(rows, ("train", "validation", "test"))
    if not len(train) or not len(test):
        raise ValueError(f"Expected rows to train on and to test with, but found {table.num_rows} rows in all.")
    largest = int(table.sizes.max()) * len(columns) * BYTES_OF_A_CELL
    if 2 * largest > memory:
        rows_each = max(1, int(memory / 8 / BYTES_OF_A_CELL / len(columns)))
        warnings.warn(
            f"A row group of '{table.path.name}' takes {in_words(largest)}, and two are in memory: more than the "
            f"{in_words(memory)} that its rows may take. Try writing the file with row_group_size={rows_each}.",
            RuntimeWarning,
            stacklevel=3,
        )
    return SlicedDataset(
        name or table.path.name,
        train,
        test,
        columns,
        label=label,
        validation=validation if len(validation) else None,
        missing=missing,
        labelled=labelled,
    )
