"""Labels of data: the classes, how many labels are known, and which of them a program is given."""

from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..config.models import Labels
from .columns import Data, first
from .dataset import Dataset, generator_for
from .parts import MOST_SHOWN, shown_part
from .rows import Rows
from .sliced import AnyDataset, SlicedDataset


def use_of_labels(program: Any) -> Labels:
    """Return how a program uses labels; the caller's own program takes its data alone, or a tuple `(x, y)`."""
    found: Labels = getattr(program, "labels", Labels.UNUSED)
    return found


def class_names(data: AnyDataset) -> tuple[str, ...]:
    """Return the names of the classes, or their numbers if they have none.

    Raises:
        ValueError: if no datum has a label, or nearly all labels differ, as measurements would.

    Example:
        >>> y = torch.tensor([0, 2, -1, 0, -1])
        >>> class_names(Dataset("mine", torch.zeros(5, 2), torch.zeros(1, 2), (1, 2), y))
        ('0', '1', '2')
    """
    names = _names(data)
    if not names:
        raise ValueError(f"Expected data with labels, but found none in '{data.name}'. Try labels=COLUMN.")
    num_rows = sum(len(getattr(data, part)) for part in data.parts)
    if len(names) < 2 or 2 * len(names) > num_rows:
        raise ValueError(
            f"Expected labels of two classes or more, each of several rows, but found {len(names)} different labels of "
            f"{num_rows} rows in '{data.name}', such as '{names[0]}'. Try another column."
        )
    return names


def _names(data: AnyDataset) -> tuple[str, ...]:
    if isinstance(data, SlicedDataset):
        return () if data.label is None else data.label.levels
    parts = [getattr(data, f"{part}_labels") for part in data.parts]
    known = torch.cat([own[own >= 0] for own in parts if own is not None] or [torch.zeros(0, dtype=torch.long)])
    if not len(known):
        return ()
    return tuple(map(str, range(int(known.max()) + 1))) if data.classes is None else data.classes


def num_labelled(data: AnyDataset) -> int:
    """Return the number of training rows with a label."""
    if isinstance(data, SlicedDataset):
        return sum(data.labelled or ())
    return 0 if data.train_labels is None else int((data.train_labels >= 0).sum())


def labels_in_words(data: AnyDataset) -> str:
    """Describe in words how many training rows have labels, and the classes.

    Example:
        >>> labels_in_words(Dataset("mine", torch.zeros(4, 2), torch.zeros(1, 2), (1, 2), torch.tensor([0, 1, 1, -1])))
        'labels: 3 of 4 training rows, 2 classes: 0, 1'
    """
    names = class_names(data)
    shown = ", ".join(names[:10]) + (", .." if len(names) > 10 else "")
    return f"labels: {num_labelled(data):,} of {len(data.train):,} training rows, {len(names)} classes: {shown}"


def with_labelled_share(data: Dataset, share: float, *, seed: int = 0) -> Dataset:
    """Hide the labels of all but a given share of the training rows; keep at least one label of each class.

    Labels of other parts, which only evaluations use, are kept.

    Args:
        data: a data set with labels.
        share: the share of the labels to keep.
        seed: the seed of the choice.

    Raises:
        ValueError: if there are no labels.

    Example:
        >>> mine = Dataset("mine", torch.zeros(8, 2), torch.zeros(1, 2), (1, 2), torch.arange(8) % 2)
        >>> (with_labelled_share(mine, 0.5).train_labels >= 0).sum()
        tensor(4)
    """
    labels = data.train_labels
    if labels is None:
        raise ValueError(f"Expected training data with labels, but found none in '{data.name}'. Try labels=COLUMN.")
    order = torch.randperm(len(labels), generator=generator_for("labelled", seed), device="cpu").to(labels.device)
    kept = torch.full_like(labels, -1)
    for label in labels[labels >= 0].unique():
        rows = order[labels[order] == label]
        kept[rows[: max(1, round(share * len(rows)))]] = label
    return replace(data, train_labels=kept)


class Given(NamedTuple):
    """Data in the form that a program takes: x (M, D), or x with labels (M,).

    Attributes:
        train: training data with the labels that the program learns from.
        watched: training data in the form used to evaluate the program.
        validation: validation data in that form, if there are any.
        test: test data in that form, if there are any.
        labels: the labels in `train`, for data in memory.
    """

    train: Data | Rows
    watched: Data | Rows
    validation: Data | Rows | None
    test: Data | Rows | None
    labels: Tensor | None


def given(program: Any, data: AnyDataset | Data) -> Given:
    """Return data in the forms that a program is trained with and evaluated on.

    Raises:
        ValueError: if labels are missing, or of classes that the program does not have.
    """
    if isinstance(data, SlicedDataset):
        return _given_in_slices(program, data)
    if not isinstance(data, Dataset):
        if use_of_labels(program) is Labels.GIVEN and isinstance(data, Tensor):
            raise _absent(program, "data alone")
        return Given(data, data, None, None, None)
    check_labels(program, data)
    held: dict[str, Any] = {
        part: judged(program, getattr(data, part), getattr(data, f"{part}_labels")) for part in data.parts
    }
    labels = None if use_of_labels(program) is Labels.UNUSED else data.train_labels
    train = data.train if labels is None else (data.train, labels)
    return Given(train, held["train"], held.get("validation"), held.get("test"), labels)


def _given_in_slices(program: Any, data: SlicedDataset) -> Given:
    use = use_of_labels(program)
    parts = {part: getattr(data, part) for part in data.parts}
    if use is Labels.UNUSED or (data.label is None and use is Labels.LEARNED):
        return Given(data.train, data.train, data.validation, data.test, None)
    if data.label is None:
        raise _absent(program, "data without labels")
    _check_classes(program, data)
    if use is Labels.LEARNED:
        return Given(data.train.labelled(every=False), data.train, data.validation, data.test, None)
    held = {part: rows.labelled(every=True) for part, rows in parts.items()}
    return Given(held["train"], held["train"], held.get("validation"), held["test"], None)


def _check_classes(program: Any, data: SlicedDataset) -> None:
    names, counts = class_names(data), data.labelled or ()
    if len(names) > program.num_classes:
        raise ValueError(
            f"Expected labels of {program.num_classes} classes, but found {len(names)} in '{data.name}': "
            f"{', '.join(names[:10])}. Try a program of more classes."
        )
    for name, count in zip(names, counts, strict=False):
        if not count and use_of_labels(program) is Labels.GIVEN:
            raise ValueError(
                f"Expected training data of every class, without which p(x | y) is unknown, but found none of '{name}' "
                f"in '{data.name}'. Try another split."
            )


def judged(program: Any, x: Tensor, labels: Tensor | None) -> Data:
    """Return data x (M, D) in the form used for evaluation: with labels (M,) if the program models data given labels.

    Raises:
        ValueError: if labels are missing.
    """
    if use_of_labels(program) is not Labels.GIVEN:
        return x
    if labels is None:
        raise _absent(program, "data without labels")
    if (labels < 0).any():
        raise _absent(program, f"none in row {int((labels < 0).nonzero()[0]) + 1} of {len(labels)}")
    return x, labels


def shown(program: Any, data: AnyDataset, count: int | None = None) -> Data:
    """Return the first data of the part on which models are shown, in the form of :func:`judged`."""
    if isinstance(data, SlicedDataset):
        rows = given(program, data).test
        assert rows is not None
        return first(rows, MOST_SHOWN if count is None else count)
    name, x = shown_part(data, count)
    labels = getattr(data, f"{name}_labels", None)
    return judged(program, x, None if labels is None else labels[: len(x)])


def check_labels(program: Any, data: Dataset) -> None:
    """Refuse labels of classes that a program does not have, or that have no training data.

    Raises:
        ValueError: if there is one.
    """
    use = use_of_labels(program)
    if use is Labels.UNUSED:
        return
    seen = None if data.train_labels is None else data.train_labels.unique()
    for part in data.parts:
        labels = getattr(data, f"{part}_labels")
        if labels is None:
            continue
        if labels.is_floating_point():
            raise ValueError(f"Expected labels as integers, but found {labels.dtype} in '{data.name}'.")
        high = labels >= program.num_classes
        if high.any():
            row = int(high.nonzero()[0])
            raise ValueError(
                f"Expected labels 0 to {program.num_classes - 1}, but found {int(labels[row])} in row {row + 1} of the "
                f"{part} data. Try a program of more classes."
            )
        if use is Labels.GIVEN and seen is not None and not torch.isin(labels, seen).all():
            row = int((~torch.isin(labels, seen)).nonzero()[0])
            raise ValueError(
                f"Expected training data of every class, without which p(x | y) is unknown, but found none of label "
                f"{int(labels[row])}, which row {row + 1} of the {part} data has. Try another split."
            )


def _absent(program: Any, found: str) -> ValueError:
    return ValueError(
        f"Expected a label of each datum for a {type(program).__name__}, which models data given their labels, but "
        f"found {found}. Try a Dataset with labels, a tuple (x, y), or a semi-supervised model."
    )
