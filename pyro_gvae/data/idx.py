"""Files in the format of MNIST, read without torchvision, whose import takes longer than that of torch."""

import math
from pathlib import Path

import torch
from torch import Tensor

#: The code, in the third byte of a file, of values from 0 to 255.
BYTES = 8


def read_idx(path: Path) -> Tensor:
    """Read an array of bytes from a file: two zeros, the type, the number of dimensions, their sizes, the values.

    Raises:
        ValueError: if the file is damaged, or has values of another type.
        OSError: if it cannot be read.
    """
    content = path.read_bytes()
    if len(content) < 4 or content[:3] != bytes((0, 0, BYTES)):
        raise ValueError(f"Expected an array of bytes in '{path.name}', but found another file.")
    start = 4 * (content[3] + 1)
    sizes = [int.from_bytes(content[place : place + 4], "big") for place in range(4, start, 4)]
    if len(content) != start + math.prod(sizes):
        raise ValueError(f"Expected {math.prod(sizes)} bytes in '{path.name}', but found {len(content) - start}.")
    return torch.frombuffer(bytearray(content), dtype=torch.uint8, offset=start).view(sizes)
