"""The parts of a data set, as evaluations take them."""

from typing import NamedTuple

from torch import Tensor

from .dataset import Dataset, bernoulli_draw, generator_for


class Part(NamedTuple):
    """The training or the test data of a data set, or the first of them."""

    x: Tensor  # (M, D)
    labels: Tensor | None  # (M,)


def fixed_part(data: Dataset, name: str, num_data: int | None = None, *, seed: int = 0) -> Part:
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
        >>> data = Dataset("mine", torch.zeros(100, 6), torch.ones(20, 6), (2, 3))
        >>> fixed_part(data, "test", 5).x.shape
        torch.Size([5, 6])
    """
    if name not in data.parts:
        raise ValueError(f"Expected a part among {', '.join(data.parts)}, but found '{name}'.")
    if num_data is not None and num_data < 1:
        raise ValueError(f"Expected num_data of at least 1, but found {num_data}.")
    x, labels = getattr(data, name)[:num_data], getattr(data, f"{name}_labels")
    if name == "train" and data.binarize == "dynamic":
        x = bernoulli_draw(x, generator_for("fixed train", seed))
    return Part(x, None if labels is None else labels[:num_data])


def shown_part(data: Dataset) -> tuple[str, Tensor]:
    """Return the name and the data of the part on which models are shown: test, or train where there is no other."""
    return ("test", data.test) if len(data.test) else ("train", fixed_part(data, "train").x)
