"""Optimizers by name, and their maintenance."""

import inspect
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

#: Number of steps after which very small averages of the optimizer are set to zero.
FLUSH_EVERY = 100


def steps_taken(optimizer: torch.optim.Optimizer) -> int:
    """Return the optimizer's own step count, which checkpoints keep; 0 if it has none."""
    return next((int(state["step"]) for state in optimizer.state.values() if "step" in state), 0)


def flush_denormals(optimizer: torch.optim.Optimizer) -> None:
    """Set an optimizer's averages to zero before they become denormal numbers.

    If a gradient stays zero, such as that of a pixel that is rarely on, its average is multiplied by 0.9 in each step.
    After 700 steps it is denormal and remains so, which makes Adam six times as slow. An average this small moves no
    weight.
    """
    for state in optimizer.state.values():
        for average in state.values():
            if isinstance(average, Tensor) and average.dim() > 0 and average.is_floating_point():
                average.masked_fill_(average.abs() < 1e8 * torch.finfo(average.dtype).tiny, 0.0)


def named_shapes(*modules: nn.Module) -> list[list[Any]]:
    """Return name and shape of each parameter of the modules, in the optimizer's order."""
    named = [one for module in modules for one in module.named_parameters()]
    return [[name, list(parameter.shape)] for name, parameter in named]


def new_optimizer(
    name: str, parameters: Sequence[nn.Parameter], lr: float = 1e-3, **options: Any
) -> torch.optim.Optimizer:
    """Construct the optimizer with this name in `torch.optim`: one for all parameters, fused if torch can.

    Args:
        name: name of a class in `torch.optim`.
        parameters: the parameters to optimize.
        lr: learning rate.
        **options: other keyword arguments of the class.

    Returns:
        The optimizer.

    Raises:
        ValueError: if there is no such optimizer or option, or it cannot take a step from gradients alone.

    Example:
        >>> new_optimizer("SGD", [nn.Parameter(torch.zeros(3))], 0.1, momentum=0.9).defaults["momentum"]
        0.9
    """
    kind = getattr(torch.optim, name, None)
    if not (isinstance(kind, type) and issubclass(kind, torch.optim.Optimizer)):
        raise ValueError(f"Expected the name of an optimizer in torch.optim, but found '{name}'. Try 'Adam'.")
    known = inspect.signature(kind).parameters
    for option, value in options.items():
        if isinstance(value, str) and option in known and not isinstance(known[option].default, str):
            raise ValueError(f"Expected a number as {option} of {name}, but found '{value}'.")
    # One fused optimizer steps all parameters at once; Pyro has one optimizer per tensor.
    fused: dict[str, Any] = {"fused": True} if "fused" in known else {}

    def make(moved: Sequence[nn.Parameter]) -> torch.optim.Optimizer:
        try:
            made: torch.optim.Optimizer = cast(type[Any], kind)(moved, lr=lr, **fused, **options)
        except (TypeError, RuntimeError, AttributeError, AssertionError, OverflowError) as error:
            raise ValueError(f"Expected options that torch.optim.{name} has, but {_reason(error)}.") from error
        return made

    try:
        _after_a_step(make([nn.Parameter(torch.zeros(2, 2))]))
    except (TypeError, RuntimeError, AttributeError, AssertionError, OverflowError) as error:
        raise ValueError(
            f"Expected an optimizer that steps by gradients alone, but found {name}: {_reason(error)}. Try 'Adam'."
        ) from error
    return make(parameters)


def _reason(error: Exception) -> str:
    return str(error).split("\n")[0] or type(error).__name__


def check_optimizer_state(optimizer: torch.optim.Optimizer, state: Any) -> None:
    """Refuse a state that this optimizer could not have written: other entries, shapes or dtypes.

    torch does not check this, and a fused optimizer then reads and writes out of bounds.

    Args:
        optimizer: the optimizer that will load the state.
        state: parameter number -> name -> number or tensor, as in `Optimizer.state_dict()`.

    Raises:
        ValueError: if it does not fit.
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    copies = [nn.Parameter(torch.zeros_like(parameter)) for parameter in parameters]
    known = inspect.signature(type(optimizer)).parameters
    options = {name: value for name, value in optimizer.defaults.items() if name in known}
    written = _after_a_step(type(optimizer)(copies, **options))
    for number, entries in state.items():
        if number not in written or _forms(entries) != _forms(written[number]):
            raise ValueError(
                f"Expected the state {_forms(written.get(number, {}))} for parameter {number}, but found another one."
            )


def _after_a_step(optimizer: torch.optim.Optimizer) -> dict[Any, Any]:
    """Return the optimizer's state after a step with zero gradients."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    state: dict[Any, Any] = optimizer.state_dict()["state"]
    return state


def _forms(entries: dict[str, Any]) -> dict[str, Any]:
    """Return shape and type of each entry: with others, a step would fail or write out of bounds."""
    return {
        name: (tuple(value.shape), value.dtype) if isinstance(value, Tensor) else type(value)
        for name, value in entries.items()
    }
