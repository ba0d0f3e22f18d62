"""The handwritten digits of scikit-learn, read and split as scikit-learn does, without its slow import."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .dataset import Dataset

NUM_TEST = 360


def digits() -> Dataset:
    """Return the 1797 handwritten digits that scikit-learn includes, 8 x 8 pixels of 17 grey levels.

    The split, 1437 for training and 360 for testing, is stratified by digit and always the same.

    Example:
        >>> digits().test_labels.bincount().tolist()
        [36, 36, 35, 37, 36, 37, 36, 36, 35, 36]
    """
    found = find_spec("sklearn")
    if found is None or found.origin is None:
        raise ModuleNotFoundError("No module named 'sklearn'", name="sklearn")
    table = np.loadtxt(Path(found.origin).parent / "datasets" / "data" / "digits.csv.gz", delimiter=",")
    images, labels = table[:, :-1] / 16, table[:, -1].astype(int)
    rows = _split(labels)
    train, test = (torch.from_numpy(images[own]).float() for own in rows)
    train_labels, test_labels = (torch.from_numpy(labels[own]) for own in rows)
    return Dataset("digits", train, test, (8, 8), train_labels, test_labels)


def _split(labels: Any) -> tuple[Any, Any]:
    """Return the rows of training and test data as `train_test_split(stratify=labels, random_state=0)` draws them."""
    rng = np.random.RandomState(0)
    rows = [np.flatnonzero(labels == label) for label in np.unique(labels)]
    counts = np.array([len(own) for own in rows])
    num_train = _proportional(counts, len(labels) - NUM_TEST, rng)
    num_test = _proportional(counts - num_train, NUM_TEST, rng)
    train, test = [], []
    for own, first, second in zip(rows, num_train, num_test, strict=True):
        shuffled = own[rng.permutation(len(own))]
        train.append(shuffled[:first])
        test.append(shuffled[first : first + second])
    return rng.permutation(np.concatenate(train)), rng.permutation(np.concatenate(test))


def _proportional(counts: Any, total: int, rng: np.random.RandomState) -> Any:
    """Divide a total in proportion to counts; the rest goes to the largest remainders, with ties broken at random."""
    shares = counts / counts.sum() * total
    found = np.floor(shares)
    left = int(total - found.sum())
    remainder = shares - found
    for value in np.sort(np.unique(remainder))[::-1] if left else ():
        tied = np.flatnonzero(remainder == value)
        added = min(len(tied), left)
        found[rng.choice(tied, size=added, replace=False)] += 1
        left -= added
        if left == 0:
            break
    return found.astype(int)
