"""Which data a command reads, and how they are split: settings that commands share."""

import dataclasses
import typing
from pathlib import Path
from typing import Literal, TypeAlias

from .checks import at_most, positive
from .names import ColumnKind, DatasetName

#: How to treat a column: its kind, or leave it out.
Wanted: TypeAlias = ColumnKind | Literal["ignore"]
#: Gigabytes that the rows of a table take in memory, unless a command says otherwise.
DATA_MEMORY = 0.032


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Choose data.

    Args:
        dataset: What to train on: images (digits and teacher need no files; omniglot in torchvision's split), or one of
            the tables breast_cancer, wine and diabetes, which need no files.
        data: A file of your own instead: a table as .csv, .tsv (both may be compressed as .gz) or .parquet; .npy or
            .npz, where arrays of two dimensions are tables and of three are grey images; or a folder of images, whose
            subfolders are labels. A .npz file with arrays train and test has a split of its own.
        columns: Kinds of the columns of a table, where the guess is wrong: age=real,sex=binary,name=ignore. Kinds are
            binary, categorical, real, positive, count and word (a bag of words); the column * stands for all others.
        labels: The column of a table with the labels of some or all rows; it is not modelled.
        labelled_share: Share of the training labels of each class that semi-supervised learns from, chosen by
            `--split-seed`; the other labels are hidden.
        test_share: Share of the rows of a table or of a file of your own that are held out for tests.
        validation_share: Share of the rows held out for validation, whose ELBO stops stages with --patience; if the
            data have a split, a share of their training data.
        split_seed: Seed of the split.
        data_memory: Gigabytes that the rows of a table may take, at four bytes a cell. A larger .parquet file is read
            in slices that together take at most this much memory; config.json records that.
    """

    dataset: DatasetName = "digits"
    data: Path | None = None
    columns: str | None = None
    labels: str | None = None
    labelled_share: float = 1.0
    test_share: float = 0.2
    validation_share: float = 0.0
    split_seed: int = 0
    data_memory: float = DATA_MEMORY

    @property
    def data_name(self) -> str:
        """The name of the data in reports."""
        return self.dataset if self.data is None else self.data.name

    def check_data(self) -> None:
        """Refuse invalid shares, seeds and kinds of columns.

        Raises:
            ValueError: if there is one.
        """
        check_shares(self.test_share, self.validation_share)
        if not 0 < self.labelled_share <= 1:
            raise ValueError(f"Expected a labelled_share above 0 and of at most 1, but found {self.labelled_share:g}.")
        if self.split_seed < 0:
            raise ValueError(f"Expected split_seed of at least 0, but found {self.split_seed}.")
        positive("data_memory", self.data_memory)
        at_most("data_memory", self.data_memory, 1e9)
        column_kinds(self.columns)


def check_shares(test_share: float, validation_share: float) -> None:
    """Refuse shares of held-out rows that leave nothing to test or to train on.

    Raises:
        ValueError: if the test share is not above 0, the other is negative, or both together are 1 or more.
    """
    if not (0 < test_share < 1 and 0 <= validation_share < 1 - test_share):
        raise ValueError(
            "Expected a test_share above 0 and a validation_share of at least 0 that leave training data, but found "
            f"{test_share:g} and {validation_share:g}."
        )


def column_kinds(text: str | None) -> dict[str, Wanted]:
    """Read kinds of columns.

    Raises:
        ValueError: if a kind is unknown or a column is named twice.

    Example:
        >>> column_kinds("age=real,sex=binary")
        {'age': 'real', 'sex': 'binary'}
    """
    known = (*typing.get_args(ColumnKind), "ignore")
    found: dict[str, Wanted] = {}
    for part in _parts(text or ""):
        name, equals, kind = (word.strip() for word in part.rpartition("="))
        if not equals or not name or kind not in known:
            raise ValueError(f"Expected a column and one of {', '.join(known)}, but found '{part}'. Try age=real.")
        if name in found:
            raise ValueError(f"Expected each column once, but found '{name}' twice.")
        found[name] = typing.cast(Wanted, kind)
    return found


def _parts(text: str) -> list[str]:
    """Split at the commas that follow a kind; other commas belong to the name of a column."""
    parts: list[str] = []
    for piece in filter(None, text.split(",")):
        if parts and "=" not in parts[-1]:
            parts[-1] += f",{piece}"
        else:
            parts.append(piece)
    return parts
