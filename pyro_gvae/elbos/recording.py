"""From a plain run to a recording that gives the same: loss and gradients as one graph of parameters, buffers and data."""

import random
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from typing import Any, NamedTuple, Self, final

import numpy as np
import pyro
import torch
from torch import Tensor
from torch.fx import GraphModule
from torch.utils import _pytree as pytree

from .graph import lifted
from .guards import Guard
from .refusals import NotRecordable, record

Loss = Any  # a tensor, a number, or a tuple of them
Outcome = tuple[Loss, list[Tensor | None]]  # the loss, and the gradient of each leaf
Graph = Callable[..., Outcome]

#: How far a recording may be from the plain run, relative to the largest entry: it rounds in another order.
TOLERANCES = {torch.float64: 1e-8, torch.float32: 1e-3}
COARSE = 5e-2  # in half precision


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


@final
class Recording:
    """A graph of loss and gradients, the tensors that it reads, and the guard of what it depends on.

    Attributes:
        leaves: the tensors whose gradients the graph gives.
        guard: tells whether the graph is still that of the program.
        stored: what Pyro's param store held.
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
        """The loss for these data, and the gradient of each leaf."""
        with ExitStack() as stack:
            stack.enter_context(torch.no_grad())
            for device in ("cpu", "cuda"):
                if torch.is_autocast_enabled(device):  # the graph has its casts already
                    stack.enter_context(torch.autocast(device, enabled=False))
            return self._graph(*self._captured, *tensors)


def stored_parameters() -> dict[str, Tensor]:
    """What Pyro's param store holds, unconstrained."""
    return dict(pyro.get_param_store().named_parameters())


def new_recording(job: Job, finish: Callable[[GraphModule, Sequence[Tensor]], Graph], *, check: bool) -> Recording:
    """Run a job plainly, record it, and compare; random states, buffers and gradients are afterwards as before.

    Args:
        job: what to record.
        finish: makes, of the graph and example inputs, the function that is replayed.
        check: compare the recording's loss and gradients with the plain ones.

    Raises:
        NotRecordable: if a recording cannot hold the program, or does not give the same.
    """
    with _Rewind([*Guard(job.roots).tensors.values(), *stored_parameters().values()]) as rewind:
        loss = job.run(*job.tensors)
        rewind.check_other_generators()
        # What a first run sets up, such as parameters, is there from here on.
        guard, stored = Guard(job.roots), stored_parameters()
        known = guard.tensors | {id(tensor): tensor for tensor in stored.values()}
        leaves = [tensor for tensor in known.values() if tensor.is_leaf and tensor.requires_grad]
        expected = loss, [leaf.grad for leaf in leaves], torch.get_rng_state()
        rewind(leaves)

        def run(*tensors: Tensor) -> Outcome:
            return job.run(*tensors), [leaf.grad for leaf in leaves]

        graph_module = record(run, job.tensors, number_modules=job.number_modules)
        rewind(leaves)
        captured = lifted(graph_module)
        _check_state(captured, known, guard, stored)
        graph = finish(graph_module, [*captured, *job.tensors])
        recording = Recording(graph, captured, leaves, guard, stored)
        if check:
            _compare(*expected, recording(job.tensors), leaves)
    return recording


@final
class _Rewind:
    """Puts back what a run changes: torch's random states, values of buffers, gradients."""

    def __init__(self, tensors: Iterable[Tensor]) -> None:
        tensors = list(tensors)
        self._gradients = [(tensor, tensor.grad) for tensor in tensors if tensor.is_leaf and tensor.requires_grad]
        self._values = [(tensor, tensor.clone(), tensor._version) for tensor in tensors if not tensor.requires_grad]
        self._random_state = torch.get_rng_state()
        self._cuda_states = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
        self._other_generators = _other_generators()

    def __enter__(self) -> Self:
        self([])
        return self

    def __call__(self, leaves: Iterable[Tensor]) -> None:
        """Rewind, without gradients for the next run: those of the given leaves go as well."""
        torch.set_rng_state(self._random_state)
        for index, state in enumerate(self._cuda_states):
            torch.cuda.set_rng_state(state, index)
        with torch.no_grad():
            for tensor, value, version in self._values:
                if tensor._version != version:
                    tensor.copy_(value)
        for leaf in [*leaves, *(leaf for leaf, _ in self._gradients)]:
            leaf.grad = None

    def __exit__(self, *exception: Any) -> None:
        self([])
        for leaf, gradient in self._gradients:
            leaf.grad = gradient

    def check_other_generators(self) -> None:
        if _other_generators() != self._other_generators:
            raise NotRecordable(
                "Expected a program that draws its random numbers from torch, but found that it draws from Python's or "
                "NumPy's generator, which a recording would not do again. Try torch.rand, or the plain ELBO."
            )


def _other_generators() -> str:
    return repr((random.getstate(), np.random.get_state()[1:]))


def _check_state(captured: Sequence[Tensor], known: dict[int, Tensor], guard: Guard, stored: dict[str, Tensor]) -> None:
    if not guard.holds() or any(tensor is not stored[name] for name, tensor in stored_parameters().items()):
        raise NotRecordable(
            "Expected a program that is the same whenever it runs, but found that it changes its own Python state, or puts a "
            f"new tensor in the place of one: {guard.changes()}. Try a buffer that changes in place, or the plain ELBO."
        )
    for tensor in captured:
        if id(tensor) not in known:
            raise NotRecordable(
                "Expected a program that reads its arguments, and tensors that model and guide refer to, but found another "
                f"tensor of shape {tuple(tensor.shape)}, whose replacement a recording could not notice. Try to make it a "
                "buffer of a module, or the plain ELBO."
            )


def _compare(loss: Loss, gradients: Sequence[Tensor | None], random_state: Tensor, found: Outcome, leaves: Sequence[Tensor]) -> None:
    same_draws = torch.equal(random_state, torch.get_rng_state())
    pairs = [*zip(pytree.tree_leaves(loss), pytree.tree_leaves(found[0]), strict=True)]
    named = [("its loss", a, b) for a, b in pairs]
    named += [
        (f"the gradient of a parameter of shape {tuple(leaf.shape)}", a, b)
        for leaf, a, b in zip(leaves, gradients, found[1], strict=True)
    ]
    different = [name for name, a, b in named if not _close(a, b)] + ["what it draws from torch's generator"] * (not same_draws)
    if different:
        raise NotRecordable(
            f"Expected a recording that gives what the plain ELBO gives under the same seed, but found that {different[0]} "
            "differs: the program depends on something that changes from run to run. Try the plain ELBO."
        )


def _close(expected: Any, found: Any) -> bool:
    if expected is None or found is None:
        return expected is found
    a = torch.as_tensor(expected, dtype=torch.float64)
    b = torch.as_tensor(found, dtype=torch.float64, device=a.device)
    kinds = {value.dtype for value in (expected, found) if isinstance(value, Tensor)}
    tolerance = max((TOLERANCES.get(kind, COARSE) for kind in kinds), default=0.0)
    scale = a.nan_to_num(0.0, 0.0, 0.0).abs().amax() if a.numel() else a.sum()
    return bool(torch.allclose(a, b, rtol=tolerance, atol=tolerance * scale.item(), equal_nan=True))
