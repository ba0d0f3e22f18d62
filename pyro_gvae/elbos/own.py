"""A loss's own parameters: give them the types of the program, or those of a checkpoint, and prepare copies."""

from typing import Any

import torch
from torch import nn

from ..programs.factors import Layout
from ..runtime.compat.pyro import forget_leaf


def fit_to(own: nn.Module, layout: Layout) -> None:
    """Move a loss's own parameters to the dtype and device of a program's latents."""
    first = next(own.parameters())
    if (first.dtype, first.device) != (layout.dtype, layout.device):
        own.to(dtype=layout.dtype, device=layout.device)


def forget_leaves(own: nn.Module | None) -> None:
    """Remove from a loss's own parameters what training has attached and no pickle takes; the next step attaches it."""
    for parameter in own.parameters() if own is not None else ():
        forget_leaf(parameter)


def take_types_and_width(module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """Give parameters the dtypes and the width of a checkpoint; a new loss takes them from its first batch."""
    for name, parameter in module.named_parameters():
        saved = state.get(prefix + name)
        if saved is not None:
            shape = parameter.shape if parameter.numel() else saved.shape
            parameter.data = torch.empty(shape, dtype=saved.dtype, device=parameter.device)
