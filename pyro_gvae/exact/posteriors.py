"""The exact posterior p(z | x) over all joint codes: marginals, most probable codes, samples."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..programs.joint import joint_scores
from ..programs.pair import HasPair
from ..programs.runs import bind_pair
from .plan import make_plan


class Posterior(NamedTuple):
    """The exact posterior of each datum."""

    marginals: Tensor  # (B, N, K): p(z_n = k | x)
    codes: Tensor  # (B, C, N, K): the most probable joint codes, in descending order
    probs: Tensor  # (B, C): p(z | x) of these codes


@torch.no_grad()
def posterior(
    pair: HasPair,
    *args: Any,
    num_codes: int = 0,
    max_memory: float | None = None,
    slice_size: int | None = None,
    **kwargs: Any,
) -> Posterior:
    """Compute the exact posterior p(z | x) = p(x | z) p(z) / p(x) of the discrete model, in one pass over all codes.

    Args:
        pair: a `CategoricalVAE`, or a :class:`Pair`; its guide is not used.
        *args: arguments of model and guide, for example data (B, D); a single tuple or list is unpacked.
        num_codes: C, how many of the most probable joint codes to return, at most K^N.
        max_memory: bytes that a slice may take; 4 GB if None.
        slice_size: codes in a slice; the largest that is fast and fits into `max_memory` if None.
        **kwargs: keyword arguments of model and guide.

    Returns:
        Marginals (B, N, K), and the C most probable joint codes (B, C, N, K) with their probabilities (B, C).

    Raises:
        ValueError: as :func:`log_evidence`; also if `num_codes` is negative.

    Example:
        >>> from pyro_gvae.models.categorical_vae import CategoricalVAE
        >>> vae = CategoricalVAE(data_dim=6, num_latents=2, num_categories=3, hidden=(5,))
        >>> found = posterior(vae, torch.ones(4, 6), num_codes=9)
        >>> found.codes.shape, found.probs.sum(-1)
        (torch.Size([4, 9, 2, 3]), tensor([1., 1., 1., 1.]))
    """
    if num_codes < 0:
        raise ValueError(f"Expected num_codes of at least 0, but found {num_codes}.")
    runs = bind_pair(pair, *args, **kwargs)
    plan = make_plan(runs, with_guide=False, max_memory=max_memory, slice_size=slice_size)
    latent = plan.latent
    num_codes = min(num_codes, plan.num_codes)
    lowest = torch.finfo(plan.dtype).min
    highest = torch.full((plan.batch_shape.numel(),), lowest, dtype=plan.dtype, device=plan.device)
    # Running sums over the codes, in units of exp(highest), as in an online softmax.
    moments = highest.new_zeros(len(highest), latent.num_latents * latent.num_categories)
    best = highest.new_empty(0, len(highest))  # (C, B)
    best_numbers = torch.empty(best.shape, dtype=torch.long, device=plan.device)
    for numbers in plan.numbers():
        codes = plan.codes(numbers)
        joint = joint_scores(runs.model, plan.layout, codes).joint  # (s, B)
        before, highest = highest, torch.maximum(highest, joint.amax(0))
        moments = moments * (before - highest).exp().unsqueeze(-1) + plan.weights(joint - highest).T @ codes[
            latent.name
        ].flatten(1)
        best, best_numbers = _best(best, best_numbers, joint, numbers, num_codes)
    marginals = moments.reshape(*plan.batch_shape, latent.num_latents, latent.num_categories)
    total = marginals[..., :1, :].sum(-1, keepdim=True)  # each code has exactly one category of the first latent
    probs = (best - highest).exp() / total.reshape(-1)
    return Posterior(
        marginals=marginals / total,
        codes=plan.codes(best_numbers.T)[latent.name].reshape(*plan.batch_shape, num_codes, *marginals.shape[-2:]),
        probs=probs.T.reshape(*plan.batch_shape, num_codes),
    )


def _best(best: Tensor, best_numbers: Tensor, joint: Tensor, numbers: Tensor, num_codes: int) -> tuple[Tensor, Tensor]:
    """Return the `num_codes` highest log-probabilities of each datum (C, B), and the numbers of their codes."""
    found, where = joint.topk(min(num_codes, len(joint)), 0)
    best, best_numbers = torch.cat([best, found]), torch.cat([best_numbers, numbers[where]])
    best, where = best.topk(min(num_codes, len(best)), 0)
    return best, best_numbers.gather(0, where)


@torch.no_grad()
def sample_posterior(
    pair: HasPair,
    *args: Any,
    num_samples: int = 1,
    max_memory: float | None = None,
    slice_size: int | None = None,
    **kwargs: Any,
) -> Tensor:
    """Draw independent samples from the exact posterior p(z | x) of the discrete model, in one pass over all codes.

    This is reservoir sampling: each slice replaces an earlier draw by one of its own codes, with probability equal to
    the slice's share of the evidence so far.

    Args:
        pair: a `CategoricalVAE`, or a :class:`Pair`; its guide is not used.
        *args: arguments of model and guide, for example data (B, D); a single tuple or list is unpacked.
        num_samples: P, draws for each datum.
        max_memory: bytes that a slice may take; 4 GB if None.
        slice_size: codes in a slice; the largest that is fast and fits into `max_memory` if None.
        **kwargs: keyword arguments of model and guide.

    Returns:
        One-hot codes (P, B, N, K). No gradient.

    Raises:
        ValueError: as :func:`log_evidence`; also if `num_samples` is not positive.

    Example:
        >>> from pyro_gvae.models.categorical_vae import CategoricalVAE
        >>> vae = CategoricalVAE(data_dim=6, num_latents=2, num_categories=3, hidden=(5,))
        >>> sample_posterior(vae, torch.ones(4, 6), num_samples=7).shape
        torch.Size([7, 4, 2, 3])
    """
    if num_samples < 1:
        raise ValueError(f"Expected num_samples of at least 1, but found {num_samples}.")
    runs = bind_pair(pair, *args, **kwargs)
    plan = make_plan(runs, with_guide=False, max_memory=max_memory, slice_size=slice_size)
    latent = plan.latent
    drawn = torch.zeros(plan.batch_shape.numel(), num_samples, dtype=torch.long, device=plan.device)
    so_far = torch.full((len(drawn),), -torch.inf, dtype=plan.dtype, device=plan.device)
    for numbers in plan.numbers():
        joint = joint_scores(runs.model, plan.layout, plan.codes(numbers)).joint  # (s, B)
        here = joint.logsumexp(0)
        so_far = torch.logaddexp(so_far, here)
        share = (here - so_far).exp().unsqueeze(-1)  # (B, 1)
        replaced = torch.rand(drawn.shape, dtype=plan.dtype, device=plan.device) < share
        fresh = torch.multinomial(joint.softmax(0).T, num_samples, replacement=True)  # (B, P)
        drawn = torch.where(replaced, numbers[fresh], drawn)
    return plan.codes(drawn.T)[latent.name].reshape(
        num_samples, *plan.batch_shape, latent.num_latents, latent.num_categories
    )
