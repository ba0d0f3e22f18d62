"""Compute the exact posterior p(z | x) over all joint codes: marginals, most probable codes, samples."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..config.checks import at_least
from ..handlers.sites import Run
from ..programs.chains import Chains
from ..programs.joint import joint_scores
from ..programs.pair import HasPair
from ..programs.runs import Runs, bind_pair
from . import backwards
from .endless import plan_to_end
from .nested import nested_marginals, nested_samples
from .plan import PerLatent, Plan, make_plan, per_latent


class Posterior(NamedTuple):
    """The exact posterior of each datum.

    Codes and marginals of a program with one discrete latent are tensors; with several latents, they are dictionaries
    by the latent's name. Every latent is treated as N digits of K categories: bits have two categories, and integers
    one digit.

    Attributes:
        marginals: p(z_n = k | x), (B, N, K).
        codes: the C most probable joint codes as one-hots, in descending order, (B, C, N, K).
        probs: p(z | x) of these codes, (B, C).
    """

    marginals: PerLatent
    codes: PerLatent
    probs: Tensor


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
        num_codes: C, how many of the most probable joint codes of all latents to return; at most all. In a chain, the
            first takes one pass; for more, all K^T joint codes are searched.
        max_memory: bytes that a slice may take; 4 GB if None.
        slice_size: codes in a slice; the largest that is fast and fits into `max_memory` if None.
        **kwargs: keyword arguments of model and guide.

    Returns:
        Marginals (B, N, K), the C most probable joint codes (B, C, N, K), and their probabilities (B, C); for several
        latents, marginals and codes by the latent's name. If data share a latent, B stands for the plates that it is
        in, and marginals are given all data.

    Raises:
        ValueError: as :func:`log_evidence`; also if `num_codes` is negative, or positive if data share a latent.

    Example:
        >>> from pyro_gvae.models.categorical_vae import CategoricalVAE
        >>> vae = CategoricalVAE(data_dim=6, num_latents=2, num_categories=3, hidden=(5,))
        >>> found = posterior(vae, torch.ones(4, 6), num_codes=9)
        >>> found.marginals.shape, found.codes.shape, found.probs.sum(-1)
        (torch.Size([4, 2, 3]), torch.Size([4, 9, 2, 3]), tensor([1., 1., 1., 1.]))
    """
    if num_codes < 0:
        raise ValueError(f"Expected num_codes of at least 0, but found {num_codes}.")
    runs = bind_pair(pair, *args, **kwargs)
    plan = plan_to_end(runs, with_guide=False, with_gradient=False, max_memory=max_memory, slice_size=slice_size)
    if isinstance(plan, Chains) and num_codes > 1:  # which do not follow from one pass over a chain, as the first does
        plan = make_plan(runs, with_guide=False, with_gradient=False, max_memory=max_memory, slice_size=slice_size)
    if isinstance(plan, Chains):
        found = _posterior_of_chains(runs, plan)
        return _with_best(found, runs, plan) if num_codes else found
    check_latents(plan)
    if plan.layout.is_shared:
        return _shared_posterior(runs.model, plan, num_codes)
    return _joint_posterior(runs.model, plan, min(num_codes, plan.num_codes))


def check_latents(plan: Plan) -> None:
    """Refuse to compute a posterior if the program has no discrete latent, or all of them are observed.

    Raises:
        ValueError: if there is no discrete latent.
    """
    if not plan.layout.space.latents:
        raise ValueError(
            f"Expected a discrete latent to compute its posterior, but found {sorted(plan.layout.labels)} "
            "observed. Try data without labels."
        )


def _joint_posterior(model: Run, plan: Plan, num_codes: int) -> Posterior:
    """Sum over all joint codes, slice by slice, and keep the C most probable ones."""
    lowest = torch.finfo(plan.dtype).min
    highest = torch.full((plan.batch_shape.numel(),), lowest, dtype=plan.dtype, device=plan.device)
    # Running sums over the codes, in units of exp(highest), as in an online softmax.
    moments = {
        latent.name: highest.new_zeros(len(highest), latent.num_latents * latent.num_categories)
        for latent in plan.layout.space.latents
    }
    best = highest.new_empty(0, len(highest))  # (C, B)
    best_numbers = torch.empty(best.shape, dtype=torch.long, device=plan.device)
    for numbers in plan.numbers():
        codes = plan.codes(numbers)
        joint = joint_scores(model, plan.layout, codes).joint  # (s, B)
        before, highest = highest, torch.maximum(highest, joint.amax(0))
        shrunk, weights = (before - highest).exp().unsqueeze(-1), plan.weights(joint - highest).T
        moments = {name: moment * shrunk + weights @ codes[name].flatten(1) for name, moment in moments.items()}
        best, best_numbers = _best(best, best_numbers, joint, numbers, num_codes)
    marginals = {
        latent.name: moments[latent.name].unflatten(1, (latent.num_latents, latent.num_categories))
        for latent in plan.layout.space.latents
    }
    # Each code has exactly one category of the first digit.
    total = next(iter(marginals.values()))[..., :1, :].sum(-1, keepdim=True)
    probs = (best - highest).exp() / total.reshape(-1)
    return Posterior(
        marginals=per_latent(in_plates(plan, {name: marginal / total for name, marginal in marginals.items()})),
        codes=per_latent(in_plates(plan, plan.codes(best_numbers.T))),
        probs=probs.T.reshape(*plan.layout.evidence_shape, num_codes),
    )


def _posterior_of_chains(runs: Runs, chains: Chains) -> Posterior:
    """Return the marginals, without any codes."""
    marginals = backwards.marginals(runs, chains)
    codes = {name: own.new_zeros(*own.shape[:-2], 0, *own.shape[-2:]) for name, own in marginals.items()}
    some = next(iter(marginals.values()))
    return Posterior(per_latent(marginals), per_latent(codes), some.new_zeros(*chains.result_shape, 0))


def _with_best(found: Posterior, runs: Runs, chains: Chains) -> Posterior:
    """Add the most probable joint code."""
    best = backwards.best(runs, chains)
    codes = {name: own.unsqueeze(-3) for name, own in best.codes.items()}
    return found._replace(codes=per_latent(codes), probs=best.probs.unsqueeze(-1))


def _shared_posterior(model: Run, plan: Plan, num_codes: int) -> Posterior:
    if num_codes:
        raise no_own_code(num_codes)
    marginals = in_plates(plan, nested_marginals(model, plan))
    codes = {name: own.new_zeros(*own.shape[:-2], 0, *own.shape[-2:]) for name, own in marginals.items()}
    return Posterior(
        per_latent(marginals),
        per_latent(codes),
        probs=torch.zeros(*plan.layout.evidence_shape, 0).to(plan.device, plan.dtype),
    )


def no_own_code(num_codes: int) -> ValueError:
    """Return the error of most probable codes that are asked for where data share a latent."""
    return ValueError(
        f"Expected num_codes=0 where data share a discrete latent, but found {num_codes}: the most "
        "probable code is then one of all data together, not of each datum. Try the marginals, or sample_posterior."
    )


def _best(best: Tensor, best_numbers: Tensor, joint: Tensor, numbers: Tensor, num_codes: int) -> tuple[Tensor, Tensor]:
    """Return the `num_codes` highest log-probabilities of each datum (C, B), and the numbers of their codes."""
    found, where = joint.topk(min(num_codes, len(joint)), 0)
    best, best_numbers = torch.cat([best, found]), torch.cat([best_numbers, numbers[where]])
    best, where = best.topk(min(num_codes, len(best)), 0)
    return best, best_numbers.gather(0, where)


@torch.no_grad()
def posterior_mean(
    pair: HasPair,
    *args: Any,
    statistic: Callable[[dict[str, Tensor]], Tensor],
    max_memory: float | None = None,
    slice_size: int | None = None,
    **kwargs: Any,
) -> Tensor:
    """Compute the mean of a function of the codes under the exact posterior p(z | x), in one pass over all codes.

    Args:
        pair: a `CategoricalVAE`, or a :class:`Pair`; its guide is not used.
        *args: arguments of model and guide, for example data (B, D); a single tuple or list is unpacked.
        statistic: a function of the codes of a slice, one-hots (s, N, K) by the latent's name, that returns (s, F).
        max_memory: bytes that a slice may take; 4 GB if None.
        slice_size: codes in a slice; the largest that is fast and fits into `max_memory` if None.
        **kwargs: keyword arguments of model and guide.

    Returns:
        The means (B, F), in float64.

    Raises:
        ValueError: as :func:`log_evidence`; also if data share a latent.

    Example:
        >>> from pyro_gvae.models.categorical_vae import CategoricalVAE
        >>> vae = CategoricalVAE(data_dim=6, num_latents=2, num_categories=3, hidden=(5,))
        >>> means = posterior_mean(vae, torch.ones(4, 6), statistic=lambda codes: codes["z"].flatten(1))
        >>> torch.allclose(means.float(), posterior(vae, torch.ones(4, 6)).marginals.flatten(1))
        True
    """
    runs = bind_pair(pair, *args, **kwargs)
    plan = plan_to_end(runs, with_guide=False, with_gradient=False, max_memory=max_memory, slice_size=slice_size)
    if isinstance(plan, Chains):
        plan = make_plan(runs, with_guide=False, with_gradient=False, max_memory=max_memory, slice_size=slice_size)
    check_latents(plan)
    if plan.layout.is_shared:
        raise ValueError("Expected a latent for each datum, but found one that data share. Try sample_posterior.")
    highest = torch.full((plan.batch_shape.numel(),), -torch.inf, dtype=torch.float64, device=plan.device)
    total, mean = torch.zeros_like(highest), torch.zeros((), dtype=torch.float64, device=plan.device)
    for numbers in plan.numbers():
        codes = plan.codes(numbers)
        joint = joint_scores(runs.model, plan.layout, codes).joint.double()  # (s, B)
        before, highest = highest, torch.maximum(highest, joint.amax(0))
        shrunk, weights = (before - highest).exp(), (joint - highest).exp()
        total = total * shrunk + weights.sum(0)
        mean = mean * shrunk.unsqueeze(-1) + weights.T @ statistic(codes).double()
    return mean / total.unsqueeze(-1)


@torch.no_grad()
def sample_posterior(
    pair: HasPair,
    *args: Any,
    num_samples: int = 1,
    max_memory: float | None = None,
    slice_size: int | None = None,
    **kwargs: Any,
) -> PerLatent:
    """Draw independent samples from the exact posterior p(z | x) of the discrete model, in one pass over all codes.

    This is reservoir sampling: each slice replaces an earlier draw with one of its own codes, with probability equal to
    the slice's share of the evidence so far.

    Args:
        pair: a `CategoricalVAE`, or a :class:`Pair`; its guide is not used.
        *args: arguments of model and guide, for example data (B, D); a single tuple or list is unpacked.
        num_samples: P, draws for each datum.
        max_memory: bytes that a slice may take; 4 GB if None.
        slice_size: codes in a slice; the largest that is fast and fits into `max_memory` if None.
        **kwargs: keyword arguments of model and guide.

    Returns:
        One-hot codes (P, B, N, K); for several discrete latents, drawn jointly, a dictionary by their names. B stands
        for the plates that a latent is in. No gradient.

    Raises:
        ValueError: as :func:`log_evidence`; also if `num_samples` is not positive.

    Example:
        >>> from pyro_gvae.models.categorical_vae import CategoricalVAE
        >>> vae = CategoricalVAE(data_dim=6, num_latents=2, num_categories=3, hidden=(5,))
        >>> sample_posterior(vae, torch.ones(4, 6), num_samples=7).shape
        torch.Size([7, 4, 2, 3])
    """
    at_least("num_samples", num_samples, 1)
    runs = bind_pair(pair, *args, **kwargs)
    plan = plan_to_end(runs, with_guide=False, with_gradient=False, max_memory=max_memory, slice_size=slice_size)
    if isinstance(plan, Chains):
        return per_latent(backwards.samples(runs, plan, num_samples))
    check_latents(plan)
    if plan.layout.is_shared:
        return per_latent(_in_cells(plan, nested_samples(runs.model, plan, num_samples)))
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
    return per_latent(_in_cells(plan, drawn.T))


def _in_cells(plan: Plan, numbers: Tensor) -> dict[str, Tensor]:
    """Return the codes with these joint numbers (P, B), each latent with its own batch dimensions."""
    shapes = {name: level.shape for level in plan.layout.levels for name in level.names}
    found = {}
    for name, own in plan.codes(numbers).items():
        rows = own.reshape(len(numbers), *plan.batch_shape, *own.shape[-2:])
        rows = rows[(slice(None), *(slice(size) for size in shapes[name]))]
        found[name] = rows.reshape(len(numbers), *plan.layout.site_shapes[name], *own.shape[-2:])
    return found


def in_plates(plan: Plan, values: dict[str, Tensor]) -> dict[str, Tensor]:
    """Reshape values (cells, ...) of each latent to the batch dimensions of its site."""
    return {name: own.reshape(*plan.layout.site_shapes[name], *own.shape[1:]) for name, own in values.items()}
