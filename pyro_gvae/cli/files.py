"""Write the results of a command: tensors and pictures."""

from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import pad

from ..runs.checkpoint import save_tensors
from ..runs.files import replacing

#: Small images are enlarged in pictures, by a whole factor, to at most this many pixels at their longer edge.
MOST_PIXELS = 64
#: Grey pixels around each image.
MARGIN = 2


def save(path: Path, tensors: dict[str, Tensor]) -> None:
    """Write tensors as PATH.safetensors."""
    save_tensors(path.with_name(f"{path.name}.safetensors"), tensors)


def save_png(path: Path, rows: list[Tensor], image_shape: tuple[int, int]) -> None:
    """Write rows of up to 10 images as one PNG; enlarge small images and fill a short row with black."""
    from PIL import Image  # imported here, since few commands write pictures

    width, factor = len(rows[0]), max(1, MOST_PIXELS // max(image_shape))
    full = torch.stack([torch.cat([row, row.new_zeros(width - len(row), row.shape[1])]) for row in rows])
    images = full.unflatten(-1, image_shape).repeat_interleave(factor, -2).repeat_interleave(factor, -1)
    framed = pad(images, (0, MARGIN, 0, MARGIN), value=0.5)  # (rows, width, height of one, width of one)
    grid = pad(framed.movedim(1, 2).flatten(2).flatten(0, 1), (MARGIN, 0, MARGIN, 0), value=0.5)
    levels = (grid.cpu() * 255 + 0.5).clamp(0, 255).byte()
    with replacing(path.with_name(f"{path.name}.png")) as temporary:
        Image.fromarray(levels.numpy()).convert("RGB").save(temporary, format="png")
