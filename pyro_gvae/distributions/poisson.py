"""Poisson counts: one matrix product scores every datum under every code, with a derivative of few operations."""

import math
from typing import Any

import torch
from torch import Tensor

from ..runtime.tuning import tuning
from .exponential_family import applied, fixed


def poisson_scores(rate: Tensor, x: Tensor) -> Tensor:
    """Return log p(x | rate), summed over elements, of every datum under every code.

    Args:
        rate: at least 0, (*codes, D).
        x: counts (B, D).

    Returns:
        Scores in nats, (*codes, B). They are computed as differences from the scores at the mean of the data, which
        reduces rounding in float32.

    Example:
        >>> rate, x = torch.tensor([[1.0, 2.0], [3.0, 0.5]]), torch.tensor([[0.0, 2.0]])
        >>> expected = torch.distributions.Poisson(rate).log_prob(x).sum(-1, keepdim=True)
        >>> torch.allclose(poisson_scores(rate, x), expected)
        True
    """
    centre = centre_of(x)
    scores = applied(_Scores, rate.reshape(-1, rate.shape[-1]), x, centre)
    return (scores.reshape(*rate.shape[:-1], len(x)) + base_score(x, centre).sum(-1)).to(scores.dtype)


def centre_of(x: Tensor) -> Tensor:
    """Return a rate (D,) near the mean of the data (*batch, D), without a gradient."""
    return x.detach().flatten(0, -2).mean(0).clamp_min(0.5)


def base_score(x: Tensor, centre: Tensor) -> Tensor:
    """Return the log-probability of each element of x (*batch, D) at the rates (D,) of the centre, in float64."""
    counts = x.double()
    return counts * centre.log() - centre - torch.lgamma(counts + 1)


def log_rates(rate: Tensor) -> Tensor:
    """Return the logarithm of rates as a new tensor.

    At a rate of 0 it is the lowest finite number and not -inf, because 0 times infinity would be NaN.
    """
    return rate.log().clamp_min_(torch.finfo(rate.dtype).min)


def _at_once(rate: Tensor) -> int:
    return max(1, tuning(rate.device).normalized_elements // fixed(rate.shape[-1]))


def _part(rate: Tensor, x: Tensor, centre: Tensor) -> Tensor:
    scores = log_rates(rate).sub_(centre.log()) @ x.mT
    return scores.add_((centre - rate).sum(-1, keepdim=True))


class _Scores(torch.autograd.Function):
    """Compute (log rate - log centre) @ x.T + sum(centre - rate); its derivative is x / rate - 1, or -1 at rate 0.

    These are the largest tensors of a sum over codes. Autograd would make six more of them. Here a few codes are
    computed at a time, which stay in the processor's cache.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(rate: Tensor, x: Tensor, centre: Tensor) -> Tensor:
        return torch.cat([_part(rows, x, centre) for rows in rate.split(_at_once(rate))])  # (S, B)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        rate, x, centre = ctx.saved_tensors
        for_rate = for_x = None
        if ctx.needs_input_grad[0]:
            weight = grad.sum(-1, keepdim=True)  # (S, 1)
            if torch.is_grad_enabled():  # for a second derivative
                positive = torch.where(rate > 0, rate, 1.0)
                for_rate = torch.where(rate > 0, (grad @ x) / positive, 0.0) - weight
            else:
                for_rate, at_once = grad @ x, _at_once(rate)
                parts = (tensor.split(at_once) for tensor in (for_rate, rate, weight))
                for part, rows, own in zip(*parts, strict=True):
                    part.mul_(rows.reciprocal().nan_to_num_(nan=math.nan, posinf=0.0)).sub_(own)
        if ctx.needs_input_grad[1]:
            for_x = grad.mT @ (log_rates(rate) - centre.log())
        return for_rate, for_x, None
