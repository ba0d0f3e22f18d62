"""Calls of an ELBO's methods: which ones may share a recording, and how two differ."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pyro
import torch
from pyro.infer import ELBO
from pyro.ops.provenance import extract_provenance
from torch import Tensor

from ..handlers.sites import Program
from ..programs.tensor_elbo import recordable
from ..runtime.compat.pyro import handlers_on_stack, only_records_parameters
from ..runtime.compat.torch import Nesting, flattened, nested
from .state import Loss

Key = Any  # equal for calls that may share a recording

#: Largest size in bytes of arrays that count as settings of a call; larger ones are data, a new array for each batch.
MOST_BYTES = 4096


class Call(NamedTuple):
    """One call of an ELBO's method, with flattened arguments."""

    method: str
    model: Program
    guide: Program
    leaves: list[Any]
    nesting: Nesting | None  # None if the leaves are the positional arguments

    @property
    def tensors(self) -> list[Tensor]:
        """The tensors among the arguments, in their order."""
        return [leaf for leaf in self.leaves if isinstance(leaf, Tensor)]

    def key(self) -> Key:
        """Return a key that is equal for calls that may share a recording, by their arguments and torch's modes."""
        arguments = tuple(map(_signature, self.leaves))
        return self.method, self.model, self.guide, arguments, self.nesting, _modes()

    def is_foreign(self) -> bool:
        """Return whether no recording can replace the call: another handler acts on it, or inputs require gradients."""
        others = not all(map(only_records_parameters, handlers_on_stack()))
        return others or any(tensor.requires_grad for tensor in self.tensors)

    def has_arrays(self) -> bool:
        """Return whether an argument is an array of data, whose elements a recording would hold."""
        return any(isinstance(leaf, np.ndarray) and leaf.nbytes > MOST_BYTES for leaf in self.leaves)

    def arguments(self, tensors: Sequence[Tensor]) -> tuple[Sequence[Any], dict[str, Any]]:
        """Return the arguments as they were given, but with other tensors."""
        given = iter(tensors)
        leaves = [next(given) if isinstance(leaf, Tensor) else leaf for leaf in self.leaves]
        return (leaves, {}) if self.nesting is None else nested(leaves, self.nesting)

    def plainly(self, elbo: ELBO) -> Any:
        """Make the call, and return what the ELBO itself returns."""
        args, kwargs = self.arguments(self.tensors)
        return getattr(elbo, self.method)(self.model, self.guide, *args, **kwargs)

    def run(self, elbo: ELBO, *tensors: Tensor) -> Loss:
        """Make the call with other tensors, in a form that can be recorded. Gradients are added to `.grad`."""
        args, kwargs = self.arguments(tensors)
        loss: Any = recordable(elbo, self.method)(self.model, self.guide, *args, **kwargs)
        loss, _ = extract_provenance(loss)  # TraceGraph_ELBO returns its own class of tensors
        if self.method == "differentiable_loss":
            loss.backward()
            loss = loss.detach()
        return loss


def new_call(method: str, model: Program, guide: Program, args: Any, kwargs: Any) -> Call:
    """Return a call with its arguments flattened."""
    if not kwargs and all(isinstance(arg, Tensor) for arg in args):
        return Call(method, model, guide, list(args), None)
    leaves, nesting = flattened((args, kwargs))
    return Call(method, model, guide, leaves, nesting)


def difference(now: Key, before: Key) -> str | None:
    """Describe how two calls differ; None if their arguments, programs and modes are the same."""
    parts = "method", "model", "guide", "argument", "nesting of arguments", "mode of torch"
    for name, one, other in zip(parts, now, before, strict=True):
        if one == other:
            continue
        if name != "argument" or len(one) != len(other):
            return f"another {name}"
        new, old = next((new, old) for new, old in zip(one, other, strict=True) if new != old)
        if isinstance(new[0], torch.Size) and isinstance(old[0], torch.Size):
            return f"a tensor {_in_words(new)} in place of one {_in_words(old)}"
        return f"the argument {new[-1]!r} in place of {old[-1]!r}"
    return None


def _in_words(signature: Any) -> str:
    shape, stride, dtype, device = signature
    return f"of shape {tuple(shape)}, stride {stride} and type {dtype} on {device}"


def _signature(leaf: Any) -> Any:
    if isinstance(leaf, Tensor):
        stride = leaf.stride() if leaf.layout is torch.strided else leaf.layout
        return leaf.shape, stride, leaf.dtype, leaf.device
    return type(leaf), leaf if getattr(leaf, "__hash__", None) else id(leaf)


def _modes() -> Any:
    """Return the settings of torch and Pyro that change what a call does."""
    devices = ("cpu", "cuda")
    autocast = tuple(torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device) for device in devices)
    local = pyro.settings.get("module_local_params")
    return torch.is_grad_enabled(), torch.get_default_dtype(), torch.get_default_device(), autocast, local
