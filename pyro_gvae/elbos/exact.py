"""The exact ELBO and the exact log-evidence as Pyro losses, summed slice by slice in bounded memory."""

from abc import abstractmethod
from functools import partial
from typing import Any, final

import torch
from pyro.infer import ELBO
from pyro.util import warn_if_nan
from torch import Tensor

from ..exact.evaluate import entropy, exp_or_zero, log_sum
from ..exact.programs import Program, read_guide
from ..exact.slices import plan


class _SlicedELBO(ELBO):
    def __init__(self, *, max_memory: float | None = None, slice_size: int | None = None) -> None:
        super().__init__()
        self.max_memory = max_memory
        self.slice_size = slice_size

    def _get_trace(self, model: Program, guide: Program, args: Any, kwargs: Any) -> Any:
        raise NotImplementedError(f"{type(self).__name__} sums over codes in place of tracing a sample.")

    @abstractmethod
    def _elbo(self, model: Program, guide: Program, gradients: bool) -> Tensor: ...

    def loss(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> float:
        with torch.no_grad():
            return -self._elbo(partial(model, *args, **kwargs), partial(guide, *args, **kwargs), False).item()

    def loss_and_grads(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> float:
        loss = -self._elbo(partial(model, *args, **kwargs), partial(guide, *args, **kwargs), True).item()
        warn_if_nan(loss, "loss")
        return loss


@final
class ExactELBO(_SlicedELBO):
    def _elbo(self, model: Program, guide: Program, gradients: bool) -> Tensor:
        q = read_guide(guide)
        p = plan(model, max_memory=self.max_memory, slice_size=self.slice_size)
        log_q = q.log_probs  # (B, N, K)
        fixed = log_q.detach().flatten(1).T  # (N * K, B)
        score_moments = torch.zeros_like(fixed)
        expected = 0.0
        for start, stop in p.bounds:
            codes, scores = p.scores(model, start, stop)
            weights = exp_or_zero(codes @ fixed)  # (s, B)
            weighted = weights * scores.table.detach()
            expected += weighted.sum()
            if not gradients: continue
            score_moments += codes.T @ weighted
            losses, grads = [scores.table] if scores.table.requires_grad else [], [-weights] if scores.table.requires_grad else []
            if stop == p.num_codes:
                prior = scores.prior.weigh((log_q.exp() * scores.prior.log_probs).sum((-2, -1))).sum()
                kl = -prior - q.weigh(entropy(log_q)).sum()
                surrogate = kl - (score_moments * log_q.flatten(1).T).sum()
                if surrogate.requires_grad:
                    losses.append(surrogate); grads.append(None)
            if losses:
                torch.autograd.backward(losses, grads)
        if not gradients:
            prior = scores.prior.weigh((log_q.exp() * scores.prior.log_probs).sum((-2, -1))).sum()
            kl = -prior - q.weigh(entropy(log_q)).sum()
        return expected - kl.detach()


@final
class ExactEvidence(_SlicedELBO):
    def _elbo(self, model: Program, guide: Program, gradients: bool) -> Tensor:
        raise NotImplementedError
