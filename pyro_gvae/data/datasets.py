"""Data sets by name: ``load(name)`` reads one of ``DATASETS`` into memory.

digits, teacher and the tables of scikit-learn need no files; the others are read from torchvision's files, which are
downloaded only on request.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..config.checks import FOLDERS, check_files, nearest
from .dataset import Dataset, binarized, check_binarize
from .digits import digits
from .idx import read_idx
from .splits import dataset_of
from .teacher import teacher


def load(
    name: str,
    *,
    data_dir: str | Path = "data",
    download: bool = False,
    binarize: str = "none",
    seed: int = 0,
) -> Dataset:
    """Load one of ``DATASETS`` into memory.

    Args:
        name: "digits" (included in scikit-learn), "teacher" (sampled from a known model), or "mnist", "fashion_mnist",
            "kmnist", "omniglot" (files in torchvision's layout); or the tables "breast_cancer", "wine", "diabetes"
            (included in scikit-learn), with a fifth of the rows for tests.
        data_dir: the folder that torchvision calls root; "digits" and "teacher" need none.
        download: download missing files into ``data_dir``; without it the network is never used.
        binarize: see ``binarized``; for images.
        seed: seed of the data: of the samples of "teacher" and of the test set of "dynamic". Use the same seed for runs
            that you compare; the order of batches depends on the seed given to ``epoch_batches``.

    Returns:
        The data set, on the CPU in float32.

    Raises:
        ValueError: if a name is unknown.
        OSError: if files are missing (``FileNotFoundError``), damaged or cannot be downloaded.

    Example:
        >>> digits = load("digits", binarize="threshold")
        >>> digits.train.shape, digits.test.shape, digits.train.unique().tolist()
        (torch.Size([1437, 64]), torch.Size([360, 64]), [0.0, 1.0])
    """
    known = (*DATASETS, *TABLES)
    if name not in known:
        tried = f" Try dataset_of('{name}')." if Path(name).suffix else nearest(name, known)
        raise ValueError(f"Expected a data set among {', '.join(known)}, but found '{name}'.{tried}")
    check_binarize(binarize)
    if name in TABLES:
        frame, labels = table(name)
        return dataset_of(frame, name=name, labels=labels)
    return binarized(DATASETS[name](Path(data_dir).expanduser(), download, seed), binarize, seed=seed)


def _mnist_like(name: str, class_name: str, data_dir: Path, download: bool) -> Dataset:
    """Return MNIST or a data set of its format: 60,000 and 10,000 images of 28 x 28 pixels."""
    if download:
        from torchvision import datasets  # imported here, since reading existing files does not need it

        with _files_of(name, data_dir, download):
            for is_train in (True, False):
                getattr(datasets, class_name)(str(data_dir), train=is_train, download=True)
    folder = data_dir / FOLDERS[name]
    with _files_of(name, data_dir, download):
        (train, train_labels), (test, test_labels) = (
            (read_idx(folder / f"{part}-images-idx3-ubyte"), read_idx(folder / f"{part}-labels-idx1-ubyte").long())
            for part in ("train", "t10k")
        )
        train, test = (images.flatten(1).to(torch.float32).div_(255) for images in (train, test))  # (M, 784)
        return Dataset(name, train, test, (28, 28), train_labels, test_labels)


def _omniglot(data_dir: Path, download: bool) -> Dataset:
    """Return Omniglot's 19,280 background and 13,180 evaluation drawings, averaged to 28 x 28 pixels; ink is 1.

    This is torchvision's split by alphabets, not the split into 24,345 and 8,070 drawings of Burda et al. 2016 (arXiv
    1509.00519), so results cannot be compared with theirs.

    Labels number the characters; the two parts have no character in common.
    """
    from torchvision.datasets import Omniglot

    with _files_of("omniglot", data_dir, download):
        parts = [Omniglot(str(data_dir), background=train, download=download) for train in (True, False)]
        (train, train_labels), (test, test_labels) = (_drawings(Path(part.target_folder)) for part in parts)
    return Dataset("omniglot", train, test, (28, 28), train_labels, test_labels + train_labels.max() + 1)


def _drawings(folder: Path) -> tuple[Tensor, Tensor]:
    """Read images (M, 784) and labels (M,) from the files alphabet/character/drawing.png, sorted by name."""
    from PIL import Image

    files = sorted(folder.glob("*/*/*.png"))
    pixels = []
    for file in files:
        with Image.open(file) as image:
            pixels.append(np.asarray(image.convert("L").resize((28, 28), Image.Resampling.BOX)))
    x = 1 - torch.from_numpy(np.stack(pixels)).flatten(1).to(torch.float32) / 255  # (M, 784)
    _, labels = np.unique([str(file.parent) for file in files], return_inverse=True)
    return x, torch.from_numpy(labels)


#: Tables that scikit-learn includes, and whether they have classes.
TABLES = {"breast_cancer": True, "wine": True, "diabetes": False}


def table(name: str) -> tuple[Any, Any]:
    """Return one of `TABLES` as a `pandas.DataFrame` in its own units, and labels (M,), or None.

    The target of diabetes, how far the disease has progressed, is a column.

    Example:
        >>> frame, labels = table("wine")
        >>> frame.shape, sorted(set(labels.tolist()))
        ((178, 13), ['class_0', 'class_1', 'class_2'])
    """
    from sklearn import datasets  # imported here, since no other data set needs it

    if not TABLES[name]:
        found = datasets.load_diabetes(as_frame=True, scaled=False)
        return found.data.assign(progression=found.target), None
    found = getattr(datasets, f"load_{name}")(as_frame=True)
    return found.data, found.target_names[found.target.to_numpy()]


@contextmanager
def _files_of(name: str, data_dir: Path, download: bool) -> Iterator[None]:
    """Turn any error that torchvision raises for missing, damaged or unreachable files into a one-sentence OSError."""
    folder = data_dir / FOLDERS[name]
    if not download:
        check_files(name, data_dir)
    try:
        yield
    except Exception as error:  # RuntimeError, AssertionError, URLError, BadZipFile and more
        reason = " ".join(str(error).split()) or type(error).__name__
        raise OSError(
            f"Expected {'to fetch or read' if download else 'to read'} the files of '{name}' in '{folder}', "
            f'but found "{reason}". '
            "Try deleting that folder, and then --download (download=True) with a network."
        ) from None


# name -> a function of (data_dir, download, seed) that returns the data set
DATASETS: dict[str, Callable[[Path, bool, int], Dataset]] = {
    "digits": lambda data_dir, download, seed: digits(),
    "mnist": lambda data_dir, download, seed: _mnist_like("mnist", "MNIST", data_dir, download),
    "fashion_mnist": lambda data_dir, download, seed: _mnist_like("fashion_mnist", "FashionMNIST", data_dir, download),
    "kmnist": lambda data_dir, download, seed: _mnist_like("kmnist", "KMNIST", data_dir, download),
    "omniglot": lambda data_dir, download, seed: _omniglot(data_dir, download),
    "teacher": lambda data_dir, download, seed: teacher(seed=seed),
}
