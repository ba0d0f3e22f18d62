"""An ELBO that records another one and replays it, without Pyro's handlers and without autograd."""

from collections.abc import Callable, Sequence
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
from ..programs.tensor_elbo import TensorELBO, recordable
from ..runtime.compat.pyro import LossOnlyELBO, handlers_on_stack, leaf_of, only_records_parameters
from ..runtime.compat.torch import Nesting, flattened, leaves_of, nested, tensors_mapped
from .capture import NotRecordableError
from .graph import finished
from .recording import Job, Loss, Outcome, Recording, new_recording, stored_parameters


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

    def key(self) -> Any:
        """Return a key that is equal for calls that may share a recording, by their arguments and torch's modes."""
        arguments = tuple(map(_signature, self.leaves))
        return self.method, self.model, self.guide, arguments, self.nesting, _modes()

    def is_foreign(self) -> bool:
        """Return whether no recording can replace the call: another handler acts on it, or inputs require gradients."""
        others = not all(map(only_records_parameters, handlers_on_stack()))
        return others or any(tensor.requires_grad for tensor in self.tensors)

    def arguments(self, tensors: Sequence[Tensor]) -> tuple[Sequence[Any], dict[str, Any]]:
        """Return the arguments as they were given, but with other tensors."""
        given = iter(tensors)
        leaves = [next(given) if isinstance(leaf, Tensor) else leaf for leaf in self.leaves]
        return (leaves, {}) if self.nesting is None else nested(leaves, self.nesting)

    def run(self, elbo: ELBO, *tensors: Tensor) -> Loss:
        """Make the call with other tensors, in a form that can be recorded. Gradients are added to `.grad`."""
        args, kwargs = self.arguments(tensors)
        loss = recordable(elbo, self.method)(self.model, self.guide, *args, **kwargs)
        if self.method == "differentiable_loss":
            loss.backward()
            loss = loss.detach()
        return loss


class Entry(NamedTuple):
    """A recording, the key of its calls, and the parameters that a run shows to Pyro."""

    key: Any
    recording: Recording
    params: dict[str, Tensor]

    def show_params(self) -> bool:
        """Show the parameters to handlers such as SVI's; return False if Pyro's param store now has other tensors."""
        store = stored_parameters()
        for name, leaf in self.params.items():
            if name in self.recording.stored:
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

    A recording is used again only if nothing that it depends on has changed; otherwise a new one is made. Guarded are

    - the arguments: nesting, shape, stride, dtype and device of tensors, and the values of everything else;
    - everything that model, guide and ELBO refer to, see :class:`~pyro_gvae.jit.guards.Guard`: parameters and buffers
      that are added, removed or replaced (their values may change), which of them require gradients, `train()` and
      `eval()`, numbers and other Python attributes, global variables and closures;
    - torch's default dtype and device, gradient mode and autocast;
    - the entries of Pyro's param store that the program uses.

    Not guarded are the elements of NumPy arrays, attributes of Python modules, and files. Calls inside another Pyro
    handler, or with arguments that require gradients, are passed to the plain ELBO.

    Args:
        elbo: the loss to record, any of Pyro's or of this package. Your own must convert its loss to a number by
            `pyro.infer.util.torch_item`, or be a :class:`~pyro_gvae.programs.tensor_elbo.TensorELBO`.
        check: whether to compare loss and gradients of each new recording with the plain ELBO under the same seed.
        max_recordings: number of recordings that are kept; the least recently used is dropped first.
        compile: whether to compile the graph with Inductor (with CUDA graphs on a GPU), which needs a compiler and some
            seconds.

    Raises:
        ValueError: when recording, if a recording cannot hold the program: its control flow or a shape depends on data,
            or it reads values from tensors (`.item()`), changes its own Python state, draws random numbers outside
            torch, or reads a tensor whose replacement could not be noticed.

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

    def loss(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> Any:
        """Return the plain ELBO's `loss`, in nats summed over the data."""
        return self._as_numbers(_call("loss", model, guide, args, kwargs))

    def loss_and_grads(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> Any:
        """Return the plain ELBO's `loss_and_grads`, and add gradients to `.grad` of the parameters."""
        return self._as_numbers(_call("loss_and_grads", model, guide, args, kwargs))

    def differentiable_loss(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> Tensor:
        """Return the plain ELBO's `differentiable_loss`, a tensor whose `.backward()` may be called once."""
        call = _call("differentiable_loss", model, guide, args, kwargs)
        if not torch.is_grad_enabled() or call.is_foreign():
            return self.elbo.differentiable_loss(model, guide, *args, **kwargs)
        recording, outcome = self._shown(call)
        loss: Tensor = _Replayed.apply(outcome, *recording.leaves)
        return warn_if_nan(loss, "loss")

    def outcome(self, model: Program, guide: Program, *args: Any) -> tuple[Outcome, list[Tensor]]:
        """Compute what `loss_and_grads` computes, but return the gradients; for your own training loops.

        New recordings are made with Pyro's validation on, and with a param store of their own.

        Returns:
            The loss as a tensor together with the gradients, and the parameters that the gradients belong to.
        """
        call = _call("loss_and_grads", model, guide, args, {})
        key = call.key()
        entry = self._known(key)
        if entry is not None:
            return entry.recording(call.tensors), entry.recording.leaves
        with pyro.get_param_store().scope(), pyro.validation_enabled(True):
            entry, outcome = self._new(call, key)
        return outcome, entry.recording.leaves

    def _as_numbers(self, call: Call) -> Any:
        if call.is_foreign():
            args, kwargs = call.arguments(call.tensors)
            return getattr(self.elbo, call.method)(call.model, call.guide, *args, **kwargs)
        recording, (loss, gradients) = self._shown(call)
        for leaf, gradient in zip(recording.leaves, gradients, strict=True):
            if gradient is not None:
                leaf.grad = gradient if leaf.grad is None else leaf.grad.add_(gradient)
        numbers = tensors_mapped(Tensor.item, loss)
        for number in leaves_of(numbers):
            warn_if_nan(number, "loss")
        return numbers

    def _shown(self, call: Call) -> tuple[Recording, Outcome]:
        """Return the outcome of a call, and show its parameters to SVI."""
        key = call.key()
        entry = self._known(key, Entry.show_params)
        if entry is not None:
            return entry.recording, entry.recording(call.tensors)
        entry, outcome = self._new(call, key)
        entry.show_params()
        return entry.recording, outcome

    def _known(self, key: Any, accept: Callable[[Entry], bool] = lambda entry: True) -> Entry | None:
        """Return an existing recording that is still valid, or None."""
        for index in range(len(self._entries) - 1, -1, -1):
            entry = self._entries[index]
            if entry.key == key and entry.recording.guard.holds() and accept(entry):
                self._entries.append(self._entries.pop(index))
                return entry
        return None

    def _new(self, call: Call, key: Any) -> tuple[Entry, Outcome]:
        """Make a recording, and return it with its outcome."""
        self._check_recordable(call)
        others = [leaf for leaf in call.leaves if not isinstance(leaf, Tensor)]
        job = Job(
            run=partial(call.run, self.elbo),
            # Separate tensor objects, in case an argument is given twice or is also a buffer of the program.
            tensors=[tensor.detach() for tensor in call.tensors],
            roots=[call.model, call.guide, self.elbo, *others],
        )
        self.num_recordings += 1
        with poutine.block(), poutine.trace(param_only=True) as shown:
            recording, outcome = new_recording(job, partial(finished, inductor=self.compile), check=self.check)
        sites: dict[str, Any] = shown.trace.nodes
        params = {name: leaf_of(site["value"]) for name, site in sites.items()}
        entry = Entry(key, recording, params)
        self._entries = [*self._entries, entry][-self.max_recordings :]
        return entry, outcome

    def _check_recordable(self, call: Call) -> None:
        """Ask the ELBO whether it can be recorded, because finding out by recording may take minutes."""
        if not isinstance(self.elbo, TensorELBO):
            return
        args, kwargs = call.arguments(call.tensors)
        reason = self.elbo.why_not_recordable(call.model, call.guide, *args, **kwargs)
        if reason is not None:
            raise NotRecordableError(reason)


@final
class _Replayed(torch.autograd.Function):
    """A recorded loss with its recorded gradients."""

    @staticmethod
    def forward(ctx: Any, outcome: Outcome, *leaves: Tensor) -> Tensor:
        loss, ctx.gradients = outcome
        return torch.as_tensor(loss)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, scale: Tensor) -> Any:
        return None, *(None if gradient is None else gradient * scale for gradient in ctx.gradients)


def _call(method: str, model: Program, guide: Program, args: Any, kwargs: Any) -> Call:
    if not kwargs and all(isinstance(arg, Tensor) for arg in args):
        return Call(method, model, guide, list(args), None)
    leaves, nesting = flattened((args, kwargs))
    return Call(method, model, guide, leaves, nesting)


def _signature(leaf: Any) -> Any:
    if isinstance(leaf, Tensor):
        return leaf.shape, leaf.stride(), leaf.dtype, leaf.device
    return type(leaf), leaf if getattr(leaf, "__hash__", None) else id(leaf)


def _modes() -> Any:
    """Return the settings of torch and Pyro that change what a call does."""
    devices = ("cpu", "cuda")
    autocast = tuple(torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device) for device in devices)
    local = pyro.settings.get("module_local_params")
    return torch.is_grad_enabled(), torch.get_default_dtype(), torch.get_default_device(), autocast, local
