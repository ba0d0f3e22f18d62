"""Find the best factorized posterior of data that share no latent: each datum converges on its own."""

import functools
import math
from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from ..runtime.tuning import tuning
from .ascent import gains
from .plan import Plan

#: A factorized posterior to start from: log q (B, K) of each digit.
Start = tuple[Tensor, ...]


class Digits(NamedTuple):
    """A factorized posterior over the digits of all discrete latents, each with its own number of categories."""

    logits: tuple[Tensor, ...]  # (B, K) of each digit, or fewer where data share it: log q_n(k), normalized
    elbo: Tensor  # (B,), or fewer where data share the outermost latents: its ELBO in nats, not scaled


def ascend_apart(joint: Tensor, starts: list[Start], plan: Plan, *, max_sweeps: int, tolerance: float) -> list[Digits]:
    """Run coordinate ascent from each start, and from the marginals and the mode of the exact posterior.

    Args:
        joint: log p(x, z) of all codes, (B, S).
        starts: the given starts, for all data.
        plan: the plan of the sum over codes.
        max_sweeps: the largest number of sweeps over all digits, at least one.
        tolerance: a smaller gain, in nats, counts as none.
    """
    at_once = max(1, int(min(tuning(plan.device).forward_bytes / (joint.shape[1] * joint.itemsize), len(joint))))
    ends: list[list[Digits]] = []
    for begin in range(0, len(joint), at_once):
        rows = slice(begin, begin + at_once)
        own = [tuple(digit[rows] for digit in start) for start in starts]
        own += _posterior_starts(joint[rows], plan)
        ends.append([_ascend(joint[rows], start, plan, max_sweeps, tolerance) for start in own])
    return [_together_again(parts) for parts in zip(*ends, strict=True)]


def _together_again(parts: Iterable[Digits]) -> Digits:
    logits, elbos = zip(*parts, strict=True)
    return Digits(tuple(map(torch.cat, zip(*logits, strict=True))), torch.cat(elbos))


def _ascend(joint: Tensor, start: Start, plan: Plan, max_sweeps: int, tolerance: float) -> Digits:
    """Sweep over the digits of each datum until it no longer gains; data that have converged are left out."""
    found = sweep(start, joint, plan)
    ends = [*(digit.clone() for digit in found.logits), found.elbo.clone()]
    rows = torch.arange(len(joint), device=joint.device)
    for _ in range(max_sweeps - 1):
        before, found = found, sweep(found.logits, joint, plan)
        for end, own in zip(ends, [*found.logits, found.elbo], strict=True):
            end[rows] = own
        gaining = gains(found.elbo, before.elbo, tolerance)
        num_gaining = int(gaining.sum())
        if not num_gaining:
            break
        if 2 * num_gaining <= len(rows):  # each copy is at most half as large as the last
            rows, joint = rows[gaining], joint[gaining]
            found = Digits(tuple(digit[gaining] for digit in found.logits), found.elbo[gaining])
    *logits, elbo = ends
    return Digits(tuple(logits), elbo)


def _posterior_starts(joint: Tensor, plan: Plan) -> list[Start]:
    """Return two starts log q (B, K): the marginals of the exact posterior, and its mode, slightly smoothed."""
    highest, modes = joint.max(1, keepdim=True)
    sums = _sums(plan.weights(joint - highest), _categories(plan))
    marginals = [digit / digit.sum(1, keepdim=True) for digit in sums]
    smoothed, after = [], plan.num_codes
    for count in _categories(plan):
        after //= count
        mode = one_hot(modes.squeeze(1).div(after, rounding_mode="floor") % count, count)
        smoothed.append(0.9 * mode.to(joint.dtype) + 0.1 / count)
    return [logs(start) for start in (marginals, smoothed)]


def _sums(probs: Tensor, counts: list[int]) -> list[Tensor]:
    """Return, for each digit, the sums (B, K) over all other digits of a table of joint codes (B, S)."""
    if len(counts) == 1:
        return [probs]
    first, second = counts[: len(counts) // 2], counts[len(counts) // 2 :]
    table = probs.unflatten(1, (math.prod(first), -1))
    return _sums(table.sum(2), first) + _sums(table.sum(1), second)


def _categories(plan: Plan) -> list[int]:
    """Return the number of categories of each digit of a joint code, from the first to the last."""
    return [latent.num_categories for latent in plan.layout.space.latents for _ in range(latent.num_latents)]


def logs(probs: Iterable[Tensor]) -> Start:
    """Return the logarithms of probabilities (B, K) of each digit, finite where they are 0."""
    return tuple(digit.clamp_min(torch.finfo(digit.dtype).tiny).log() for digit in probs)


def sweep(log_q: Start, joint: Tensor, plan: Plan) -> Digits:
    """Update every digit once: log q_n(k) = E_q[log p(x, z) | z_n = k] + constant."""
    updated, scores = _updated(log_q, joint, plan)
    entropy = torch.special.entr(torch.cat(updated, -1).exp()).sum(-1)
    return Digits(updated, (updated[-1].exp() * scores).sum(-1) + entropy)


def _updated(log_q: Start, joint: Tensor, plan: Plan) -> tuple[Start, Tensor]:
    """Update digits by scores of their joint codes (B, S), and return the scores (B, K) of the last one.

    While the first half of the digits is updated, the others stay as they are, and are averaged over once.
    """
    if len(log_q) == 1:
        return (joint.log_softmax(-1),), joint
    first, second = log_q[: len(log_q) // 2], log_q[len(log_q) // 2 :]
    others = plan.weights(_together(second)).unsqueeze(-1)  # (B, S'', 1)
    table = joint.unflatten(1, (-1, others.shape[1]))  # (B, S', S'')
    first, _ = _updated(first, (table @ others).squeeze(-1), plan)
    second, scores = _updated(second, (plan.weights(_together(first)).unsqueeze(1) @ table).squeeze(1), plan)
    return first + second, scores


def _together(log_q: Start) -> Tensor:
    """Return log q of the joint codes of some digits, (B, S)."""
    return functools.reduce(lambda one, other: (one.unsqueeze(-1) + other.unsqueeze(1)).flatten(1), log_q)
