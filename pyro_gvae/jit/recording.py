"""Recordings of a loss and its gradients as one graph, each checked against a plain run."""

import math
import reprlib
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any, NamedTuple, final

import torch
from torch import Tensor
from torch.fx import GraphModule

from ..runtime.compat.torch import acts_when_graded, hooks_of_each, leaves_of, no_sources_kept
from .capture import NotRecordableError, record
from .graph import lifted
from .guards import KIND, Guard
from .state import Job, Loss, State, Values, same_entries, stored_parameters

Outcome = tuple[Loss, list[Tensor | None]]  # the loss, and the gradient of each leaf
Graph = Callable[..., Outcome]

#: Largest allowed difference between a recording and the plain run, relative to the largest entry. They round in
#: different orders.
TOLERANCES = {torch.float64: 1e-8, torch.float32: 1e-3}
COARSE = 5e-2  # the same in half precision


@final
class Recording:
    """A graph of loss and gradients, with the tensors that it reads and the guard of what it depends on.

    Attributes:
        leaves: the tensors whose gradients the graph computes.
        guard: tells whether what the program refers to has changed.
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
        self._hooks = hooks_of_each(leaves)
        self._stored = [tensor for tensor in (*captured, *leaves) if id(tensor) not in guard.tensors]
        self._kinds = list(map(KIND, self._stored))

    def state(self) -> Values:
        """Return the current values of what a call may change."""
        return Values(tensor for tensor in self._captured if not tensor.requires_grad)

    def holds(self) -> bool:
        """Return whether the graph still matches the program."""
        same = self.guard.holds() and hooks_of_each(self.leaves) == self._hooks
        return same and list(map(KIND, self._stored)) == self._kinds  # of tensors in Pyro's param store

    def __call__(self, tensors: Sequence[Tensor]) -> Outcome:
        """Return the loss for these data, and the gradient of each leaf."""
        with ExitStack() as stack:
            stack.enter_context(torch.no_grad())
            for device in ("cpu", "cuda"):
                if torch.is_autocast_enabled(device):  # the graph already contains the casts
                    stack.enter_context(torch.autocast(device, enabled=False))
            return self._graph(*self._captured, *tensors)


class FirstRun(NamedTuple):
    """The result of a first run.

    Attributes:
        outcome: the loss, and the gradient of each leaf.
        leaves: the tensors that the gradients belong to.
        stored: the content of Pyro's param store after the run.
        before: random states and buffers before the run.
        found: the recording, or the reason why there is none; None if the program has changed its Python state, for
            example by lazy initialization, so that the next run may be recorded.
    """

    outcome: Outcome
    leaves: list[Tensor]
    stored: dict[str, Tensor]
    before: Values
    found: Recording | NotRecordableError | None


def first_run(
    job: Job, finish: Callable[[GraphModule, Sequence[Tensor]], Graph], *, check: bool, last_attempt: bool = False
) -> FirstRun:
    """Run a job plainly, record it, and compare the two.

    Args:
        job: the computation to record.
        finish: turns the graph and example inputs into the function that is replayed.
        check: whether to compare the recording's loss and gradients with those of the plain run.
        last_attempt: whether to give up on a program that changes its Python state again.

    Returns:
        The outcome, and the recording if there is one. The outcome is that of a replay, so a resumed run, which records
        again, gives the same results bit for bit. (Without a recording, or if the first run drew initial values for
        Pyro's param store, it is that of the plain run.) Random states and buffers are as after one run, and gradients
        as before. A program that changes its Python state runs only once.
    """
    before = State(job)
    gradients = {leaf: leaf.grad for leaf in before.leaves}
    try:
        loss = _run(job, before.leaves)
        after = State(job)
        gradients = dict.fromkeys(after.leaves) | gradients  # new leaves had no gradient
        outcome = loss, [leaf.grad for leaf in after.leaves]
        found: Recording | NotRecordableError | None = None
        try:
            if before.guard.places_hold() or last_attempt:
                with no_sources_kept():
                    found, replayed = _recorded(job, before, after, outcome, finish, check=check)
                outcome = outcome if replayed is None else replayed
                if replayed is None:
                    after.restore()
        except Exception as error:  # the plain run has succeeded, so the program can run unrecorded
            after.restore()
            found = error if isinstance(error, NotRecordableError) else _failed(error)
    except BaseException:
        before.restore()
        raise
    finally:
        for leaf, gradient in gradients.items():
            leaf.grad = gradient
    return FirstRun(outcome, after.leaves, after.stored, before.values, found)


def _failed(error: Exception) -> NotRecordableError:
    words = str(error).strip().splitlines() or [type(error).__name__]
    return NotRecordableError(
        "Expected operations that torch can record together with their backward pass, but found an error: "
        f"{words[0].rstrip('.')}. Try the plain ELBO instead of TracedELBO."
    )


def _recorded(
    job: Job,
    before: State,
    after: State,
    outcome: Outcome,
    finish: Callable[[GraphModule, Sequence[Tensor]], Graph],
    *,
    check: bool,
) -> tuple[Recording, Outcome | None]:
    """Return the recording, and the outcome of its replay if that did the same as the first run."""
    _check_first_run(before, after)
    start, end, leaves = before, after.random_state, after.leaves
    if not (before.guard.holds() and same_entries(before.stored, after.stored)):
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


def differentiable_gradients(
    loss: Callable[[], Tensor], before: Values, leaves: Sequence[Tensor]
) -> list[Tensor | None]:
    """Return gradients of a plain loss that can be differentiated again.

    Args:
        loss: computes the loss.
        before: random states and buffers to start from. Afterwards the current ones are restored.
        leaves: the tensors to differentiate by.
    """
    now = before.now()
    before.restore()
    try:
        return list(torch.autograd.grad(loss(), list(leaves), create_graph=True, allow_unused=True))
    finally:
        now.restore()


def _run(job: Job, leaves: Sequence[Tensor]) -> Loss:
    for leaf in leaves:
        leaf.grad = None
    return job.run(*job.tensors)


def _check_first_run(before: State, after: State) -> None:
    if after.other_generators != before.other_generators:
        raise NotRecordableError(
            "Expected a program that draws its random numbers from torch, but found that it draws from Python's or "
            "NumPy's generator, which a recording would not repeat. Try torch.rand, or the plain ELBO."
        )
    if not before.guard.places_hold():
        raise _changes_itself(before)
    for reason in after.guard.unguarded:
        raise NotRecordableError(reason)
    for leaf in after.leaves:
        if acts_when_graded(leaf):
            raise NotRecordableError(
                "Expected parameters without post-accumulate-grad hooks, which a recording cannot call, but found one "
                f"on a parameter of shape {tuple(leaf.shape)}. Try the plain ELBO."
            )


def _changes_itself(state: State) -> NotRecordableError:
    return NotRecordableError(
        "Expected a program that does the same in each run, but found that it changes its own Python state, or "
        f"replaces a tensor by a new one: {reprlib.repr(state.guard.changes())}. Try a buffer that is "
        "changed in place, or the plain ELBO."
    )


def _check_state(state: State, captured: Sequence[Tensor]) -> None:
    if not state.guard.holds() or not same_entries(state.stored, stored_parameters()):
        raise _changes_itself(state)
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
    a, b = (
        torch.as_tensor(value, dtype=torch.float64, device="cpu").detach().to_dense() for value in (expected, found)
    )
    return torch.allclose(a, b, rtol=tolerance, atol=tolerance * scale if math.isfinite(scale) else 0.0, equal_nan=True)
