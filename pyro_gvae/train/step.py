"""One training step: loss, gradients, one fused optimizer."""

import math
import warnings
from collections.abc import Iterator, Sequence
from functools import reduce
from typing import Any, Protocol, cast, final

import pyro
import torch
from pyro.infer import ELBO
from torch import Tensor, nn

from ..config.names import Shard
from ..estimators import Estimator, own_state
from ..exact import HasPair
from ..jit.capture import NotRecordableError
from ..jit.traced_elbo import TracedELBO
from ..programs.runs import items
from ..runtime.distributed import ALONE, Sums, share, sum_gradients
from .optimizers import FLUSH_EVERY, flush_denormals, new_optimizer, steps_taken


class TrainableProgram(HasPair, Protocol):
    """A module with a Pyro model and guide."""

    def parameters(self) -> Iterator[nn.Parameter]:
        """What a step moves."""

    def buffers(self) -> Iterator[Tensor]:
        """What a step may change besides."""


def make_step(
    vae: TrainableProgram,
    estimator: Estimator,
    *,
    lr: float = 1e-3,
    optimizer: str | torch.optim.Optimizer = "Adam",
    clip_norm: float | None = None,
    skip_non_finite: bool = False,
    compile: bool = False,
    shard: Shard | None = None,
) -> "Step":
    """A training step `step(x) -> loss` of the module's parameters by the estimator's loss.

    A program that takes more than the data takes them here too: `step(x, y)`, or a batch of a `DataLoader`, `step([x,
    y])`.

    The first step runs model and guide with Pyro's validation on, and records their computation
    (:class:`~pyro_gvae.jit.traced_elbo.TracedELBO`); later steps replay it, without Pyro. A program that cannot be
    recorded is run as it is, with a warning, but for sums over several slices of codes, which gain nothing. Pyro's
    param store is not touched, and its validation is as before after each step.

    Args:
        vae: a module with `.model(x)` and `.guide(x)`, such as `CategoricalVAE`. Under `torch.autocast` to bfloat16,
            around the step, its networks compute in bfloat16, random numbers and log-probabilities in float32.
        estimator: the handler and the ELBO.
        lr: learning rate; not used where `optimizer` is given as an object.
        optimizer: the name of a class in `torch.optim`, fused where torch can, over all parameters; or an object that
            has the parameters already, for example to keep its state when the estimator changes.
        clip_norm: the largest norm that the gradient of the module's parameters together may have, in nats per datum.
            What a loss learns itself has other units, and is not clipped.
        skip_non_finite: leave out a step whose loss or gradient is not finite: nothing changes but random states, and
            the step returns NaN. If not, such a loss is an error, and nothing changes either.
        compile: compile the recorded graph by Inductor, with CUDA graphs on a GPU; takes a compiler and half a minute.
        shard: sum losses and gradients over the processes of torch's group, between loss and optimizer, so that all
            take one step together. "data": each process is called with its own data, one or more. "codes": all are
            called with the same data, and the estimator has a :class:`~pyro_gvae.runtime.distributed.Share`. A failure
            in one process makes the step of the others NaN. None: each process for itself.

    Returns:
        A function of a batch x (B, D), which may have another B each time. It updates the parameters and returns the
        loss before that, -ELBO in nats per datum, shape (). Gradients are those of the sum over the batch, as in
        stock `SVI`. Its attribute `own` is what the estimator's loss learns itself (:func:`own_state`).

    Raises:
        ValueError: if there is no such optimizer; in the first step, if the data are out of range, or no parameter has
            a gradient; in any step without data, or, without `skip_non_finite`, whose loss is not finite.

    Example:
        >>> from pyro_gvae import CategoricalVAE, estimator
        >>> vae = CategoricalVAE(data_dim=6, num_latents=2, num_categories=3, hidden=(5,))
        >>> step = make_step(vae, estimator("gumbel-softmax"), lr=0.1)
        >>> x = torch.ones(4, 6)
        >>> losses = [step(x).item() for _ in range(20)]
        >>> losses[-1] < losses[0]
        True
    """
    gradients = _Gradients(vae, estimator, compile=compile)
    chosen = new_optimizer(optimizer, gradients.parameters, lr) if isinstance(optimizer, str) else optimizer
    together = shard if share() != ALONE else None
    return Step(gradients, chosen, clip_norm=clip_norm, skip_non_finite=skip_non_finite, shard=together)


@final
class Step:
    """A training step `step(x) -> loss`; see :func:`make_step`.

    Attributes:
        optimizer: what moves the parameters.
        own: what the estimator's loss learns or averages besides the program.
        taken: how many steps there were, by the optimizer's count at first; from time to time a step tidies up, and a
            resumed run sets this to do so at the same steps.
    """

    def __init__(
        self,
        gradients: "_Gradients",
        optimizer: torch.optim.Optimizer,
        *,
        clip_norm: float | None,
        skip_non_finite: bool,
        shard: Shard | None,
    ) -> None:
        self.optimizer = optimizer
        self.own = gradients.own
        self.taken = steps_taken(optimizer)
        self._gradients = gradients
        self._clip_norm = clip_norm
        self._skip_non_finite = skip_non_finite
        self._buffers = gradients.buffers  # to be put back after a step that is left out
        self._shard = shard
        self._on_cpu = all(parameter.device.type == "cpu" for parameter in gradients.parameters)

    def __call__(self, *batch: Any, **others: Any) -> Tensor:
        """Take one step on a batch, or on the arguments that the programs take; returns the loss before it."""
        arguments = items(batch[0]) if len(batch) == 1 else batch
        data = _data([*arguments, *others.values()])
        before = [buffer.clone() for buffer in self._buffers]
        self.taken += 1
        try:
            loss = self._gradients(*arguments, **others)
        except BaseException as error:
            self._put_back(before)
            if isinstance(error, Exception):  # which the others wait for
                self._summed(torch.full((), math.nan, device=data.device), len(data), before)
            raise
        loss, num_data = self._summed(loss, len(data), before)
        if self._skip_non_finite:
            if not self._is_finite(loss):
                self._put_back(before)
                return torch.full_like(loss, math.nan)
        elif not math.isfinite(loss.item()):
            self._put_back(before)
            raise ValueError(
                f"Expected a finite loss, but found {loss.item()}; parameters are as before the step. Try finite data, "
                "a lower learning rate, or skip_non_finite=True, which leaves out such steps."
            )
        if self._clip_norm is not None:
            nn.utils.clip_grad_norm_(self._gradients.of_program, self._clip_norm * num_data)
        self.optimizer.step()
        if self._on_cpu and self.taken % FLUSH_EVERY == 0:
            flush_denormals(self.optimizer)
        return loss / num_data

    def _summed(self, loss: Tensor, num_data: int, before: list[Tensor]) -> Sums:
        """The loss and the data of all processes, whose gradients and buffers become the same."""
        if self._shard is None:
            return Sums(loss, num_data)
        sums = sum_gradients(loss, num_data, self._gradients.parameters, self._buffers, before)
        return sums if self._shard == "data" else Sums(sums.loss, num_data)

    @torch.no_grad()
    def _put_back(self, values: list[Tensor]) -> None:
        for buffer, value in zip(self._buffers, values, strict=True):
            buffer.copy_(value)

    def _is_finite(self, loss: Tensor) -> bool:
        """Whether loss and gradients are, by their sums: the sum of what holds a NaN or an infinity is not finite."""
        gradients = (parameter.grad for parameter in self._gradients.parameters if parameter.grad is not None)
        sums = [loss.detach(), *(gradient.sum() for gradient in gradients)]
        return math.isfinite(torch.stack(sums).sum().item())


@final
class _Gradients:
    """Sets the gradients of a module's parameters by an estimator's loss: recorded, where it can be."""

    def __init__(self, vae: TrainableProgram, estimator: Estimator, *, compile: bool) -> None:
        self._model, self._guide, self._elbo = estimator.bind(vae)
        self.own = own_state(self._elbo)
        self.of_program = [*vae.parameters()]
        self.parameters = [*self.of_program, *self.own.parameters()]
        self.buffers = [*vae.buffers(), *self.own.buffers()]
        self._traced: TracedELBO | None = TracedELBO(cast(ELBO, self._elbo), compile=compile)
        self._is_exact = estimator.is_exact
        self._ids = set(map(id, self.parameters))
        self._checked = False

    def __call__(self, *args: Any, **kwargs: Any) -> Tensor:
        """The loss, in nats summed over the data; gradients are set, not added."""
        for parameter in self.parameters:
            parameter.grad = None  # its memory is used again for the next one
        loss = self._recorded(args) if not kwargs else None
        if loss is None:
            with pyro.get_param_store().scope(), pyro.validation_enabled(not self._checked):
                loss = self._elbo.loss_and_grads(self._model, self._guide, *args, **kwargs)
            self._checked = True
        if all(parameter.grad is None for parameter in self.parameters):
            raise ValueError(
                "Expected a loss with a gradient for some parameter of the module, but found none: Pyro's ELBOs form "
                'gradients where they see a parameter. Try pyro.module("name", self) at the start of model and guide.'
            )
        return self._as_tensor(loss)

    def _recorded(self, args: tuple[Any, ...]) -> Tensor | float | None:
        """The loss and its gradients from the recording, or None where there is none."""
        if self._traced is None:
            return None
        try:
            (loss, gradients), leaves = self._traced.outcome(self._model, self._guide, *args)
        except NotRecordableError as refusal:
            if not self._is_exact:  # several slices of codes are no recording, and need none
                warnings.warn(f"Steps run without a recording: {refusal}", stacklevel=4)
            self._traced = None
            return None
        self._check_parameters(leaves)
        for leaf, gradient in zip(leaves, gradients, strict=True):
            leaf.grad = gradient
        return cast(Tensor | float, loss)

    def _as_tensor(self, loss: Tensor | float) -> Tensor:
        """Plain ELBOs return numbers."""
        if isinstance(loss, Tensor):
            return loss
        dtype = reduce(torch.promote_types, (parameter.dtype for parameter in self.parameters), torch.float32)
        return torch.tensor(loss, dtype=dtype, device=self.parameters[0].device)

    def _check_parameters(self, leaves: Sequence[Tensor]) -> None:
        if not self._ids.issuperset(map(id, leaves)):
            raise ValueError(
                "Expected all parameters of model and guide to be in the module's parameters(), but found others, "
                "which no step would train. Try to make them attributes of the module, in place of pyro.param."
            )


def _data(arguments: Sequence[Any]) -> Tensor:
    """The first argument that holds B data.

    Raises:
        ValueError: if none does.
    """
    for value in arguments:
        if isinstance(value, Tensor) and value.dim():
            if len(value):
                return value
            raise ValueError(f"Expected a batch of one datum or more, but found shape {tuple(value.shape)}.")
    raise ValueError("Expected a batch with a tensor of data (B, ..), but found none. Try step(x).")
