"""Recordings of a loss and its gradients as one graph, each checked against a plain run."""

import math
import random
import reprlib
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any, NamedTuple, final

import numpy as np
import pyro
import torch
from torch import Tensor
from torch.fx import GraphModule

from ..runtime.compat.torch import leaves_of, no_sources_kept
from .capture import NotRecordableError, record
from .graph import lifted
from .guards import Guard

Loss = Any  # a tensor, a number, or a tuple of them
Outcome = tuple[Loss, list[Tensor | None]]  # the loss, and the gradient of each leaf
Graph = Callable[..., Outcome]

#: Largest allowed difference between a recording and the plain run, relative to the largest entry. They round in
#: different orders.
TOLERANCES = {torch.float64: 1e-8, torch.float32: 1e-3}
COARSE = 5e-2  # the same in half precision


class Job(NamedTuple):
    """The computation to record.

    Attributes:
        run: a function of the tensors that returns a loss and adds to the gradients of parameters.
        tensors: its arguments.
        roots: what it reads besides: model, guide, ELBO.
    """

    run: Callable[..., Loss]
    tensors: Sequence[Tensor]
    roots: Sequence[Any]


@final
class Recording:
    """A graph of loss and gradients, with the tensors that it reads and the guard of what it depends on.

    Attributes:
        leaves: the tensors whose gradients the graph computes.
        guard: tells whether the graph still matches the program.
        stored: the content of Pyro's param store at the time of recording.
    """

    def __init__(
        self, graph: Graph, captured: list[Tensor], leaves: list[Tensor], guard: Guard, stored: dict[str, Tensor]
    ) -> None:
        self.leaves = leaves
        self.guard = guard
        self.stored = stored
        self._graph = graph
        self._captured = captured

    def __call__(self, tensors: Sequence[Tensor]) -> Outcome:
        """Return the loss for these data, and the gradient of each leaf."""
        with ExitStack() as stack:
            stack.enter_context(torch.no_grad())
            for device in ("cpu", "cuda"):
                if torch.is_autocast_enabled(device):  # the graph already contains the casts
                    stack.enter_context(torch.autocast(device, enabled=False))
            return self._graph(*self._captured, *tensors)


def stored_parameters() -> dict[str, Tensor]:
    """Return the unconstrained parameters in Pyro's param store."""
    return dict(pyro.get_param_store().named_parameters())


def new_recording(
    job: Job, finish: Callable[[GraphModule, Sequence[Tensor]], Graph], *, check: bool
) -> tuple[Recording, Outcome]:
    """Run a job plainly, record it, and compare the two.

    Args:
        job: the computation to record.
        finish: turns the graph and example inputs into the function that is replayed.
        check: whether to compare the recording's loss and gradients with those of the plain run.

    Returns:
        The recording and its outcome. The outcome is that of a replay, so a resumed run, which records again, gives the
        same results bit for bit. (If the first run drew initial values for Pyro's param store, it is that of the plain
        run.) Random states and buffers are as after one run, and gradients as before.

    Raises:
        NotRecordableError: if a recording cannot hold the program, or gives other results. All state is then restored.
    """
    before = _State(job)
    gradients = {leaf: leaf.grad for leaf in before.leaves}
    try:
        loss = _run(job, before.leaves)
        after = _State(job)
        gradients = dict.fromkeys(after.leaves) | gradients  # new leaves had no gradient
        outcome = loss, [leaf.grad for leaf in after.leaves]
        with no_sources_kept():
            recording, replayed = _recorded(job, before, after, outcome, finish, check=check)
        if replayed is None:
            after.restore()
        else:
            outcome = replayed
    except BaseException:
        before.restore()
        raise
    finally:
        for leaf, gradient in gradients.items():
            leaf.grad = gradient
    return recording, outcome


def _recorded(
    job: Job,
    before: "_State",
    after: "_State",
    outcome: Outcome,
    finish: Callable[[GraphModule, Sequence[Tensor]], Graph],
    *,
    check: bool,
) -> tuple[Recording, Outcome | None]:
    """Return the recording, and the outcome of its replay if that did the same as the first run."""
    if after.other_generators != before.other_generators:
        raise NotRecordableError(
            "Expected a program that draws its random numbers from torch, but found that it draws from Python's or "
            "NumPy's generator, which a recording would not repeat. Try torch.rand, or the plain ELBO."
        )
    start, end, leaves = before, after.random_state, after.leaves
    if not (before.guard.holds() and _same_entries(before.stored, after.stored)):
        # The first run has set something up; a second run is like all later ones. If the first run made new tensors,
        # such as parameters, it drew their values, and the second run follows it. Otherwise the second replaces it.
        start = before if after.known.keys() <= before.known.keys() else after
        start.restore()
        outcome = _run(job, leaves), [leaf.grad for leaf in leaves]
        end = torch.get_rng_state()
    is_first = start is before and torch.equal(end, after.random_state)

    start.restore()
    graph_module = record(
        lambda *tensors: (_run(job._replace(tensors=tensors), leaves), [leaf.grad for leaf in leaves]),
        job.tensors,
    )
    captured = lifted(graph_module)
    _check_state(after, captured)
    graph = finish(graph_module, [*captured, *job.tensors])
    recording = Recording(graph, captured, leaves, after.guard, after.stored)
    start.restore()
    replayed = recording(job.tensors)
    if check:
        _compare(outcome, replayed, leaves, torch.equal(end, torch.get_rng_state()))
    return recording, replayed if is_first else None


def _run(job: Job, leaves: Sequence[Tensor]) -> Loss:
    for leaf in leaves:
        leaf.grad = None
    return job.run(*job.tensors)


@final
class _State:
    """The state that a job depends on and changes: Python objects, tensors and their values, random states."""

    def __init__(self, job: Job) -> None:
        self.guard = Guard(job.roots)
        self.stored = stored_parameters()
        self.known = self.guard.tensors | {id(tensor): tensor for tensor in self.stored.values()}
        tensors = self.known.values()
        self.leaves = [tensor for tensor in tensors if tensor.is_leaf and tensor.requires_grad]
        self.random_state = torch.get_rng_state()
        self.other_generators = repr((random.getstate(), np.random.get_state(legacy=False)))
        self._values = [(tensor, tensor.clone()) for tensor in tensors if not tensor.requires_grad]
        self._cuda_states = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []

    def restore(self) -> None:
        """Restore torch's random states and the values of buffers."""
        torch.set_rng_state(self.random_state)
        for index, state in enumerate(self._cuda_states):
            torch.cuda.set_rng_state(state, index)
        with torch.no_grad():
            for tensor, value in self._values:
                # A buffer whose shape has changed since was initialized lazily, and remains so.
                if tensor.shape == value.shape and not torch.equal(tensor, value):
                    tensor.copy_(value)


def _same_entries(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(one[name] is other[name] for name in one)


def _check_state(state: _State, captured: Sequence[Tensor]) -> None:
    if not state.guard.holds() or not _same_entries(state.stored, stored_parameters()):
        raise NotRecordableError(
            "Expected a program that does the same in each run, but found that it changes its own Python state, or "
            f"puts a new tensor in the place of one: {reprlib.repr(state.guard.changes())}. Try a buffer that is "
            "changed in place, or the plain ELBO."
        )
    for tensor in captured:
        if id(tensor) not in state.known:
            raise NotRecordableError(
                "Expected a program that reads only its arguments and tensors that model and guide refer to, but found "
                f"another tensor of shape {tuple(tensor.shape)}, whose replacement a recording could not notice. Try "
                "making it a buffer of a module, or the plain ELBO."
            )


def _compare(expected: Outcome, found: Outcome, leaves: Sequence[Tensor], same_draws: bool) -> None:
    losses = zip(leaves_of(expected[0]), leaves_of(found[0]), strict=True)
    gradients = [*zip(leaves, expected[1], found[1], strict=True)]
    # Some gradients are zero up to rounding, so compare with the largest entry of all gradients.
    scale = max((gradient.abs().max().item() for gradient in expected[1] if gradient is not None), default=0.0)
    different = ["its loss" for a, b in losses if not _close(a, b, abs(float(a)))]
    different += [
        f"the gradient of a parameter of shape {tuple(leaf.shape)}"
        for leaf, a, b in gradients
        if not _close(a, b, scale)
    ]
    if not same_draws:
        different.append("the number of its random draws")
    if different:
        raise NotRecordableError(
            "Expected a recording that equals the plain ELBO under the same seed, but found that "
            f"{different[0]} differs: the program depends on something that changes from run to run. Try the plain "
            "ELBO."
        )


def _close(expected: Any, found: Any, scale: float) -> bool:
    if expected is None or found is None:
        return expected is found
    kinds = {value.dtype for value in (expected, found) if isinstance(value, Tensor)}
    tolerance = max((TOLERANCES.get(kind, COARSE) for kind in kinds), default=0.0)
    a, b = (torch.as_tensor(value, dtype=torch.float64, device="cpu").detach() for value in (expected, found))
    return torch.allclose(a, b, rtol=tolerance, atol=tolerance * scale if math.isfinite(scale) else 0.0, equal_nan=True)
