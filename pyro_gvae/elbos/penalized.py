"""The base of losses that add a term of the guide or of both programs to another loss."""

from abc import abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ..exact.sizes import bytes_of_code
from ..handlers.sites import Program
from ..programs.factors import Layout
from ..programs.kept import Kept
from ..programs.runs import Runs, bind
from ..programs.tensor_elbo import TensorELBO, recordable
from ..runtime.memory import memory_limit
from ..runtime.tuning import tuning

#: Computes the term, of shape (), for a pair with its data bound.
Penalty = Callable[[Runs], Tensor]


class PenalizedELBO(TensorELBO):
    """Abstract base: another loss plus a term."""

    def __init__(self, elbo: Any) -> None:
        super().__init__()
        self.elbo = elbo
        self._penalties: Kept[Penalty] = Kept()

    @abstractmethod
    def plan_penalty(self, runs: Runs) -> Penalty:
        """Choose by a few small runs how to compute the term. The result is kept for arguments of equal shapes."""

    @property
    def own(self) -> nn.Module | None:
        """The module that the other loss trains, if any; see :func:`pyro_gvae.estimators.own_state`."""
        own: nn.Module | None = getattr(self.elbo, "own", None)
        return own

    def why_not_recordable(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> str | None:
        """Return the other loss's reason, if it has one."""
        self._planned(bind(model, guide, *args, **kwargs), model, guide, args, kwargs)  # plan now, not in a recording
        return (
            self.elbo.why_not_recordable(model, guide, *args, **kwargs) if isinstance(self.elbo, TensorELBO) else None
        )

    @torch.no_grad()
    def tensor_loss(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> Tensor:
        """Return the loss in nats, summed over the data."""
        penalty = self._penalty(model, guide, args, kwargs)
        return recordable(self.elbo, "loss")(model, guide, *args, **kwargs) + penalty

    def tensor_loss_and_grads(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> Tensor:
        """Return the loss, and add gradients to `.grad` of the parameters."""
        loss = recordable(self.elbo, "loss_and_grads")(model, guide, *args, **kwargs)
        return loss + self._penalty_and_grads(model, guide, args, kwargs)

    @torch.no_grad()
    def loss(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> float:
        """Return the loss in nats, summed over the data. Its two terms are added in double precision."""
        penalty = self._penalty(model, guide, args, kwargs).item()
        return self.elbo.loss(model, guide, *args, **kwargs) + penalty

    def loss_and_grads(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> float:
        """Return the loss, and add gradients to `.grad` of the parameters."""
        loss: float = self.elbo.loss_and_grads(model, guide, *args, **kwargs)
        return loss + self._penalty_and_grads(model, guide, args, kwargs).item()

    def differentiable_loss(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> Tensor:
        """Return the loss as a tensor."""
        loss: Tensor = self.elbo.differentiable_loss(model, guide, *args, **kwargs)
        return loss + self._penalty(model, guide, args, kwargs)

    def _penalty_and_grads(
        self, model: Program, guide: Program, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Tensor:
        penalty = self._penalty(model, guide, args, kwargs)
        if penalty.requires_grad:
            penalty.backward()
        return penalty.detach()

    def _penalty(self, model: Program, guide: Program, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        runs = bind(model, guide, *args, **kwargs)
        return self._penalties.use(
            (model, guide), args, kwargs, lambda: self.plan_penalty(runs), lambda penalty: penalty(runs)
        )

    def _planned(
        self, runs: Runs, model: Program, guide: Program, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Penalty:
        return self._penalties.find((model, guide), args, kwargs, lambda: self.plan_penalty(runs))


def fits_one_slice(runs: Runs, layout: Layout) -> bool:
    """Return whether all joint codes of a pair can be decoded at once."""
    limit = min(memory_limit(None), tuning(layout.device).slice_bytes)
    num_codes = layout.space.num_codes
    return num_codes <= limit and num_codes * bytes_of_code(runs, layout) <= limit
