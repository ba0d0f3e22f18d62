"""The best factorized posterior of every datum, by coordinate ascent on the enumerated joint distribution."""

from typing import NamedTuple

import torch
from torch import Tensor

from .evaluate import joint_scores
from .posterior import posterior
from .programs import HasPair, read_guide, with_own_parameters
from .slices import make_plan


class MeanField(NamedTuple):
    """The best mean-field posterior of every datum that was found."""

    logits: Tensor  # (B, N, K): normalized, log q_n(k)
    elbo: Tensor  # (B,)


@torch.no_grad()
def mean_field(
    pair: HasPair,
    x: Tensor,
    *,
    max_sweeps: int = 100,
    tolerance: float = 1e-6,
    max_memory: float | None = None,
    slice_size: int | None = None,
) -> MeanField:
    model = with_own_parameters(pair.model, x)
    q = read_guide(with_own_parameters(pair.guide, x))
    plan = make_plan(model, max_memory=max_memory, slice_size=slice_size)
    joint = torch.cat([joint_scores(model, plan, numbers)[1] for numbers in plan.numbers()]).T.contiguous()  # (B, S)
    joint = joint.clamp_min(torch.finfo(joint.dtype).min / plan.num_codes)
    exact = posterior(pair, x, 1, max_memory=max_memory, slice_size=slice_size)
    starts = [q.log_probs.exp(), exact.marginals, 0.9 * exact.codes[..., 0, :, :] + 0.1 / plan.num_categories]
    found = [
        ascend(joint, start.reshape(-1, *start.shape[-2:]).expand(len(joint), -1, -1), max_sweeps, tolerance)
        for start in starts
    ]
    elbos = torch.stack([elbo for _, elbo in found])  # (3, B)
    best = elbos.argmax(0)
    logits = torch.stack([logits for logits, _ in found])[best, torch.arange(len(best))]
    return MeanField(logits.reshape(*plan.batch_shape, *logits.shape[-2:]), elbos.amax(0).reshape(plan.batch_shape))


def ascend(joint: Tensor, probs: Tensor, max_sweeps: int, tolerance: float) -> tuple[Tensor, Tensor]:
    """Maximize E_q[log p(x, z)] + H(q) one latent at a time."""
    log_q = probs.clamp_min(torch.finfo(probs.dtype).tiny).log()
    elbo = torch.full((len(joint),), -torch.inf, dtype=joint.dtype, device=joint.device)
    for _ in range(max_sweeps):
        log_q, new = sweep(joint, log_q)
        done = bool((new - elbo).amax() < tolerance)
        elbo = new
        if done:
            break
    return log_q, elbo


def sweep(joint: Tensor, log_q: Tensor) -> tuple[Tensor, Tensor]:
    """Update every latent once, log q_n(k) = E_q[log p(x, z) | z_n = k] + constant; return log q and the ELBO."""
    num_latents, num_categories = log_q.shape[-2:]
    after = [joint.new_ones(len(joint), 1)]  # probabilities (B, K^m) of the last m latents
    for n in range(num_latents - 1, 0, -1):
        after.append((log_q[:, n, :, None].exp() * after[-1][:, None, :]).flatten(1))
    before = joint.new_ones(len(joint), 1)  # probabilities (B, K^n) of the first n latents
    updated = []
    for n in range(num_latents):
        rest = after.pop()
        score = (joint.unflatten(1, (-1, rest.shape[1])) @ rest.unsqueeze(-1)).squeeze(-1)  # (B, K^(n+1))
        score = (before.unsqueeze(1) @ score.unflatten(1, (-1, num_categories))).squeeze(1)  # (B, K)
        updated.append(torch.log_softmax(score, -1))
        before = (before.unsqueeze(-1) * updated[-1].exp().unsqueeze(1)).flatten(1)
    new = torch.stack(updated, 1)  # (B, N, K)
    q = new.exp()
    entropy = -torch.where(q > 0, q * new, 0.0).sum((-2, -1))
    return new, (updated[-1].exp() * score).sum(-1) + entropy
