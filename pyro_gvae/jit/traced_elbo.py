"""An ELBO that records another one and replays it, without Pyro's handlers and without autograd."""

import reprlib
import warnings
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from typing import Any, NamedTuple, final

import pyro
import torch
from pyro import poutine
from pyro.infer import ELBO
from pyro.util import warn_if_nan
from torch import Tensor

from ..handlers.parameters import announce
from ..handlers.sites import Program
from ..programs.tensor_elbo import TensorELBO
from ..runtime.compat.pyro import LossOnlyELBO, leaf_of
from ..runtime.compat.torch import leaves_of, tensors_mapped
from .calls import Call, Key, difference, new_call
from .graph import finished
from .recording import Outcome, Recording, differentiable_gradients, first_run
from .state import Job, Values, stored_parameters

#: A recording takes as long as a hundred runs or more. After so many replays or unrecorded runs, one more is allowed.
REPLAYS_PER_RECORDING, RUNS_PER_RECORDING = 50, 1000
#: Number of runs in succession that may change a program's Python state, as lazy initialization does.
MOST_SETTING_UP = 3


class Found(NamedTuple):
    """The result of a call.

    Attributes:
        outcome: loss and gradients.
        leaves: the parameters that the gradients belong to.
        before: random states and buffers before the call, if second derivatives may need them.
    """

    outcome: Outcome
    leaves: list[Tensor]
    before: Values | None


class Entry(NamedTuple):
    """A recording, the key of its calls, and the parameters that a run shows to Pyro."""

    key: Key
    recording: Recording
    params: dict[str, Tensor]

    def holds(self, key: Key, *, show: bool) -> bool:
        """Return whether the recording is valid for a call. If so, and if asked to, show its parameters to Pyro."""
        return self.key == key and self.recording.holds() and (not show or _shown(self.params, self.recording.stored))


def _shown(params: dict[str, Tensor], stored: dict[str, Tensor]) -> bool:
    """Show parameters to handlers such as SVI's; return False if Pyro's param store now has other tensors."""
    store = stored_parameters()
    for name, leaf in params.items():
        if name in stored:
            if store.get(name) is not leaf:
                return False
            pyro.param(name)
        else:  # a parameter that remains in its module
            announce(name, leaf)
    return True


@final
class TracedELBO(LossOnlyELBO):
    """A drop-in `loss=` for `SVI` that records the loss and gradients of another ELBO once, and replays them.

    The first step runs the plain ELBO, with Pyro's current validation setting, and records the operations of its
    forward and backward pass as one `torch.fx` graph. Later steps run that graph. Parameters, buffers and data are its
    inputs, so neither a parameter update nor annealing (`vae.temperature = 0.5`) needs another recording. Random draws
    remain random: they take the same numbers from torch's generator as the plain ELBO, in the same order, so the same
    seed gives the same losses.

    A recording is used again only if nothing that it depends on has changed; otherwise a new one is made. It depends on

    - the arguments: nesting, shape, stride, dtype and device of tensors, and the values of everything else;
    - everything that model, guide and ELBO refer to, see :class:`~pyro_gvae.jit.guards.Guard`: parameters and buffers
      that are added, removed or replaced (their values may change), which of them require gradients, `train()` and
      `eval()`, numbers and other Python attributes, global variables and closures;
    - torch's default dtype and device, gradient mode and autocast;
    - the entries of Pyro's param store that the program uses.

    Changes of elements of large NumPy arrays, and of files, are not noticed. Calls inside another Pyro handler, or with
    arguments that require gradients, are passed to the plain ELBO.

    A program that a recording cannot hold is run by the plain ELBO, with one warning that gives the reason: control
    flow or shapes that depend on data, values read from tensors (`.item()`), Python state that changes in each run,
    random numbers from outside torch, tensors whose replacement could not be noticed. After `max_recordings` recordings
    this also happens to calls whose Python numbers or shapes are new each time: a recording is worth it only if it is
    replayed.

    Args:
        elbo: the loss to record, any of Pyro's or of this package. Your own must convert its loss to a number by
            `pyro.infer.util.torch_item`, or be a :class:`~pyro_gvae.programs.tensor_elbo.TensorELBO`.
        check: whether to compare loss and gradients of each new recording with the plain ELBO under the same seed.
        max_recordings: number of recordings that are kept, at least 1; the least recently used is dropped first.
        compile: whether to compile the graph with Inductor (with CUDA graphs on a GPU), which needs a compiler and some
            seconds.

    Example:
        >>> from pyro.infer import SVI, Trace_ELBO
        >>> from pyro_gvae.models.categorical_vae import CategoricalVAE
        >>> vae = CategoricalVAE(data_dim=6, num_latents=2, num_categories=3, hidden=(5,))
        >>> elbo = TracedELBO(Trace_ELBO())
        >>> svi = SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": 1e-3}), loss=elbo)
        >>> for vae.temperature in (1.0, 0.9, 0.8):
        ...     loss = svi.step(torch.ones(4, 6))
        >>> elbo.num_recordings
        1
    """

    def __init__(self, elbo: ELBO, *, check: bool = True, max_recordings: int = 16, compile: bool = False) -> None:
        super().__init__(num_particles=elbo.num_particles, vectorize_particles=elbo.vectorize_particles)
        if max_recordings < 1:
            raise ValueError(f"Expected max_recordings of at least 1, but found {max_recordings}.")
        self.elbo: Any = elbo
        self.check = check
        self.max_recordings = max_recordings
        self.compile = compile
        #: Number of recordings made so far.
        self.num_recordings = 0
        self._entries: list[Entry] = []  # ordered from least to most recently used
        self._unrecorded: list[Key] = []  # of calls that no recording can hold
        self._credit: float = max_recordings  # how many more may be made
        self._setting_up = 0  # runs in succession that changed the program's Python state
        self._warned: set[Any] = set()

    def loss(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> Any:
        """Return the plain ELBO's `loss`, in nats summed over the data."""
        return self._as_numbers(new_call("loss", model, guide, args, kwargs))

    def loss_and_grads(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> Any:
        """Return the plain ELBO's `loss_and_grads`, and add gradients to `.grad` of the parameters."""
        return self._as_numbers(new_call("loss_and_grads", model, guide, args, kwargs))

    def differentiable_loss(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> Tensor:
        """Return the plain ELBO's `differentiable_loss`, a tensor whose `.backward()` may be called once.

        With `create_graph=True`, the plain ELBO computes the gradients again, from the same random states.
        """
        call = new_call("differentiable_loss", model, guide, args, kwargs)
        found = self._found(call) if torch.is_grad_enabled() and not call.is_foreign() else None
        if found is None:
            loss: Tensor = call.plainly(self.elbo)
            return loss
        assert found.before is not None
        again = partial(differentiable_gradients, partial(call.plainly, self.elbo), found.before, found.leaves)
        loss = _Replayed.apply(found, again, *found.leaves)
        return warn_if_nan(loss, "loss")

    def outcome(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> Found | None:
        """Compute what `loss_and_grads` computes, but return the gradients; for your own training loops.

        New recordings are made with Pyro's validation on, and with a param store of their own.

        Returns:
            The loss as a tensor together with the gradients, and the parameters that the gradients belong to. None if
            there is no recording, so that the caller has to run the plain ELBO.
        """
        call = new_call("loss_and_grads", model, guide, args, kwargs)
        return None if call.is_foreign() else self._found(call, apart=True)

    def _as_numbers(self, call: Call) -> Any:
        found = None if call.is_foreign() else self._found(call)
        if found is None:
            return call.plainly(self.elbo)
        loss, gradients = found.outcome
        for leaf, gradient in zip(found.leaves, gradients, strict=True):
            if gradient is not None:
                leaf.grad = gradient if leaf.grad is None else leaf.grad.add_(gradient)
        numbers = tensors_mapped(Tensor.item, loss)
        for number in leaves_of(numbers):
            warn_if_nan(number, "loss")
        return numbers

    def _found(self, call: Call, *, apart: bool = False) -> Found | None:
        """Return the result of a recording, or of the run that was meant to become one; None if there is neither.

        Args:
            call: the call.
            apart: whether to record in a param store of its own, and to show no parameters to Pyro.
        """
        key = call.key()
        entry = self._known(key, show=not apart)
        if entry is not None:
            self._earn(1 / REPLAYS_PER_RECORDING)
            before = entry.recording.state() if call.method == "differentiable_loss" else None
            return Found(entry.recording(call.tensors), entry.recording.leaves, before)
        with ExitStack() as stack:
            if apart:
                stack.enter_context(pyro.get_param_store().scope())
                stack.enter_context(pyro.validation_enabled(True))
            if key not in self._unrecorded and self._may_record(call, key):
                return self._new(call, key, show=not apart)
        self._earn(1 / RUNS_PER_RECORDING)
        return None

    def _known(self, key: Key, *, show: bool) -> Entry | None:
        """Return an existing recording that is still valid, or None."""
        for index in range(len(self._entries) - 1, -1, -1):
            entry = self._entries[index]
            if entry.holds(key, show=show):
                self._entries.append(self._entries.pop(index))
                return entry
        return None

    def _may_record(self, call: Call, key: Key) -> bool:
        """Return whether to try a recording. A sum over slices needs none, and gives no warning."""
        args, kwargs = call.arguments(call.tensors)
        if isinstance(self.elbo, TensorELBO) and self.elbo.why_not_recordable(call.model, call.guide, *args, **kwargs):
            self._unrecorded = [*self._unrecorded, key][-self.max_recordings :]
            return False
        if call.has_arrays():
            self._warn(
                call,
                "Expected data as tensors, but found a large array, which a recording would treat as a constant. Try "
                "torch.from_numpy(x).",
            )
            return False
        if self._credit >= 1:
            return True
        self._warn(call, self._changing(key))
        return False

    def _changing(self, key: Key) -> str:
        """Describe why no recording is made for now."""
        last = next((entry for entry in reversed(self._entries) if entry.key[0] == key[0]), None)
        what = "other calls" if last is None else difference(key, last.key)
        if what is None and last is not None:
            what = f"{reprlib.repr(last.recording.guard.changes())} among the objects of model, guide and loss"
        return (
            f"Expected recordings that can be replayed, but found {self.num_recordings} recordings, and now {what}. "
            "Try a tensor, as an argument or a buffer, instead of a number that changes, batches of one shape, or a "
            "larger max_recordings."
        )

    def _new(self, call: Call, key: Key, *, show: bool) -> Found:
        """Make a first run, which becomes a recording if possible."""
        with poutine.block(), poutine.trace(param_only=True) as shown:
            first = first_run(
                self._job(call),
                partial(finished, inductor=self.compile),
                check=self.check,
                last_attempt=self._setting_up >= MOST_SETTING_UP,
            )
        sites: dict[str, Any] = shown.trace.nodes
        params = {name: leaf_of(site["value"]) for name, site in sites.items()}
        self._setting_up = 0 if isinstance(first.found, Recording) else self._setting_up + (first.found is None)
        self._credit -= first.found is not None
        if isinstance(first.found, Recording):
            self.num_recordings += 1
            self._entries = [*self._entries, Entry(key, first.found, params)][-self.max_recordings :]
        elif first.found is not None:
            self._unrecorded = [*self._unrecorded, key][-self.max_recordings :]
            self._warn(call, str(first.found))
        if show:
            _shown(params, first.stored)
        return Found(first.outcome, first.leaves, first.before)

    def _job(self, call: Call) -> Job:
        others = [leaf for leaf in call.leaves if not isinstance(leaf, Tensor)]
        return Job(
            run=partial(call.run, self.elbo),
            # Separate tensor objects, in case an argument is given twice or is also a buffer of the program.
            tensors=[tensor.detach() for tensor in call.tensors],
            roots=[call.model, call.guide, self.elbo, *others],
        )

    def _earn(self, amount: float) -> None:
        self._credit = min(self.max_recordings, self._credit + amount)

    def _warn(self, call: Call, reason: str) -> None:
        """Warn, once for each method, that it runs unrecorded."""
        if call.method not in self._warned:
            self._warned.add(call.method)
            warnings.warn(f"Steps run without a recording: {reason}", stacklevel=5)


@final
class _Replayed(torch.autograd.Function):
    """A recorded loss with its recorded gradients, or those of the plain loss if they are differentiated again."""

    @staticmethod
    def forward(ctx: Any, found: Found, again: Callable[..., list[Tensor | None]], *leaves: Tensor) -> Tensor:
        loss, ctx.gradients = found.outcome
        ctx.again = again
        return torch.as_tensor(loss)

    @staticmethod
    def backward(ctx: Any, scale: Tensor) -> Any:
        gradients = ctx.again() if torch.is_grad_enabled() else ctx.gradients
        return None, None, *(None if gradient is None else gradient * scale for gradient in gradients)
