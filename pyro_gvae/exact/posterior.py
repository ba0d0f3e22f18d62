"""The exact posterior p(z | x) over all joint codes: marginals, the most probable codes, samples."""

from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from ..distributions.one_hot import numbered_codes
from .evaluate import exp_or_zero, joint_slices
from .programs import HasPair


class Posterior(NamedTuple):
    """The exact posterior of every datum."""

    marginals: Tensor  # (B, N, K): p(z_n = k | x)
    codes: Tensor  # (B, C, N, K): the C most probable joint codes, the most probable first
    probs: Tensor  # (B, C): their probabilities p(z | x)


@torch.no_grad()
def posterior(
    pair: HasPair,
    x: Tensor,
    num_codes: int = 0,
    *,
    max_memory: float | None = None,
    slice_size: int | None = None,
) -> Posterior:
    p, slices = joint_slices(partial(pair.model, x), max_memory=max_memory, slice_size=slice_size)
    num_codes = min(num_codes, p.num_codes)
    batch = p.batch_shape.numel()
    lowest = torch.finfo(p.dtype).min
    highest = torch.full((batch,), lowest, dtype=p.dtype, device=p.device)
    moments = highest.new_zeros(batch, p.num_latents * p.num_categories)
    best = highest.new_empty(0, batch)
    number = torch.empty(0, batch, dtype=torch.long, device=p.device)
    for start, codes, joint in slices:  # (), (s, N * K), (s, B)
        before, highest = highest, torch.maximum(highest, joint.amax(0))
        moments = moments * exp_or_zero(before - highest).unsqueeze(-1) + exp_or_zero(joint - highest).T @ codes
        chosen, where = joint.topk(min(num_codes, len(joint)), 0)
        best, number = torch.cat([best, chosen]), torch.cat([number, where + start])
        best, where = best.topk(min(num_codes, len(best)), 0)
        number = number.gather(0, where)
    moments = moments.unflatten(-1, (p.num_latents, p.num_categories))
    total = moments[:, 0].sum(-1)  # (B,): every code has exactly one category of the first latent
    found = numbered_codes(number.T, p.num_latents, p.num_categories, dtype=p.dtype)
    probs = exp_or_zero(best - highest) / total
    return Posterior(
        (moments / total[:, None, None]).reshape(*p.batch_shape, p.num_latents, p.num_categories),
        found.reshape(*p.batch_shape, num_codes, p.num_latents, p.num_categories),
        probs.T.reshape(*p.batch_shape, num_codes),
    )


@torch.no_grad()
def sample_posterior(
    pair: HasPair,
    x: Tensor,
    num_samples: int = 1,
    *,
    max_memory: float | None = None,
    slice_size: int | None = None,
) -> Tensor:
    """Draw independent codes from the exact posterior p(z | x): shape (num_samples, B, N, K).

    One pass over the codes: each slice replaces a sample by one of its own with the probability that the slice has
    among all codes so far.
    """
    p, slices = joint_slices(partial(pair.model, x), max_memory=max_memory, slice_size=slice_size)
    batch = p.batch_shape.numel()
    number = torch.zeros(batch, num_samples, dtype=torch.long, device=p.device)
    so_far = torch.full((batch,), -torch.inf, dtype=p.dtype, device=p.device)
    for start, _, joint in slices:
        here = joint.logsumexp(0)  # (B,)
        so_far = torch.logaddexp(so_far, here)
        drawn = torch.multinomial(torch.softmax(joint.T, -1), num_samples, replacement=True)  # (B, P)
        replaced = torch.rand_like(drawn, dtype=p.dtype) < (here - so_far).exp().unsqueeze(-1)
        number = torch.where(replaced, drawn + start, number)
    codes = numbered_codes(number.T, p.num_latents, p.num_categories, dtype=p.dtype)
    return codes.reshape(num_samples, *p.batch_shape, p.num_latents, p.num_categories)
