"""The exact posterior p(z | x) over all joint codes: marginals, the most probable codes, samples."""

from typing import NamedTuple

import torch
from torch import Tensor

from ..distributions.one_hot import numbered_codes
from .evaluate import joint_scores
from .programs import HasPair, with_own_parameters
from .slices import make_plan


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
    model = with_own_parameters(pair.model, x)
    plan = make_plan(model, max_memory=max_memory, slice_size=slice_size)
    num_codes = min(num_codes, plan.num_codes)
    batch = plan.batch_shape.numel()
    lowest = torch.finfo(plan.dtype).min
    highest = torch.full((batch,), lowest, dtype=plan.dtype, device=plan.device)
    moments = highest.new_zeros(batch, plan.num_latents * plan.num_categories)
    best = highest.new_empty(0, batch)
    number = torch.empty(0, batch, dtype=torch.long, device=plan.device)
    for numbers in plan.numbers():
        codes, joint, _ = joint_scores(model, plan, numbers)  # (s, N * K), (s, B)
        before, highest = highest, torch.maximum(highest, joint.amax(0))
        moments = moments * plan.weights(before - highest).unsqueeze(-1) + plan.weights(joint - highest).T @ codes
        chosen, where = joint.topk(min(num_codes, len(joint)), 0)
        best, number = torch.cat([best, chosen]), torch.cat([number, numbers[where]])
        best, where = best.topk(min(num_codes, len(best)), 0)
        number = number.gather(0, where)
    moments = moments.unflatten(-1, (plan.num_latents, plan.num_categories))
    total = moments[:, 0].sum(-1)  # (B,): every code has exactly one category of the first latent
    found = numbered_codes(number.T, plan.num_latents, plan.num_categories, dtype=plan.dtype)
    probs = (best - highest).exp() / total
    return Posterior(
        (moments / total[:, None, None]).reshape(*plan.batch_shape, plan.num_latents, plan.num_categories),
        found.reshape(*plan.batch_shape, num_codes, plan.num_latents, plan.num_categories),
        probs.T.reshape(*plan.batch_shape, num_codes),
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
    model = with_own_parameters(pair.model, x)
    plan = make_plan(model, max_memory=max_memory, slice_size=slice_size)
    batch = plan.batch_shape.numel()
    number = torch.zeros(batch, num_samples, dtype=torch.long, device=plan.device)
    so_far = torch.full((batch,), -torch.inf, dtype=plan.dtype, device=plan.device)
    for numbers in plan.numbers():
        _, joint, _ = joint_scores(model, plan, numbers)
        here = joint.logsumexp(0)  # (B,)
        so_far = torch.logaddexp(so_far, here)
        drawn = torch.multinomial(torch.softmax(joint.T, -1), num_samples, replacement=True)  # (B, P)
        replaced = torch.rand_like(drawn, dtype=plan.dtype) < (here - so_far).exp().unsqueeze(-1)
        number = torch.where(replaced, numbers[drawn], number)
    codes = numbered_codes(number.T, plan.num_latents, plan.num_categories, dtype=plan.dtype)
    return codes.reshape(num_samples, *plan.batch_shape, plan.num_latents, plan.num_categories)
