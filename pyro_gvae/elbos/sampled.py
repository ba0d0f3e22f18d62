"""The base of losses that sample codes."""

from abc import abstractmethod
from functools import partial
from typing import Any, NamedTuple

import torch
from pyro.params import param_with_module_name
from torch import Tensor, nn
from typing_extensions import override

from ..distributions.parameters import impossible_as_infinite
from ..handlers.parameters import announce
from ..handlers.sites import Program
from ..programs.draws import lay_out_draws
from ..programs.factors import Layout
from ..programs.kept import Kept
from ..programs.runs import bind
from ..programs.target import Target
from ..programs.tensor_elbo import TensorELBO
from ..runtime.autograd import leaves
from .own import forget_leaves


class Estimate(NamedTuple):
    """The result of a sampled loss.

    Attributes:
        bound: the bound of each datum, (B,), in nats; its gradient is not used.
        surrogate: a scalar whose gradient estimates the gradient of the bound, summed over the data.
        own_loss: a scalar whose gradient trains the loss's own parameters, if it has any.
    """

    bound: Tensor
    surrogate: Tensor
    own_loss: Tensor | None = None

    @property
    def loss(self) -> Tensor:
        """The loss in nats, summed over the data, shape ()."""
        return -impossible_as_infinite(self.bound.detach()).sum()


class EstimatedELBO(TensorELBO):
    """Abstract base: a loss whose gradient is that of a surrogate.

    Attributes:
        own: a module that the loss itself trains or updates, if any; see :func:`pyro_gvae.estimators.own_state`.
    """

    own: nn.Module | None = None

    @abstractmethod
    def estimate_of(self, model: Program, guide: Program, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Estimate:
        """Return the bound of each datum and the surrogate of its gradient; gradients are enabled."""

    def __reduce_ex__(self, protocol: Any) -> str | tuple[Any, ...]:
        forget_leaves(self.own)
        return super().__reduce_ex__(protocol)

    def tensor_loss(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> Tensor:
        """Return an estimate of the loss in nats, summed over the data."""
        return self._estimate(model, guide, args, kwargs).loss

    def tensor_loss_and_grads(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> Tensor:
        """Return the loss, and add gradients to `.grad` of all parameters, including the loss's own."""
        found = self._estimate(model, guide, args, kwargs)
        own = [] if self.own is None else [leaf for leaf in self.own.parameters() if leaf.requires_grad]
        if own and found.own_loss is not None:
            found.own_loss.backward(inputs=own, retain_graph=True)
        if found.surrogate.requires_grad:
            others = [leaf for leaf in leaves(found.surrogate) if all(leaf is not parameter for parameter in own)]
            if others:
                (-found.surrogate).backward(inputs=others)
        self.learn(found)
        return found.loss

    def learn(self, found: Estimate) -> None:
        """Update the loss's own state after an estimate in training; most losses learn by gradients alone."""

    def differentiable_loss(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> Tensor:
        """Return the loss as a tensor whose gradient is the estimate. It does not train the loss's own parameters."""
        found = self._estimate(model, guide, args, kwargs)
        return found.surrogate.detach() - found.surrogate - found.bound.detach().sum()

    @torch.enable_grad()
    def _estimate(self, model: Program, guide: Program, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Estimate:
        if self.own is not None:
            for name, parameter in self.own.named_parameters():
                announce(param_with_module_name(type(self).__name__, name), parameter)
        return self.estimate_of(model, guide, args, kwargs)


class SampledELBO(EstimatedELBO):
    """Abstract base: a loss that draws P values of every latent for each datum.

    One run of the model scores all P, in an additional batch dimension, if the program accepts it.
    """

    def __init__(self, *, num_particles: int = 1) -> None:
        super().__init__(num_particles=num_particles)
        self._layouts: Kept[Layout] = Kept()

    @abstractmethod
    def estimate(self, target: Target) -> Estimate:
        """Return the bound of each datum and the surrogate of its gradient; gradients are enabled."""

    @override
    def estimate_of(self, model: Program, guide: Program, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Estimate:
        runs = bind(model, guide, *args, **kwargs)
        return self._layouts.use(
            (model, guide),
            args,
            kwargs,
            partial(lay_out_draws, runs),
            lambda layout: self.estimate(Target(runs, layout)),
        )
