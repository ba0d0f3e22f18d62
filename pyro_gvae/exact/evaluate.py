"""The exact ELBO and log-evidence of every datum: sums over all joint codes, differentiable, in bounded memory."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from .programs import HasPair, OwnParameters, read_guide
from .slices import Plan, plan

NEGLIGIBLE = 0.5


def exp_or_zero(log_weights: Tensor) -> Tensor:
    """exp, but exactly 0 below the square root of the smallest normal number.

    Arithmetic on denormal numbers is several times slower on a CPU.
    """
    threshold = 0.5 * torch.log(torch.tensor(torch.finfo(log_weights.dtype).tiny)).item()
    return torch.nn.functional.threshold(log_weights, threshold, -torch.inf).exp()


def log_sum(log_weights: Tensor) -> Tensor:
    """logsumexp over the first dimension, without denormal numbers here or in the gradient."""
    highest = log_weights.detach().amax(0).clamp_min(torch.finfo(log_weights.dtype).min)
    return highest + exp_or_zero(log_weights - highest).sum(0).log()


def elbo(pair: HasPair, x: Tensor, *, max_memory: float | None = None, slice_size: int | None = None) -> Tensor:
    """The exact ELBO (B,) of the discrete model."""
    model = partial(pair.model, x)
    with OwnParameters():
        q = read_guide(partial(pair.guide, x))
        p = plan(model, max_memory=max_memory, slice_size=slice_size)
    parts = [_part(p, partial(_expected_score, model, p, start, stop), q.log_probs) for start, stop in p.bounds]
    expected = sum(part[0] for part in parts)
    return (expected + parts[0][1] + q.weigh(entropy(q.log_probs))).reshape(q.batch_shape)


def log_evidence(pair: HasPair, x: Tensor, *, max_memory: float | None = None, slice_size: int | None = None) -> Tensor:
    """log p(x) (B,) of the discrete model."""
    model = partial(pair.model, x)
    with OwnParameters():
        p = plan(model, max_memory=max_memory, slice_size=slice_size)
    parts = [_part(p, partial(_evidence, model, p, start, stop)) for start, stop in p.bounds]
    return (parts[0][1] * log_sum(torch.stack([part[0] for part in parts]))).reshape(p.batch_shape)


def entropy(log_probs: Tensor) -> Tensor:
    return -(log_probs.exp() * log_probs).sum((-2, -1))


def _part(p: Plan, compute: Callable[..., tuple[Tensor, Any]], *inputs: Tensor) -> tuple[Tensor, Any]:
    if p.slice_size < p.num_codes and torch.is_grad_enabled():
        result: tuple[Tensor, Any] = checkpoint(compute, *inputs, use_reentrant=False)
        return result
    return compute(*inputs)


def _expected_score(
    model: Callable[[], Any], p: Plan, start: int, stop: int, log_q: Tensor
) -> tuple[Tensor, Tensor]:
    with OwnParameters():
        codes, scores = p.scores(model, start, stop)
    q = exp_or_zero(codes @ log_q.flatten(1).T)  # (s, B)
    expected = (q * scores.table).sum(0)
    prior = (log_q.exp() * scores.prior.log_probs).sum((-2, -1))
    return expected, scores.prior.weigh(prior)


def joint_slices(
    model: Callable[[], Any], *, max_memory: float | None, slice_size: int | None
) -> tuple[Plan, Iterator[tuple[int, Tensor, Tensor]]]:
    """The plan, and for every slice its first number, its codes (s, N * K) and log p(x, z) (s, B)."""
    with OwnParameters():
        p = plan(model, max_memory=max_memory, slice_size=slice_size)

    def slices() -> Iterator[tuple[int, Tensor, Tensor]]:
        for start, stop in p.bounds:
            codes, joint, _ = _joint(model, p, start, stop)
            yield start, codes, joint

    return p, slices()


def _joint(model: Callable[[], Any], p: Plan, start: int, stop: int) -> tuple[Tensor, Tensor, float | Tensor]:
    """Codes (s, N * K), log p(x, z) (s, B) and the scale that stands outside of the logarithm."""
    with OwnParameters():
        codes, scores = p.scores(model, start, stop)
    scale = scores.common_scale
    return codes, scores.table / scale + codes @ scores.prior.log_probs.flatten(1).T, scale


def _evidence(model: Callable[[], Any], p: Plan, start: int, stop: int) -> tuple[Tensor, float | Tensor]:
    _, joint, scale = _joint(model, p, start, stop)
    return log_sum(joint), scale
