"""Optimizers by name, and their upkeep."""

import inspect
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

#: Steps after which averages of the optimizer that have become very small are set to zero.
FLUSH_EVERY = 100


def steps_taken(optimizer: torch.optim.Optimizer) -> int:
    """By the optimizer's own count, which a checkpoint keeps; 0 where it has none."""
    return next((int(state["step"]) for state in optimizer.state.values() if "step" in state), 0)


def flush_denormals(optimizer: torch.optim.Optimizer) -> None:
    """Set averages of an optimizer to zero before they become denormal numbers.

    A gradient that stays zero, as of a pixel that is rarely on, leaves an average that is multiplied by 0.9 in each
    step: after 700 steps it is denormal, and stays so, and Adam takes six times as long. So small, it moves no weight.
    """
    for state in optimizer.state.values():
        for average in state.values():
            if isinstance(average, Tensor) and average.dim() > 0 and average.is_floating_point():
                average.masked_fill_(average.abs() < 1e8 * torch.finfo(average.dtype).tiny, 0.0)


def new_optimizer(
    name: str, parameters: Sequence[nn.Parameter], lr: float = 1e-3, **options: Any
) -> torch.optim.Optimizer:
    """The optimizer of that name in `torch.optim`: one for all parameters, fused where torch can.

    Args:
        name: of a class in `torch.optim`.
        parameters: what it moves.
        lr: learning rate.
        **options: other keywords of the class.

    Raises:
        ValueError: if there is no such optimizer or option.

    Example:
        >>> new_optimizer("SGD", [nn.Parameter(torch.zeros(3))], 0.1, momentum=0.9).defaults["momentum"]
        0.9
    """
    kind = getattr(torch.optim, name, None)
    if not (isinstance(kind, type) and issubclass(kind, torch.optim.Optimizer)):
        raise ValueError(f"Expected the name of an optimizer in torch.optim, but found '{name}'. Try 'Adam'.")
    # One fused optimizer for all parameters: Pyro's steps one optimizer per tensor.
    fused: dict[str, Any] = {"fused": True} if "fused" in inspect.signature(kind).parameters else {}
    try:
        return cast(type[Any], kind)(parameters, lr=lr, **fused, **options)
    except TypeError as error:
        raise ValueError(f"Expected options that torch.optim.{name} has, but {error}.") from error


def check_optimizer_state(optimizer: torch.optim.Optimizer, state: Any) -> None:
    """Refuse averages that are not of the shape and type of the parameter that they belong to.

    torch looks at neither, and a fused optimizer reads and writes as far as the parameter reaches.

    Args:
        optimizer: what the state is meant for.
        state: parameter number -> name -> number or tensor, as in `Optimizer.state_dict()`.

    Raises:
        ValueError: if one does not fit.
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for number, entries in state.items():
        parameter = parameters[int(number)]
        for name, value in entries.items():
            if not isinstance(value, Tensor) or value.dim() == 0:
                continue
            if value.shape != parameter.shape or value.dtype != parameter.dtype:
                raise ValueError(
                    f"Expected '{name}' of parameter {number} to have shape {tuple(parameter.shape)} and "
                    f"{parameter.dtype}, but found {tuple(value.shape)} and {value.dtype}."
                )
