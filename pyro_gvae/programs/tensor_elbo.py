"""The base of losses that return a tensor, which a recording can hold, and a number to `SVI`."""

from abc import abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from pyro.util import warn_if_nan
from torch import Tensor

from ..handlers.sites import Program
from ..runtime.compat.pyro import LossOnlyELBO


class TensorELBO(LossOnlyELBO):
    """Abstract base: an ELBO that computes its loss as a tensor, and converts it to a number only for stock `SVI`.

    A subclass implements `tensor_loss` and `tensor_loss_and_grads`; `SVI` calls `loss` and `loss_and_grads`, which
    convert their results. :class:`~pyro_gvae.jit.traced_elbo.TracedELBO` records the tensor versions, because a
    recorded graph cannot contain Python numbers. Other ELBOs can be recorded too if they convert a loss as stock Pyro
    does, by `pyro.infer.util.torch_item`.
    """

    @abstractmethod
    def tensor_loss(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> Tensor:
        """Return the loss in nats, summed over the data, as a tensor of shape () without a gradient."""

    @abstractmethod
    def tensor_loss_and_grads(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> Tensor:
        """Return the same, and add gradients to `.grad` of the parameters."""

    def why_not_recordable(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> str | None:
        """Return a sentence that explains why the loss cannot be recorded, or None if no reason is known beforehand."""
        return None

    def loss(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> float:
        """Return the loss in nats, summed over the data."""
        return _as_number(self.tensor_loss(model, guide, *args, **kwargs))

    def loss_and_grads(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> float:
        """Return the same, and add gradients to `.grad` of the parameters."""
        return _as_number(self.tensor_loss_and_grads(model, guide, *args, **kwargs))


class DifferentiableELBO(TensorELBO):
    """Abstract base: a loss that is one tensor with a gradient, given by `differentiable_loss`."""

    @abstractmethod
    def differentiable_loss(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> Tensor:
        """Return the loss as a tensor, in nats summed over the data."""

    @torch.no_grad()
    def tensor_loss(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> Tensor:
        """Return the loss in nats, summed over the data."""
        return self.differentiable_loss(model, guide, *args, **kwargs)

    def tensor_loss_and_grads(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> Tensor:
        """Return the loss, and add gradients to `.grad` of the parameters."""
        loss = self.differentiable_loss(model, guide, *args, **kwargs)
        if loss.requires_grad:
            loss.backward()
        return loss.detach()


def recordable(elbo: Any, method: str) -> Callable[..., Any]:
    """Return the method to record for an ELBO's `loss` or `loss_and_grads`: the tensor version if there is one."""
    has_tensors = isinstance(elbo, TensorELBO) and method in ("loss", "loss_and_grads")
    found: Callable[..., Any] = getattr(elbo, f"tensor_{method}" if has_tensors else method)
    return found


def _as_number(loss: Tensor) -> float:
    warn_if_nan(loss, "loss")
    return loss.item()
