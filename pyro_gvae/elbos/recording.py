"""From a plain run to a recording that gives the same: loss and gradients as one graph of parameters, buffers and data."""

import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple, final

import numpy as np
import pyro
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from .graph import lifted
from .guards import Guard
from .refusals import NotRecordable, record

Loss = Any  # a tensor, a number, or a tuple of them
Outcome = tuple[Loss, list[Tensor | None]]  # the loss, and the gradient of each leaf

#: How far a recording may be from the plain run: operations are reordered, and rounded in another order.
TOLERANCES = {torch.float64: 1e-8, torch.float32: 1e-3}
COARSE = 5e-2  # of half precision


class Job(NamedTuple):
    """What to record.

    Attributes:
        run: of the tensors; returns a loss and adds to the gradients of parameters.
        tensors: arguments.
        roots: what `run` reads besides: model, guide, ELBO.
        number_modules: see `record`.
    """

    run: Callable[..., Loss]
    tensors: Sequence[Tensor]
    roots: Sequence[Any]
    number_modules: set[str]

    def guard(self) -> Guard:
        """Of the state that the job depends on, Pyro's parameters included, as it is now."""
        return Guard([*self.roots, stored_parameters()])


@final
class Recording:
    """A graph of loss and gradients, with the tensors that it reads and the guard of what it depends on.

    Attributes:
        leaves: the tensors whose gradients the graph gives.
        guard: tells whether the graph is still that of the program.
    """

    def __init__(self, graph: Callable[..., Outcome], captured: list[Tensor], leaves: list[Tensor], guard: Guard) -> None:
        self.leaves = leaves
        self.guard = guard
        self._graph = graph
        self._captured = captured

    def __call__(self, tensors: Sequence[Tensor]) -> Outcome:
        """The loss for these data and the gradient of each leaf."""
        with ExitStack() as stack:
            stack.enter_context(torch.no_grad())
            for device in ("cpu", "cuda"):
                if torch.is_autocast_enabled(device):  # the graph has its casts already
                    stack.enter_context(torch.autocast(device, enabled=False))
            return self._graph(*self._captured, *tensors)


def stored_parameters() -> dict[str, Tensor]:
    """What Pyro's param store holds, unconstrained."""
    return dict(pyro.get_param_store().named_parameters())


def new_recording(job: Job, finish: Callable[..., Callable[..., Outcome]], *, check: bool) -> Recording:
    """Run a job plainly, record it, and compare.

    Random states, buffers and gradients are afterwards as before.

    Args:
        job: what to record.
        finish: makes the function that is replayed from the graph and example inputs.
        check: compare the recording's loss and gradients with the plain ones.

    Raises:
        NotRecordable: if a recording cannot hold the program, or does not give the same.
    """
    with _rewinding(job.guard().tensors.values()) as rewind:
        loss = job.run(*job.tensors)
        # What a first run sets up, such as parameters, is there from here on.
        guard = job.guard()
        leaves = [tensor for tensor in guard.tensors.values() if tensor.is_leaf and tensor.requires_grad]
        expected = loss, [leaf.grad for leaf in leaves]
        after = torch.get_rng_state()
        rewind(leaves)

        def run(*tensors: Tensor) -> Outcome:
            return job.run(*tensors), [leaf.grad for leaf in leaves]

        graph_module = record(run, job.tensors, number_modules=job.number_modules)
        rewind(leaves)
        if not guard.holds() or stored_parameters() ...
'''
