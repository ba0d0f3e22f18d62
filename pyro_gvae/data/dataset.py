"""Data sets: images or rows of a table held in memory as one tensor, checked and binarized.

``batches`` splits a ``Dataset`` into minibatches, and ``datasets`` loads named data sets. Nothing here changes the
global random state, and nothing processes a loaded data set image by image.
"""

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from ..models.categorical_vae import CategoricalVAE
from ..models.table import Column, TableObservation
from ..runtime.rng import derived_seed
from .items import items_of

BINARIZATIONS = ("none", "threshold", "dynamic")
#: The value range of grey images (from 0 to 1).
UNIT = (0.0, 1.0)


@dataclass(frozen=True, eq=False)
class Dataset:
    """Training and test data as tensors; call it with your own images to make a data set.

    :func:`~pyro_gvae.dataset_of` makes and splits a data set from tables, files and more.

    Args:
        name: the name of the data in reports.
        train: training images (M, D) with values in `value_range`.
        test: test images (M', D) with values in `value_range`; (0, D) if there are only training images.
        image_shape: (H, W) with H * W = D, for pictures; (1, D) for tables.
        train_labels: integers (M,), or None.
        test_labels: integers (M',), or None.
        teacher: the model that the images were sampled from, if it is known.
        binarize: how ``binarized`` made the images; with "dynamic", ``epoch_batches`` samples ``train`` anew.
        value_range: the smallest and largest value that images may have; ``observed`` changes it.
        columns: the columns of a table, whose cells are encoded as :class:`~pyro_gvae.models.table.Column` says, NaN if
            they are missing; None for images.
        validation: held-out data (M'', D), or None; their ELBO then stops stages, instead of that of the test data.
        validation_labels: integers (M'',), or None.
        vocabulary: the D words whose counts the data are, or None.
        classes: the names of labels 0, 1, ..; None if they have none. A label of -1 is unknown.

    Raises:
        ValueError: if images are not finite or outside of their range, or do not match their shape or their labels.

    Example:
        >>> from pyro_gvae.data.batches import epoch_batches
        >>> mine = Dataset("mine", torch.rand(100, 6), torch.rand(20, 6), (2, 3))
        >>> [len(x) for x in epoch_batches(mine, 40, seed=0, epoch=0)]
        [40, 40, 20]
    """

    name: str
    train: Tensor
    test: Tensor
    image_shape: tuple[int, int]
    train_labels: Tensor | None = None
    test_labels: Tensor | None = None
    teacher: CategoricalVAE | None = None
    binarize: str = "none"
    value_range: tuple[float, float] = UNIT
    columns: tuple[Column, ...] | None = None
    validation: Tensor | None = None
    validation_labels: Tensor | None = None
    vocabulary: tuple[str, ...] | None = None
    classes: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        check_binarize(self.binarize)
        if self.binarize == "dynamic":
            check_grey(self.value_range)
        dim = math.prod(self.image_shape)
        if self.vocabulary is not None and len(self.vocabulary) != dim:
            raise ValueError(f"Expected {dim} words, one for each value of a datum, but found {len(self.vocabulary)}.")
        for part in self.parts:
            x, labels = getattr(self, part), getattr(self, f"{part}_labels")
            if self.columns is None:
                check_images(x, f"{self.name} {part} images", self.value_range)
            else:
                TableObservation(self.columns).check(x, f"{self.name} {part} data")
            if x.shape[1] != dim:
                raise ValueError(
                    f"Expected {self.name} {part} images of {dim} values, since image_shape={self.image_shape}, "
                    f"but found {x.shape[1]}."
                )
            if labels is not None and labels.shape != x.shape[:1]:
                raise ValueError(
                    f"Expected {len(x)} {self.name} {part} labels, one for each image, "
                    f"but found labels of shape {tuple(labels.shape)}."
                )

    def __repr__(self) -> str:
        height, width = self.image_shape
        sizes = ", ".join(f"{part} {len(getattr(self, part))}" for part in self.parts)
        shape = f"{height}x{width}, binarize='{self.binarize}'" if self.columns is None else f"{width} columns"
        return f"Dataset('{self.name}', {sizes}, {shape})"

    @property
    def parts(self) -> tuple[str, ...]:
        """The names of its parts."""
        held = ("train", "validation", "test")
        return tuple(part for part in held if part == "train" or self._has(part))

    def _has(self, part: str) -> bool:
        x = getattr(self, part)
        return x is not None and len(x) > 0

    def mapped(self, function: Callable[[Tensor], Tensor], **changed: Any) -> Self:
        """Return a data set with a function applied to the data of each part, and other fields changed."""
        new: dict[str, Any] = {part: function(getattr(self, part)) for part in self.parts}
        return replace(self, **new, **changed)


def as_tensor(data: Any) -> Tensor:
    """Convert data to one tensor (M, ...); each datum keeps its shape.

    Args:
        data: a tensor, which keeps its type; an array or nested lists, converted to float32; a torch dataset, where
            only the first element of each item is used; or a `DataLoader`, whose dataset is used.

    Returns:
        The tensor (M, ...).

    Raises:
        ValueError: if there are no data, or they have another type.

    Example:
        >>> as_tensor([[0, 1], [1, 0], [1, 1]]).shape
        torch.Size([3, 2])
    """
    if isinstance(data, DataLoader):
        data = data.dataset
    if isinstance(data, TorchDataset):
        data = items_of(data)[0]
    if hasattr(data, "iloc"):  # its numbers have units, and its texts are not numbers
        raise ValueError(
            f"Expected numbers as a program takes them, but found a {type(data).__name__}. Try dataset_of(data), or "
            "data.to_numpy() of pixels."
        )
    if not isinstance(data, Tensor):
        try:
            data = torch.as_tensor(np.asarray(data, dtype=np.float32))
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"Expected data as a tensor (M, D), an array or a data set, but found {type(data).__name__}. Try "
                "torch.as_tensor(..), or Dataset(name, train, test, image_shape)."
            ) from error
    if data.dim() == 0 or data.numel() == 0:
        raise ValueError(f"Expected data of shape (M, D), but found shape {tuple(data.shape)}.")
    return data


def check_images(x: Tensor, name: str = "images", value_range: tuple[float, float] = UNIT) -> None:
    """Refuse images that a model cannot be trained on.

    Args:
        x: images (M, D).
        name: the name of the images in the error message.
        value_range: the smallest and largest value that they may have.

    Raises:
        ValueError: if x is not a floating-point tensor (M, D), is empty, has a NaN, or has values outside the range.

    Example:
        >>> check_images(torch.tensor([[0.0, 255.0]]))
        Traceback (most recent call last):
        ValueError: Expected images in [0, 1], but found values from 0 to 255. Try x / 255 for 8-bit images.
    """
    if not x.is_floating_point() or x.dim() != 2 or x.numel() == 0:
        raise ValueError(
            f"Expected {name} as a floating-point tensor (M, D), "
            f"but found {x.dtype} of shape {tuple(x.shape)}. Try x.flatten(1).float()."
        )
    low, high = (bound.item() for bound in x.aminmax())  # one pass; a NaN anywhere makes both NaN
    least, most = value_range
    if math.isnan(low):
        rows = int(x.isnan().any(dim=1).sum())
        raise ValueError(
            f"Expected {name} in [{least:g}, {most:g}], but found NaN in {rows} of {len(x)}. Try removing them."
        )
    if low < least or high > most:
        hint = "x / 255 for 8-bit images" if value_range == UNIT else "another value_range"
        if value_range == UNIT and (low < 0 or high > 255):
            hint = "(x - x.min()) / (x.max() - x.min())"
        raise ValueError(
            f"Expected {name} in [{least:g}, {most:g}], but found values from {low:g} to {high:g}. Try {hint}."
        )


def binarized(data: Dataset, binarize: str, *, seed: int = 0) -> Dataset:
    """Binarize grey images.

    Args:
        data: grey images.
        binarize: "none" keeps them grey. "threshold" rounds each value to 0 or 1, with 1 above 0.5.
            "dynamic" uses a grey value as a probability (Burda et al. 2016, arXiv 1509.00519):
            ``epoch_batches`` samples a training image whenever it is used; the test set is sampled here, once, so that
            all evaluations use the same images.
        seed: seed of the sampled test set.

    Returns:
        A new data set; ``data`` is not changed.

    Raises:
        ValueError: if ``binarize`` is unknown, or the images are not grey values in [0, 1].

    Example:
        >>> grey = Dataset("grey", torch.full((3, 4), 0.4), torch.full((1, 4), 0.6), (2, 2))
        >>> binarized(grey, "threshold").test.tolist()
        [[1.0, 1.0, 1.0, 1.0]]
    """
    check_binarize(binarize)
    if binarize != "none" and data.columns is not None:
        raise ValueError(f"Expected images to binarize, but found a table. Try binarize='none', not '{binarize}'.")
    if binarize != "none":
        check_grey(data.value_range)
    if binarize == "threshold":
        return data.mapped(lambda x: (x > 0.5).to(x.dtype), binarize=binarize)
    if binarize == "dynamic":
        held = {name: getattr(data, name) for name in data.parts if name != "train"}
        drawn: dict[str, Any] = {name: bernoulli_draw(x, generator_for(name, seed)) for name, x in held.items()}
        return replace(data, **drawn, binarize=binarize)
    return data


def check_finite(x: Tensor) -> None:
    """Refuse training data, of any shape, that are not all finite.

    Raises:
        ValueError: if a value is NaN or infinite.

    Example:
        >>> check_finite(torch.tensor([[0.5], [math.inf]]))
        Traceback (most recent call last):
        ValueError: Expected training data without NaN or infinity, but found them in 1 of 2. Try removing them.
    """
    if not torch.stack(x.aminmax()).isfinite().all():  # a NaN anywhere makes both NaN
        rows = int((~x.isfinite()).reshape(len(x), -1).any(1).sum())
        raise ValueError(
            f"Expected training data without NaN or infinity, but found them in {rows} of {len(x)}. Try removing them."
        )


def check_binarize(binarize: str) -> None:
    """Refuse an unknown way to binarize."""
    if binarize not in BINARIZATIONS:
        raise ValueError(f"Expected binarize among {', '.join(BINARIZATIONS)}, but found '{binarize}'.")


def check_grey(value_range: tuple[float, float]) -> None:
    """Refuse images whose values are not grey values in [0, 1].

    Raises:
        ValueError: if they have another range.
    """
    if value_range != UNIT:
        raise ValueError(
            f"Expected grey images in [0, 1], but found the value_range {value_range}. Try binarized(..) on "
            "grey images, and observed(..) after it."
        )


def bernoulli_draw(mean: Tensor, generator: torch.Generator) -> Tensor:
    """Sample 0 or 1 with the given mean; the generator is on the CPU, so that every device gets the same draws."""
    uniform = torch.rand(mean.shape, generator=generator, dtype=torch.float32, device="cpu")
    return (uniform.to(mean.device) < mean).to(mean.dtype)


def generator_for(purpose: str, seed: int, epoch: int = 0) -> torch.Generator:
    """Make a CPU generator whose draws depend only on this purpose, seed and epoch."""
    return torch.Generator().manual_seed(derived_seed(purpose, seed, epoch))


def digest(x: Tensor) -> str:
    """Hash data, so that a resumed run can check that its data are the same."""
    return hashlib.sha256(x.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data).hexdigest()
