"""The best factorized posterior of each datum, by coordinate ascent on the enumerated joint distribution."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..handlers.sites import Run
from ..programs.joint import joint_scores, read_guide_once
from ..programs.pair import HasPair
from ..programs.runs import bind_pair
from ..runtime.memory import in_words, memory_limit
from .plan import Plan, make_plan


class MeanField(NamedTuple):
    """The best factorized posterior found for each datum."""

    logits: Tensor  # (B, N, K): log q_n(k), normalized
    elbo: Tensor  # (B,): its ELBO in nats


@torch.no_grad()
def mean_field(
    pair: HasPair,
    *args: Any,
    max_sweeps: int = 100,
    tolerance: float = 1e-6,
    max_memory: float | None = None,
    slice_size: int | None = None,
    **kwargs: Any,
) -> MeanField:
    r"""Find the factorized posterior with the highest ELBO for each datum, without amortization.

    .. math:: q_n(k) \propto \exp \mathrm{E}_{q_{-n}}[\log p(x, z) \mid z_n = k], \quad n = 1 .. N, 1 .. N, ...

    Each update is the exact optimum given the other latents (coordinate ascent; Blei, Kucukelbir, McAuliffe 2017, arXiv
    1601.00670). It takes an expectation over the table of log p(x, z), which is held in memory. The ELBO has several
    local optima, so the ascent starts from the guide, from the marginals of the exact posterior and from its mode, and
    the best result is returned. Up to rounding, it lies between the guide's ELBO and log p(x), so the difference to the
    guide's ELBO is the amortization gap.

    Args:
        pair: a `CategoricalVAE`, or a :class:`Pair`.
        *args: arguments of model and guide, for example data (B, D); a single tuple or list is unpacked.
        max_sweeps: most sweeps over the N latents.
        tolerance: stop when a sweep gains no more than this for any datum, in nats.
        max_memory: bytes that the table or a slice may take; 4 GB if None.
        slice_size: codes in a slice; the largest that is fast and fits into `max_memory` if None.
        **kwargs: keyword arguments of model and guide.

    Returns:
        Normalized logits (B, N, K) and the ELBO (B,). No gradient.

    Raises:
        ValueError: as :func:`log_evidence` and :func:`elbo`; also if the table (K^N, B) does not fit.

    Example:
        >>> from pyro_gvae.exact import elbo, log_evidence
        >>> from pyro_gvae.models.categorical_vae import CategoricalVAE
        >>> vae = CategoricalVAE(data_dim=6, num_latents=2, num_categories=3, hidden=(5,))
        >>> x = torch.ones(4, 6)
        >>> best = mean_field(vae, x)
        >>> bool((elbo(vae, x) <= best.elbo).all() and (best.elbo <= log_evidence(vae, x) + 1e-5).all())
        True
    """
    runs = bind_pair(pair, *args, **kwargs)
    plan = make_plan(runs, max_memory=max_memory, slice_size=slice_size)
    latent = plan.latent
    log_q = read_guide_once(runs, plan.layout).sites[latent.name].log_probs  # (B or 1, N, K)
    joint, scale = _joint_table(runs.model, plan, max_memory)
    starts = [log_q.expand(len(joint), -1, -1), *_posterior_starts(joint, plan)]
    ends = [ascend(joint, start, plan, max_sweeps=max_sweeps, tolerance=tolerance) for start in starts]
    elbos, logits = torch.stack([end.elbo for end in ends]), torch.stack([end.logits for end in ends])
    best, rows = elbos.argmax(0), torch.arange(len(joint), device=plan.device)
    return MeanField(
        logits=logits[best, rows].reshape(*plan.batch_shape, latent.num_latents, latent.num_categories),
        elbo=(scale * elbos[best, rows]).reshape(plan.batch_shape),
    )


def _joint_table(model: Run, plan: Plan, max_memory: float | None) -> tuple[Tensor, float | Tensor]:
    """Return log p(x, z) of all codes (B, S), and the scale of the model."""
    # The ascent keeps the table and its exponential in memory.
    needed = 2 * plan.num_codes * plan.batch_shape.numel() * plan.dtype.itemsize
    limit = memory_limit(max_memory)
    if needed > limit:
        raise ValueError(
            f"Expected the table of {plan.num_codes:,} codes and {plan.batch_shape.numel()} data to fit into "
            f"{in_words(limit)}, but found {in_words(needed)}. Try fewer data at once, or a larger max_memory."
        )
    parts = [joint_scores(model, plan.layout, plan.codes(numbers)) for numbers in plan.numbers()]
    table = torch.cat([part.joint for part in parts]).T.contiguous()
    # An impossible code must add 0 times a finite number, not 0 * -inf.
    return table.clamp_min(torch.finfo(plan.dtype).min / plan.num_codes), parts[0].scale


def _posterior_starts(joint: Tensor, plan: Plan) -> list[Tensor]:
    """Return two starts log q (B, N, K): the marginals of the exact posterior, and its mode, slightly smoothed."""
    probs = joint.softmax(1)  # (B, S)
    marginals = [
        probs.reshape(len(joint), plan.latent.num_categories**n, plan.latent.num_categories, -1).sum((1, 3))
        for n in range(plan.latent.num_latents)
    ]
    mode = plan.codes(probs.argmax(1))[plan.latent.name]  # (B, N, K)
    starts = [torch.stack(marginals, 1), 0.9 * mode + 0.1 / plan.latent.num_categories]
    return [start.clamp_min(torch.finfo(plan.dtype).tiny).log() for start in starts]


def ascend(joint: Tensor, log_q: Tensor, plan: Plan, *, max_sweeps: int, tolerance: float) -> MeanField:
    """Sweep over the latents until no datum gains more than the tolerance.

    Args:
        joint: log p(x, z) of all codes (B, S).
        log_q: where to start, (B, N, K).
        plan: how the codes are cut into slices.
        max_sweeps: most sweeps over the N latents, at least one.
        tolerance: the largest gain that counts as none, in nats.
    """
    found = sweep(joint, log_q, plan)
    for _ in range(max_sweeps - 1):
        before, found = found, sweep(joint, found.logits, plan)
        if not bool((found.elbo - before.elbo > tolerance).any()):
            break
    return found


def sweep(joint: Tensor, log_q: Tensor, plan: Plan) -> MeanField:
    """Update every latent once: log q_n(k) = E_q[log p(x, z) | z_n = k] + constant."""
    after = [joint.new_zeros(len(joint), 1)]  # log q of the last m latents together, (B, K^m)
    for n in range(plan.latent.num_latents - 1, 0, -1):
        after.append((log_q[:, n, :, None] + after[-1][:, None, :]).flatten(1))
    before = joint.new_zeros(len(joint), 1)  # log q of the first n latents together, (B, K^n)
    updated = []
    for _ in range(plan.latent.num_latents):
        rest = plan.weights(after.pop()).unsqueeze(-1)  # (B, K^(N-n-1), 1)
        scores = (joint.unflatten(1, (-1, rest.shape[1])) @ rest).squeeze(-1)  # (B, K^(n+1))
        scores = (plan.weights(before).unsqueeze(1) @ scores.unflatten(1, (-1, plan.latent.num_categories))).squeeze(
            1
        )  # (B, K)
        updated.append(scores.log_softmax(-1))
        before = (before.unsqueeze(-1) + updated[-1].unsqueeze(1)).flatten(1)
    logits = torch.stack(updated, 1)  # (B, N, K)
    entropy = torch.special.entr(logits.exp()).sum((-2, -1))
    return MeanField(logits, (updated[-1].exp() * scores).sum(-1) + entropy)
