"""The base of losses whose value is a tensor, which a recording can hold, and a number for `SVI`."""

from abc import abstractmethod
from collections.abc import Callable
from typing import Any

from pyro.util import warn_if_nan
from torch import Tensor

from ..handlers.sites import Program
from ..runtime.compat.pyro import LossOnlyELBO


class TensorELBO(LossOnlyELBO):
    """Abstract: an ELBO whose loss is a tensor, and a number only where stock `SVI` asks.

    A subclass writes `tensor_loss` and `tensor_loss_and_grads`. `loss` and `loss_and_grads`, which `SVI` calls, are
    their values as numbers. :class:`~pyro_gvae.jit.traced_elbo.TracedELBO` records the tensors: a graph of tensors
    ends where a number begins. It takes other ELBOs, too, if they turn a loss into a number only as those of stock Pyro
    do, by `pyro.infer.util.torch_item`.
    """

    @abstractmethod
    def tensor_loss(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> Tensor:
        """Return the loss in nats, summed over the data, shape (), without a gradient."""

    @abstractmethod
    def tensor_loss_and_grads(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> Tensor:
        """Return the same; gradients are added to `.grad` of the parameters."""

    def why_not_recordable(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> str | None:
        """Say in a sentence why the loss cannot be recorded, if that is known beforehand; None if it is not."""
        return None

    def loss(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> float:
        """Return the loss in nats, summed over the data."""
        return _as_number(self.tensor_loss(model, guide, *args, **kwargs))

    def loss_and_grads(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> float:
        """Return the same; gradients are added to `.grad` of the parameters."""
        return _as_number(self.tensor_loss_and_grads(model, guide, *args, **kwargs))


def recordable(elbo: Any, method: str) -> Callable[..., Any]:
    """Return what a recording calls in place of an ELBO's `loss` or `loss_and_grads`: its tensors, if it has them."""
    has_tensors = isinstance(elbo, TensorELBO) and method in ("loss", "loss_and_grads")
    found: Callable[..., Any] = getattr(elbo, f"tensor_{method}" if has_tensors else method)
    return found


def _as_number(loss: Tensor) -> float:
    warn_if_nan(loss, "loss")
    return loss.item()
