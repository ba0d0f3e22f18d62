"""The parts of a data set, as evaluations take them."""

from torch import Tensor

from .dataset import bernoulli_draw, generator_for
from .rows import Part, Rows
from .sliced import AnyDataset, SlicedDataset

#: The most rows used to show a model, for a data set that is read in slices.
MOST_SHOWN = 10_000


def fixed_part(data: AnyDataset, name: str, num_data: int | None = None, *, seed: int = 0) -> Part:
    """Return the first images of a part, the same in every call, for evaluation.

    Args:
        data: a data set.
        name: "train", "test", or "validation" if there is such a part.
        num_data: how many images; all if None or if there are fewer.
        seed: seed with which dynamically binarized training images are sampled.

    Raises:
        ValueError: if there is no such part, or `num_data` is not positive.

    Example:
        >>> import torch
        >>> from pyro_gvae import Dataset
        >>> data = Dataset("mine", torch.zeros(100, 6), torch.ones(20, 6), (2, 3))
        >>> fixed_part(data, "test", 5).x.shape
        torch.Size([5, 6])
    """
    _check_part(data, name)
    if num_data is not None and num_data < 1:
        raise ValueError(f"Expected num_data of at least 1, but found {num_data}.")
    if isinstance(data, SlicedDataset):
        rows = getattr(data, name)
        return rows.first(len(rows) if num_data is None else num_data)
    x, labels = getattr(data, name)[:num_data], getattr(data, f"{name}_labels")
    if name == "train" and data.binarize == "dynamic":
        x = bernoulli_draw(x, generator_for("fixed train", seed))
    return Part(x, None if labels is None else labels[:num_data])


def rows_of_part(data: AnyDataset, name: str) -> Rows | None:
    """Return the rows of a part that is read in slices; None for data in memory.

    Raises:
        ValueError: if there is no such part.
    """
    _check_part(data, name)
    return getattr(data, name) if isinstance(data, SlicedDataset) else None


def _check_part(data: AnyDataset, name: str) -> None:
    if name not in data.parts:
        raise ValueError(f"Expected a part among {', '.join(data.parts)}, but found '{name}'.")


def shown_part(data: AnyDataset, num_data: int | None = None) -> tuple[str, Tensor]:
    """Return the name and the data of the part on which models are shown: test, or train if there is no test part.

    Args:
        data: a data set.
        num_data: how many data; None for all, or for the first 10,000 if they are read in slices.
    """
    if isinstance(data, SlicedDataset):
        return "test", data.test.first(MOST_SHOWN if num_data is None else num_data).x
    name, x = ("test", data.test) if len(data.test) else ("train", fixed_part(data, "train").x)
    return name, x[:num_data]
