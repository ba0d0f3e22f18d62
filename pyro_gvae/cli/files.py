"""Write what a command computed: tensors and pictures."""

from pathlib import Path

import torch
from torch import Tensor

from ..runs.checkpoint import save_tensors
from ..runs.files import replacing

#: Small images are enlarged in pictures, by a whole factor, to at most this many pixels at their longer edge.
MOST_PIXELS = 64


def save(path: Path, tensors: dict[str, Tensor]) -> None:
    """Write tensors as PATH.safetensors."""
    save_tensors(path.with_name(f"{path.name}.safetensors"), tensors)


def save_png(path: Path, rows: list[Tensor], image_shape: tuple[int, int]) -> None:
    """Write rows of up to 10 images as one PNG; enlarge small images and fill a short row with black."""
    from torchvision.utils import save_image  # imported where used: it takes a second

    width, factor = len(rows[0]), max(1, MOST_PIXELS // max(image_shape))
    full = [torch.cat([row, row.new_zeros(width - len(row), row.shape[1])]) for row in rows]
    images = torch.cat(full).unflatten(-1, (1, *image_shape))
    images = images.repeat_interleave(factor, -2).repeat_interleave(factor, -1)
    with replacing(path.with_name(f"{path.name}.png")) as temporary:
        save_image(images, temporary, format="png", nrow=width, pad_value=0.5)
