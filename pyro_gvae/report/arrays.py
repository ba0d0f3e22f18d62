"""The arrays of a page, encoded as one text."""

import base64
import gzip
from typing import Any, final

import numpy as np
from torch import Tensor

#: The largest number of half precision.
MOST_HALF = float(np.finfo(np.float16).max)


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

    def round_weights(self) -> float:
        """Round weights to half precision, to halve the text; return the largest change over the largest weight."""
        change, largest = 0.0, 0.0
        for index in self.weights:
            exactly = self.parts[index]
            self.parts[index] = exactly.clip(-MOST_HALF, MOST_HALF).astype(np.float16).astype(np.float32)
            change = max(change, float(np.abs(self.parts[index] - exactly).max(initial=0.0)))
            largest = max(largest, float(np.abs(exactly).max(initial=0.0)))
        return change / largest if largest else 0.0

    def num_bytes(self) -> int:
        """Count the bytes of the text."""
        return len(self.as_text())

    def as_text(self) -> str:
        """Compress all arrays, and encode them in base64."""
        packed = gzip.compress(np.concatenate(self.parts).astype("<f4").tobytes(), mtime=0)
        return base64.b64encode(packed).decode()
