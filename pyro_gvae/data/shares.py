"""Assign each row of a table to a part, without having all rows in memory."""

from typing import NamedTuple

import numpy as np

from ..runtime.rng import derived_seed


class Shares(NamedTuple):
    """Shares of the parts of a table; a hash of row number and seed assigns each row to a part.

    Attributes:
        test: the share of rows held out for tests; 1 takes all rows.
        validation: the share of rows held out for validation.
        seed: seed of the hash.
        labelled: the share of the training rows whose labels are kept.
    """

    test: float
    validation: float = 0.0
    seed: int = 0
    labelled: float = 1.0

    def of_part(self, part: str, start: int, count: int) -> np.ndarray:
        """Return a mask of the rows that belong to a part.

        Args:
            part: "train", "validation" or "test".
            start: the number of the first row.
            count: how many rows.

        Example:
            >>> [int(Shares(0.2, 0.1).of_part(part, 0, 1000).sum()) for part in ("train", "validation", "test")]
            [741, 85, 174]
        """
        uniform = _uniform(derived_seed("rows", self.seed), np.arange(start, start + count))
        least, most = {
            "test": (0.0, self.test),
            "validation": (self.test, self.test + self.validation),
            "train": (self.test + self.validation, 1.0),
        }[part]
        found: np.ndarray = (uniform >= least) & (uniform < most)
        return found

    def keeps_labels(self, part: str, rows: np.ndarray) -> np.ndarray:
        """Return a mask of the rows, by number, whose labels are kept: all, or a share of the training rows.

        Example:
            >>> int(Shares(0.2, labelled=0.3).keeps_labels("train", np.arange(1000)).sum())
            306
        """
        share = self.labelled if part == "train" else 1.0
        found: np.ndarray = _uniform(derived_seed("labelled", self.seed), rows) < share
        return found


def _uniform(key: int, rows: np.ndarray) -> np.ndarray:
    """Return a number in [0, 1) for each row by SplitMix64 (Steele, Lea and Flood 2014), whatever the other rows."""
    z = (rows + 1).astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    z += np.uint64(key % 2**64)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return ((z ^ (z >> np.uint64(31))) >> np.uint64(11)).astype(np.float64) * 2.0**-53
