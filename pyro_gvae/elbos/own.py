"""Give a loss's own parameters the types of the program, or those of a checkpoint."""

from typing import Any

import torch
from torch import nn

from ..programs.factors import Layout


def fit_to(own: nn.Module, layout: Layout) -> None:
    """Move a loss's own parameters to the dtype and device of a program's latents."""
    first = next(own.parameters())
    if (first.dtype, first.device) != (layout.dtype, layout.device):
        own.to(dtype=layout.dtype, device=layout.device)


def take_types_and_width(module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """Give parameters the dtypes and the width of a checkpoint; a new loss takes them from its first batch."""
    for name, parameter in module.named_parameters():
        saved = state.get(prefix + name)
        if saved is not None:
            shape = parameter.shape if parameter.numel() else saved.shape
            parameter.data = torch.empty(shape, dtype=saved.dtype, device=parameter.device)
