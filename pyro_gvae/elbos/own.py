"""What losses learn themselves takes its types from the program, or from a checkpoint."""

from typing import Any

import torch
from torch import nn

from ..programs.factors import Layout


def fit_to(own: nn.Module, layout: Layout) -> None:
    """Give what a loss learns the dtype and device of a program's latents."""
    first = next(own.parameters())
    if (first.dtype, first.device) != (layout.dtype, layout.device):
        own.to(dtype=layout.dtype, device=layout.device)


def take_types_and_width(module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """Give parameters the dtypes and the width of a checkpoint, which a new loss would learn from its first batch."""
    for name, parameter in module.named_parameters():
        saved = state.get(prefix + name)
        if saved is not None:
            shape = parameter.shape if parameter.numel() else saved.shape
            parameter.data = torch.empty(shape, dtype=saved.dtype, device=parameter.device)
