"""The state that a run depends on and changes: Python objects, tensors and their values, random states."""

import random
from collections.abc import Callable, Iterable, Sequence
from itertools import chain
from typing import Any, NamedTuple, final

import numpy as np
import pyro
import torch
from torch import Tensor

from ..runtime.compat.torch import hooks_of
from ..runtime.rng import generators_of_torch, set_generators_of_torch
from .guards import Guard

Loss = Any  # a tensor, a number, or a tuple of them


class Job(NamedTuple):
    """The computation to record.

    Attributes:
        run: a function of the tensors that returns a loss and adds to the gradients of parameters.
        tensors: its arguments.
        roots: what else it reads: model, guide, ELBO.
    """

    run: Callable[..., Loss]
    tensors: Sequence[Tensor]
    roots: Sequence[Any]


def stored_parameters() -> dict[str, Tensor]:
    """Return the unconstrained parameters in Pyro's param store."""
    return dict(pyro.get_param_store().named_parameters())


@final
class Values:
    """The values of tensors, and the states of torch's generators."""

    def __init__(self, tensors: Iterable[Tensor]) -> None:
        self._values = [(tensor, tensor.clone()) for tensor in tensors]
        self._generators = generators_of_torch()

    def now(self) -> "Values":
        """Return the current values of the same tensors and generators."""
        return Values(tensor for tensor, _ in self._values)

    @torch.no_grad()
    def restore(self) -> None:
        """Restore the values and the states."""
        set_generators_of_torch(self._generators)
        for tensor, value in self._values:
            # A buffer whose shape has changed since was initialized lazily, and stays initialized.
            is_sparse = tensor.layout is not torch.strided  # these cannot be compared
            if tensor.shape == value.shape and (is_sparse or not torch.equal(tensor, value)):
                tensor.copy_(value)


@final
class State:
    """The state that a job depends on and changes: Python objects, tensors and their values, random states."""

    def __init__(self, job: Job) -> None:
        self.stored = stored_parameters()
        self.guard = Guard([*job.roots, *chain.from_iterable(map(hooks_of, self.stored.values()))])
        self.known = self.guard.tensors | {id(tensor): tensor for tensor in self.stored.values()}
        tensors = self.known.values()
        self.leaves = [tensor for tensor in tensors if tensor.is_leaf and tensor.requires_grad]
        self.random_state = torch.get_rng_state()
        self.other_generators = repr((random.getstate(), np.random.get_state(legacy=False)))
        self.values = Values(tensor for tensor in tensors if not tensor.requires_grad)
        self._store = pyro.get_param_store().get_state()

    def restore(self) -> None:
        """Restore torch's random states, the entries of Pyro's param store and the values of buffers."""
        if not same_entries(self.stored, stored_parameters()):
            pyro.get_param_store().set_state(self._store)
        self.values.restore()


def same_entries(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    """Return whether both have the same tensor objects under the same names."""
    return one.keys() == other.keys() and all(one[name] is other[name] for name in one)
