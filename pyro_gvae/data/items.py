"""Read the items of torch data sets into memory."""

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset as TorchDataset


def items_of(data: "TorchDataset[Any]") -> tuple[Tensor, np.ndarray | None]:
    """Return the first elements of all items of a torch data set, and the second ones if they are numbers.

    Raises:
        ValueError: if it has no length, or items are not numbers of one shape.
    """
    if not hasattr(data, "__len__"):
        raise ValueError(
            f"Expected a data set with a length, but found {type(data).__name__}, which is a stream. Try its items as "
            "one tensor: torch.stack(list(data))."
        )
    items = [data[index] for index in range(len(data))]
    pairs = [item if isinstance(item, tuple | list) else (item,) for item in items]
    found: list[Tensor] = []
    for number, pair in enumerate(pairs):
        try:
            found.append(pair[0] if isinstance(pair[0], Tensor) else torch.as_tensor(np.array(pair[0])))
        except TypeError as error:
            raise ValueError(
                f"Expected items with numbers in {type(data).__name__}, but found a {type(pair[0]).__name__} in item "
                f"{number}. Try a tensor, or a tuple (x, label)."
            ) from error
        if found[-1].shape != found[0].shape:
            raise ValueError(
                f"Expected items of one shape, {tuple(found[0].shape)}, in {type(data).__name__}, but found "
                f"{tuple(found[-1].shape)} in item {number}. Try the same number of values in each."
            )
    has_labels = all(len(pair) > 1 and np.ndim(pair[1]) == 0 for pair in pairs)
    return torch.stack(found), np.array([np.asarray(pair[1]).item() for pair in pairs]) if has_labels else None
