"""The arrays of a page, encoded as one text."""

import base64
import gzip
from typing import Any, final

import numpy as np
from torch import Tensor

#: The largest number of half precision.
MOST_HALF = float(np.finfo(np.float16).max)


def in_half_precision(values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Round numbers to half precision, and larger ones to its largest number; their type stays.

    Example:
        >>> in_half_precision(np.array([0.1, 1e-9, 1e6]))
        array([9.99755859e-02, 0.00000000e+00, 6.55040000e+04])
    """
    return values.clip(-MOST_HALF, MOST_HALF).astype(np.float16).astype(values.dtype)


@final
class Arrays:
    """All arrays of a page, one after another, in single precision."""

    def __init__(self) -> None:
        self.parts: list[np.ndarray[Any, np.dtype[np.float32]]] = []
        self.weights: list[int] = []
        self.size = 0

    def put(self, values: Tensor, *, is_weight: bool = False) -> list[int]:
        """Append an array, and return where it is: [offset, length]."""
        flat = values.detach().float().flatten().numpy()
        if is_weight:
            self.weights.append(len(self.parts))
        self.parts.append(flat)
        self.size += flat.size
        return [self.size - flat.size, flat.size]

    def mark(self) -> int:
        """Return how many arrays there are."""
        return len(self.parts)

    def forget(self, mark: int) -> None:
        """Remove the arrays that were added after a mark."""
        self.parts = self.parts[:mark]
        self.weights = [number for number in self.weights if number < mark]
        self.size = sum(part.size for part in self.parts)

    def round_weights(self) -> None:
        """Round weights to half precision, to halve the text."""
        for index in self.weights:
            self.parts[index] = in_half_precision(self.parts[index])

    def num_bytes(self) -> int:
        """Count the bytes of the text."""
        return len(self.as_text())

    def as_text(self) -> str:
        """Compress all arrays, and encode them in base64."""
        packed = gzip.compress(np.concatenate(self.parts).astype("<f4").tobytes(), mtime=0)
        return base64.b64encode(packed).decode()
