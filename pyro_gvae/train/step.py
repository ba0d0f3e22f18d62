"""A training step: loss, gradients, one fused optimizer."""

import math
from collections.abc import Sequence
from functools import reduce
from typing import Any, cast, final

import pyro
import torch
from pyro.infer import ELBO
from torch import Tensor, nn

from ..config.names import Shard
from ..estimators import Estimator, own_state
from ..estimators import estimator as estimator_of
from ..jit.traced_elbo import TracedELBO
from ..programs.batches import arguments
from ..programs.modes import without_trace
from ..programs.pair import TrainableProgram, check_trainable
from ..runtime.distributed import ALONE, Sums, share, sum_gradients
from .optimizers import FLUSH_EVERY, flush_denormals, new_optimizer, steps_taken
from .ranges import Ranges, widened


def make_step(
    vae: TrainableProgram,
    estimator: str | Estimator,
    *,
    lr: float = 1e-3,
    optimizer: str | torch.optim.Optimizer = "Adam",
    clip_norm: float | None = None,
    skip_non_finite: bool = False,
    compile: bool = False,
    shard: Shard | None = None,
) -> "Step":
    """Return a function `step(x) -> loss` that trains a module's parameters on an estimator's loss.

    Further arguments of a program are passed too: `step(x, y)`, `step(x, y=y)`, or a batch of a `DataLoader`,
    `step([x, y])` or `step({"x": x, "y": y})`.

    The first step runs model and guide with Pyro's validation on, and records their computation
    (:class:`~pyro_gvae.jit.traced_elbo.TracedELBO`). Later steps replay the recording without Pyro. If a batch has
    values outside the range seen so far, or for the first time values that are not whole numbers, one more plain run
    validates it first. A program that cannot be recorded runs as it is, with a warning; sums over many codes do so
    without a warning, since they gain nothing. Pyro's param store is not used, and Pyro's validation setting is
    restored after each step.

    Args:
        vae: a module with `.model(x)` and `.guide(x)`, such as `CategoricalVAE`. If the step is called under
            `torch.autocast` to bfloat16, networks compute in bfloat16, and random numbers and log-probabilities in
            float32.
        estimator: the estimator, a handler and an ELBO; or its name, with options in brackets.
        lr: learning rate; ignored if `optimizer` is an object.
        optimizer: the name of a class in `torch.optim`, fused if torch can, for all parameters; or an optimizer that
            has the parameters already, for example to keep its state when the estimator changes. It needs the loss's
            parameters as well: `optimizer.add_param_group({"params": step.own.parameters()})` before the first step.
        clip_norm: the largest norm of the gradient of all the module's parameters, in nats per datum. The loss's own
            parameters have other units and are not clipped.
        skip_non_finite: skip a step whose loss or gradient is not finite. Only random states change, and the step
            returns NaN. If False, a loss that is not finite is an error; nothing changes in that case either.
        compile: compile the recorded graph by Inductor, with CUDA graphs on a GPU. This needs a compiler and half a
            minute.
        shard: how the processes of torch's group take one step together, with losses and gradients summed over
            processes. "data": each process is called with its own data, at least one. "codes": all are called with the
            same data, and the estimator has a :class:`~pyro_gvae.runtime.distributed.Share`. If one process fails, the
            step of the others is NaN. None: each process trains by itself.

    Returns:
        A function of a batch x (B, D), whose B may vary. It updates the parameters and returns the loss before the
        update, -ELBO in nats per datum, shape (). As in stock `SVI`, gradients are those of the sum over the batch. Its
        attribute `own` is the module that the estimator's loss trains itself (:func:`own_state`).

    Raises:
        ValueError: if the optimizer is unknown. In the first step, if no parameter gets a gradient, the programs use
            parameters that the module does not have, or an optimizer object lacks parameters of the loss, or all of
            the module's. In any step, if the data are out of range, if there are no data, or, without
            `skip_non_finite`, if the loss is not finite.

    Example:
        >>> from pyro_gvae import CategoricalVAE, estimator
        >>> vae = CategoricalVAE(data_dim=6, num_latents=2, num_categories=3, hidden=(5,))
        >>> step = make_step(vae, estimator("gumbel-softmax"), lr=0.1)
        >>> x = torch.ones(4, 6)
        >>> losses = [step(x).item() for _ in range(20)]
        >>> losses[-1] < losses[0]
        True
    """
    if not isinstance(optimizer, str) and not hasattr(optimizer, "param_groups"):
        raise ValueError(
            "Expected the name of an optimizer in torch.optim, or an optimizer that has parameters, but found "
            f"{type(optimizer).__module__}.{type(optimizer).__qualname__}. Try 'Adam', or stock SVI for one of Pyro's."
        )
    check_trainable(vae)
    gradients = _Gradients(vae, estimator_of(estimator), compile=compile)
    chosen = new_optimizer(optimizer, gradients.parameters, lr) if isinstance(optimizer, str) else optimizer
    together = shard if share() != ALONE else None
    return Step(gradients, chosen, clip_norm=clip_norm, skip_non_finite=skip_non_finite, shard=together)


@final
class Step:
    """A training step `step(x) -> loss`; see :func:`make_step`.

    Attributes:
        optimizer: the optimizer of all parameters.
        own: the module that the estimator's loss trains or updates besides the program.
        taken: number of steps so far, initially the optimizer's count. Every `FLUSH_EVERY` steps denormal averages are
            set to zero; a resumed run sets this number so that it does so at the same steps.
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
        self._buffers = gradients.buffers  # restored after a skipped step
        self._shard = shard
        self._is_checked = False
        self._on_cpu = all(parameter.device.type == "cpu" for parameter in gradients.parameters)

    def __call__(self, *batch: Any, **others: Any) -> Tensor:
        """Take one step on a batch, or on the programs' arguments; return the loss before the update."""
        args, kwargs = arguments(*batch, **others)
        data = _data([*args, *kwargs.values()])
        before = [buffer.clone() for buffer in self._buffers]
        self.taken += 1
        try:
            self._check_optimizer()
            loss = self._gradients(*args, **kwargs)
        except BaseException as error:
            self._put_back(before)
            if isinstance(error, Exception):  # the other processes are waiting for this one's loss
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

    def _check_optimizer(self) -> None:
        """Refuse, before the first step, an optimizer that lacks the loss's own parameters.

        They would silently stay untrained. Some of the module's parameters may be absent, for example frozen ones.
        """
        if self._is_checked:
            return
        held = {id(parameter) for group in self.optimizer.param_groups for parameter in group["params"]}
        of_program = self._gradients.of_program
        if of_program and held.isdisjoint(map(id, of_program)):
            raise ValueError(
                "Expected an optimizer of the module's parameters, but found one that has none of them. Try "
                "torch.optim.Adam(module.parameters()), or optimizer='Adam'."
            )
        absent = [name for name, one in self.own.named_parameters() if one.requires_grad and id(one) not in held]
        if absent:
            raise ValueError(
                "Expected an optimizer that has all parameters of the estimator's loss, but found that it lacks "
                f"{', '.join(absent)}. Try optimizer.add_param_group({{'params': step.own.parameters()}}) before the "
                "first step, or optimizer='Adam'."
            )
        self._is_checked = True

    def _summed(self, loss: Tensor, num_data: int, before: list[Tensor]) -> Sums:
        """Sum loss and number of data over processes, and give all processes the same gradients and buffers."""
        if self._shard is None:
            return Sums(loss, num_data)
        sums = sum_gradients(loss, num_data, self._gradients.parameters, self._buffers, before)
        return sums if self._shard == "data" else Sums(sums.loss, num_data)

    @torch.no_grad()
    def _put_back(self, values: list[Tensor]) -> None:
        for buffer, value in zip(self._buffers, values, strict=True):
            buffer.copy_(value)

    def _is_finite(self, loss: Tensor) -> bool:
        """Return whether loss and gradients are finite, by their sums: a sum with a NaN or an infinity is not."""
        gradients = (parameter.grad for parameter in self._gradients.parameters if parameter.grad is not None)
        sums = [loss.detach(), *(gradient.sum() for gradient in gradients)]
        return math.isfinite(torch.stack(sums).sum().item())


@final
class _Gradients:
    """Sets the gradients of a module's parameters from an estimator's loss, by a recording if possible."""

    def __init__(self, vae: TrainableProgram, estimator: Estimator, *, compile: bool) -> None:
        self._model, self._guide, self._elbo = estimator.bind(vae)
        self.own = own_state(self._elbo)
        self.of_program = [*vae.parameters()]
        self.parameters = [*self.of_program, *self.own.parameters()]
        self.buffers = [*vae.buffers(), *self.own.buffers()]
        self._traced = TracedELBO(cast(ELBO, self._elbo), compile=compile)
        self._ids = set(map(id, self.parameters))
        self._checked = False
        self._ranges: Ranges = {}

    def __call__(self, *args: Any, **kwargs: Any) -> Tensor:
        """Return the loss in nats, summed over the data. Gradients are set, not added."""
        ranges = widened(self._ranges, args, kwargs)
        if ranges is not self._ranges and self._ranges:
            self._check(*args, **kwargs)
        loss = self._loss(*args, **kwargs)
        self._ranges = ranges
        return loss

    @torch.no_grad()
    def _check(self, *args: Any, **kwargs: Any) -> None:
        """Let the programs validate data outside the ranges seen so far; nothing changes."""
        before = [buffer.clone() for buffer in self.buffers]
        with pyro.get_param_store().scope(), pyro.validation_enabled(), without_trace():
            self._elbo.loss(self._model, self._guide, *args, **kwargs)
        for buffer, value in zip(self.buffers, before, strict=True):
            buffer.copy_(value)

    def _loss(self, *args: Any, **kwargs: Any) -> Tensor:
        for parameter in self.parameters:
            parameter.grad = None  # frees its memory for the next gradient
        loss = self._recorded(args, kwargs)
        if loss is None:
            with pyro.get_param_store().scope(), pyro.validation_enabled(not self._checked):
                loss = self._elbo.loss_and_grads(self._model, self._guide, *args, **kwargs)
            self._checked = True
        if all(parameter.grad is None for parameter in self.parameters):
            raise ValueError(
                "Expected a gradient for some parameter of the module, but found none: Pyro's ELBOs compute gradients "
                'only if they see a parameter. Try pyro.module("name", self) at the start of model and guide.'
            )
        return self._as_tensor(loss)

    def _recorded(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | float | None:
        """Return the loss and its gradients from the recording, or None if there is none."""
        found = self._traced.outcome(self._model, self._guide, *args, **kwargs)
        if found is None:
            return None
        loss, gradients = found.outcome
        self._check_parameters(found.leaves)
        for leaf, gradient in zip(found.leaves, gradients, strict=True):
            leaf.grad = gradient
        return cast(Tensor | float, loss)

    def _as_tensor(self, loss: Tensor | float) -> Tensor:
        """Return the loss as a tensor; plain ELBOs return numbers."""
        if isinstance(loss, Tensor):
            return loss
        dtype = reduce(torch.promote_types, (parameter.dtype for parameter in self.parameters), torch.float32)
        return torch.tensor(loss, dtype=dtype, device=self.parameters[0].device)

    def _check_parameters(self, leaves: Sequence[Tensor]) -> None:
        if not self._ids.issuperset(map(id, leaves)):
            raise ValueError(
                "Expected all parameters of model and guide to be in the module's parameters(), but found others, "
                "which no step would train. Try making them attributes of the module, instead of using pyro.param."
            )


def _data(arguments: Sequence[Any]) -> Tensor:
    """Return the first argument that holds B data.

    Raises:
        ValueError: if no argument is a tensor with a dimension.
    """
    for value in arguments:
        if isinstance(value, Tensor) and value.dim():
            if len(value):
                return value
            raise ValueError(f"Expected a batch of one datum or more, but found shape {tuple(value.shape)}.")
    raise ValueError("Expected a batch with a tensor of data (B, ..), but found none. Try step(x).")
