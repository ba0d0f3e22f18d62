"""Make data sets from arrays, tables, torch data sets and files, and split them into training and held-out rows."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from ..config.data import Wanted, check_shares
from .cells import check_labelled, text_of, warn_of_unknown
from .dataset import Dataset, generator_for
from .files import read_file
from .items import items_of
from .sliced import AnyDataset, SlicedDataset
from .tables import columns_of, encoded

if TYPE_CHECKING:
    import pandas as pd


def dataset_of(
    data: Any,
    *,
    name: str | None = None,
    columns: str | Mapping[str, Wanted] | None = None,
    labels: Any = None,
    every_label: bool = False,
    test_share: float = 0.2,
    validation_share: float = 0.0,
    seed: int = 0,
) -> Dataset:
    """Make a data set, and split it.

    Args:
        data: the path of a file (see :func:`~pyro_gvae.data.files.read_file`); a `pandas.DataFrame`; a tensor or an
            array, (M, D) for a table, and (M, H, W) or (M, 1, H, W) for grey images; a torch data set or a
            `DataLoader`, where the first element of each item is used, and the second as a label. For flat images, pass
            `x.unflatten(-1, (H, W))`.
        name: the name of the data in reports.
        columns: kinds of columns of a table, such as "age=real,sex=binary", where the guess is wrong.
        labels: the name of the column with labels, or labels (M,); a missing label, None or NaN, becomes -1.
        every_label: refuse rows without a label.
        test_share: share of the rows held out for tests, unless the file has a split.
        validation_share: share of the rows held out for validation; of the training rows if the file has a split.
        seed: seed of the split.

    Returns:
        The data set. The cells of a table are numbers, as :class:`~pyro_gvae.models.table.Column` describes.

    Raises:
        ValueError: if the data cannot be read or split, or have no such columns.
        OSError: if a file cannot be read.

    Example:
        >>> import pandas as pd
        >>> found = dataset_of(pd.DataFrame({"age": [30.5, 50.0, None, 41.0, 70.0], "sex": list("fmmfm")}))
        >>> [(column.name, column.kind) for column in found.columns], found.train.shape, found.test.shape
        ([('age', 'real'), ('sex', 'binary')], torch.Size([4, 2]), torch.Size([1, 2]))
    """
    check_shares(test_share, validation_share)
    if isinstance(data, str | Path):
        path = Path(data)
        data, known, sizes = read_file(path)
        name = path.name if name is None else name
    else:
        data, known = _rows_of(data)
        sizes = None
    frame = as_frame(data)
    if labels is not None:
        frame, known = _labels_of(frame, labels)
    num_rows = len(data)
    numbers, classes = (None, None) if known is None else label_numbers(known, num_rows, every_label=every_label)
    if sizes is None:
        test, validation, train = _split(num_rows, test_share, validation_share, seed)
    else:
        test, validation, train = _own_split(sizes, validation_share, seed)
    if frame is not None:
        described = columns_of(frame, columns, train=train.tolist())
        x, shape = encoded(frame, described), (1, len(described))
    elif columns:
        raise ValueError("Expected a table for kinds of columns, but found images. Try without columns.")
    else:
        x, described, shape = as_images(data), None, tuple(data.shape[-2:])

    def part(rows: Tensor) -> dict[str, Any]:
        return {"x": x[rows].flatten(1), "labels": None if numbers is None else numbers[rows]}

    parts = {"train": part(train), "test": part(test)} | ({"validation": part(validation)} if len(validation) else {})
    named = {key: own["x"] for key, own in parts.items()}
    named |= {f"{key}_labels": own["labels"] for key, own in parts.items()}
    return Dataset(name or "data", image_shape=shape, columns=described, classes=classes, **named)


def _rows_of(data: Any) -> tuple[Any, Any]:
    """Return data and labels of a Python object."""
    if isinstance(data, DataLoader):
        data = data.dataset
    if isinstance(data, TorchDataset):
        return items_of(data)
    return data, None


def _labels_of(frame: "pd.DataFrame | None", labels: Any) -> "tuple[pd.DataFrame | None, np.ndarray]":
    """Return the table without the column of labels, if they are in one, and the labels."""
    if not isinstance(labels, str):
        return frame, np.asarray(labels)
    if frame is None:
        raise ValueError(f"Expected a table for labels in a column, but found images and labels='{labels}'.")
    if labels not in frame:
        raise ValueError(f"Expected labels in a column among {', '.join(map(str, frame))}, but found '{labels}'.")
    return frame.drop(columns=labels), frame[labels].to_numpy()


def as_frame(data: Any) -> "pd.DataFrame | None":
    """Return data as a table; None if they are images."""
    import pandas as pd

    if isinstance(data, pd.DataFrame):
        return data.reset_index(drop=True)
    if isinstance(data, Tensor):  # NumPy has no bfloat16
        data = data.detach().cpu()
        data = (data.float() if data.dtype is torch.bfloat16 else data).numpy()
    values = data
    if not isinstance(values, np.ndarray) or values.ndim not in (2, 3, 4):
        found = f"shape {values.shape}" if isinstance(values, np.ndarray) else type(data).__name__
        raise ValueError(
            f"Expected a table (M, D) or grey images (M, H, W), but found {found}. Try numpy.asarray(data), or "
            "pandas.DataFrame(data)."
        )
    return pd.DataFrame(values, columns=[f"x{place}" for place in range(values.shape[1])]) if values.ndim == 2 else None


def as_images(data: Any) -> Tensor:
    """Convert grey images, with 8 bits or in [0, 1], to float32 (M, H, W).

    Raises:
        ValueError: if they have colours.
    """
    x = torch.as_tensor(data)
    if x.dim() == 4 and x.shape[1] == 1:
        x = x.squeeze(1)
    if x.dim() != 3:
        raise ValueError(f"Expected grey images (M, H, W), but found shape {tuple(x.shape)}. Try the mean of colours.")
    return x.float() / 255 if x.dtype is torch.uint8 else x.float()


def label_numbers(labels: Any, num_rows: int, *, every_label: bool = False) -> tuple[Tensor, tuple[str, ...]]:
    """Number labels 0, 1, .. in sorted order, with -1 for missing ones; return the numbers and the names.

    Raises:
        ValueError: if there are more or fewer labels than rows.

    Warns:
        RuntimeWarning: if -1 is a class beside 0, 1, .. .

    Example:
        >>> label_numbers(["b", "a", None, "b"], 4)
        (tensor([ 1,  0, -1,  1]), ('a', 'b'))
    """
    import pandas as pd

    if np.shape(labels) != (num_rows,):
        raise ValueError(f"Expected {num_rows} labels, one for each row, but found shape {np.shape(labels)}.")
    numbers, names = pd.factorize(pd.Series(labels), sort=True)
    if every_label:
        check_labelled(numbers < 0, np.arange(len(numbers)))
    classes = tuple(map(text_of, names))
    warn_of_unknown(classes)
    return torch.from_numpy(np.asarray(numbers, np.int64)), classes


def numbers_among(labels: Any, classes: tuple[str, ...], *, every_label: bool = False) -> Tensor:
    """Return the number of each label among known classes, or -1 if it is missing.

    Raises:
        ValueError: if one is of another class.

    Example:
        >>> numbers_among(["b", "a", None], ("a", "b"))
        tensor([ 1,  0, -1])
    """
    import pandas as pd

    series, place = pd.Series(labels), {name: number for number, name in enumerate(classes)}
    missing = series.isna().to_numpy()
    found = zip(series, missing, strict=True)
    numbers = np.array([-1 if gap else place.get(text_of(label), -2) for label, gap in found])
    if (numbers == -2).any():
        row = int(np.flatnonzero(numbers == -2)[0])
        raise ValueError(
            f"Expected a label among {', '.join(classes[:10])}, but found '{text_of(series[row])}' in row {row + 1}."
        )
    if every_label:
        check_labelled(numbers < 0, np.arange(len(numbers)))
    return torch.from_numpy(numbers.astype(np.int64))


def _split(num_rows: int, test_share: float, validation_share: float, seed: int) -> list[Tensor]:
    """Return the numbers of test, validation and training rows, each in order."""
    order = torch.randperm(num_rows, generator=generator_for("split", seed), device="cpu")
    sizes = [max(1, round(test_share * num_rows)), round(validation_share * num_rows)]
    if num_rows - sum(sizes) < 1:
        raise ValueError(
            f"Expected rows to train on and to test with, but found {num_rows} row{'s' * (num_rows != 1)} in all."
        )
    return [part.sort().values for part in order.split([*sizes, num_rows - sum(sizes)])]


def _own_split(sizes: Mapping[str, int], validation_share: float, seed: int) -> list[Tensor]:
    """Return the same for rows with a split of their own: training, optional validation, then test rows."""
    rows = torch.arange(sum(sizes.values())).split(list(sizes.values()))
    parts = dict(zip(sizes, rows, strict=True))
    validation = parts.get("validation", rows[0][:0])
    if validation_share == 0 or len(validation):
        return [parts["test"], validation, parts["train"]]
    order = torch.randperm(sizes["train"], generator=generator_for("split", seed), device="cpu")
    size = max(1, round(validation_share * len(order)))
    return [parts["test"], order[:size].sort().values, order[size:].sort().values]


def with_validation(data: Dataset, share: float, *, seed: int = 0) -> Dataset:
    """Hold out a share of the training data for validation; the rest stays in order.

    Raises:
        ValueError: if nothing is left to train on.

    Example:
        >>> mine = Dataset("mine", torch.rand(10, 6), torch.rand(2, 6), (2, 3))
        >>> [len(x) for x in (with_validation(mine, 0.2).train, with_validation(mine, 0.2).validation)]
        [8, 2]
    """
    if share == 0 or data.validation is not None:
        return data
    check_shares(1e-9, share)
    size, order = max(1, round(share * len(data.train))), generator_for("split", seed)
    rows = torch.randperm(len(data.train), generator=order, device="cpu").to(data.train.device)
    held, kept = (part.sort().values for part in rows.split([size, len(rows) - size]))
    labels = data.train_labels
    return replace(
        data,
        train=data.train[kept],
        validation=data.train[held],
        train_labels=None if labels is None else labels[kept],
        validation_labels=None if labels is None else labels[held],
    )


def described(data: AnyDataset) -> str:
    """Describe data in words: rows, columns with their kinds, missing cells, and the split.

    Example:
        >>> from pyro_gvae import load
        >>> described(load("digits"))
        'digits: 1,797 grey images of 8 x 8 pixels; 1,437 train, 360 test'
    """
    parts = {"train": data.train, "validation": data.validation, "test": data.test}
    sizes = {part: len(x) for part, x in parts.items() if x is not None}
    split = ", ".join(f"{size:,} {part}" for part, size in sizes.items())
    total = sum(sizes.values())
    if data.columns is None:
        height, width = data.image_shape
        return f"{data.name}: {total:,} grey images of {height} x {width} pixels; {split}"
    if isinstance(data, SlicedDataset):
        missing, how = list(data.missing or ()), "; read in slices"
    else:
        held = [x for x in (data.train, data.validation, data.test) if x is not None]
        missing, how = torch.cat([x.isnan() for x in held]).sum(0).tolist(), ""
    width = max(len(column.name) for column in data.columns)
    lines = [
        f"{data.name}: {total:,} rows, {len(data.columns)} columns, {sum(missing):,} missing cells; {split}{how}",
        *(
            f"  {column.name:<{width}}  {column.kind:<11}  {_detail(column.levels)}{_missing(gaps)}".rstrip()
            for column, gaps in zip(data.columns, missing, strict=True)
        ),
    ]
    return "\n".join(lines)


def _detail(levels: tuple[str, ...]) -> str:
    shown = ", ".join(levels[:4]) + (", .." if len(levels) > 4 else "")
    return f"{len(levels)} level{'s' * (len(levels) > 1)}: {shown}  " if levels else ""


def _missing(number: int) -> str:
    return f"{number:,} missing" if number else ""
