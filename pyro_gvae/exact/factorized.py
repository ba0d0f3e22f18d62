"""Find the best factorized posterior of each datum, by coordinate ascent on the enumerated joint distribution."""

from collections.abc import Iterator
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..handlers.sites import Run
from ..programs.cells import first_of, summed_over
from ..programs.chains import Chains
from ..programs.factors import Level
from ..programs.joint import Guide, joint_scores
from ..programs.latents import Latent
from ..programs.levels import level_scores
from ..programs.pair import HasPair
from ..programs.runs import Runs, bind_pair
from ..programs.statements import read
from ..runtime.memory import in_words, memory_limit
from . import factorized_chains
from .ascent import ascend
from .endless import plan_and_guide
from .factorized_apart import Digits, ascend_apart, logs
from .nested import nested_marginals
from .plan import PerLatent, Plan, per_latent
from .posteriors import check_latents


class MeanField(NamedTuple):
    """The best factorized posterior found for each datum.

    Attributes:
        logits: log q_n(k), normalized, (B, N, K); for several discrete latents a dictionary by their names.
        elbo: its ELBO in nats, (B,).
    """

    logits: PerLatent
    elbo: Tensor


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

    The digits n are those of all discrete latents. Each update is the exact optimum given the other digits (coordinate
    ascent; Blei, Kucukelbir, McAuliffe 2017, arXiv 1601.00670). It takes an expectation over the table of log p(x, z),
    which is held in memory. The ELBO has several local optima, so the ascent starts from the guide, from the marginals
    of the exact posterior and from its mode, and the best result is returned. Up to rounding, it lies between the
    guide's ELBO and log p(x), so the difference to the guide's ELBO is the amortization gap. A guide whose latents
    depend on each other cannot be a start: it is not factorized, and its ELBO may be higher than the result. So may the
    ELBO of a guide that lacks latents of the model: it sums them as if the guide had their exact posterior, whereas
    here they are factorized like all others. Latents inside of `pyro.markov` are updated one after another, in time
    linear in their number.

    Args:
        pair: a `CategoricalVAE`, or a :class:`Pair`.
        *args: arguments of model and guide, for example data (B, D); a single tuple or list is unpacked.
        max_sweeps: the largest number of sweeps over all digits.
        tolerance: sweeps over a datum end when one gains at most this for it, in nats, or at most four roundings of its
            ELBO, which is 5e-5 for -100 nats in float32. More sweeps could raise its ELBO by about as much again. Data
            that share a latent, and data of chains, are swept until none of them gains more.
        max_memory: bytes that the table or a slice may take; 4 GB if None.
        slice_size: codes in a slice; the largest that is fast and fits into `max_memory` if None.
        **kwargs: keyword arguments of model and guide.

    Returns:
        Normalized logits (B, N, K) of each latent, by its name, and the ELBO (B,). No gradient.

    Raises:
        ValueError: as :func:`log_evidence` and :func:`elbo`; also if the table of all codes and data does not fit.

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
    plan, guide = plan_and_guide(runs, max_memory=max_memory, slice_size=slice_size)
    if isinstance(plan, Chains):
        return _of_chains(runs, plan, max_sweeps=max_sweeps, tolerance=tolerance)
    check_latents(plan)
    tables, scale = _tables(runs.model, plan, max_memory)
    if plan.layout.is_shared:
        update = partial(shared_sweep, tables=tables, plan=plan)
        starts = [*_guide_starts(runs, plan, guide), _marginal_start(runs.model, plan)]
        ends = [ascend(update, start, max_sweeps=max_sweeps, tolerance=tolerance) for start in starts]
    else:
        starts = _guide_starts(runs, plan, guide)
        ends = ascend_apart(tables[0], starts, plan, max_sweeps=max_sweeps, tolerance=tolerance)
    elbos = torch.stack([end.elbo for end in ends])  # (starts, cells of the outermost latents)
    best = elbos.argmax(0, keepdim=True)
    outermost = plan.layout.levels[0]
    digits = zip(*(end.logits for end in ends), strict=True)
    logits = {}
    for latent, level in _levels(plan):
        rows = outermost.spread(best, level).squeeze(0), torch.arange(level.shape.numel(), device=plan.device)
        own = torch.stack([torch.stack(next(digits))[rows] for _ in range(latent.num_latents)], 1)
        logits[latent.name] = own.reshape(*plan.layout.site_shapes[latent.name], *own.shape[-2:])
    return MeanField(per_latent(logits), (scale * elbos.gather(0, best)).reshape(plan.layout.evidence_shape))


def _of_chains(runs: Runs, chains: Chains, *, max_sweeps: int, tolerance: float) -> MeanField:
    """Find the best factorized posterior of latents that are summed one after another."""
    statements = factorized_chains.Statements(runs, chains)
    ends = [
        ascend(statements.sweep, start, max_sweeps=max_sweeps, tolerance=tolerance)
        for start in factorized_chains.starts(runs, chains)
    ]
    elbos = torch.stack([end.elbo for end in ends])  # (starts, *shared plates)
    best = elbos.argmax(0, keepdim=True)
    logits = {}
    for name in chains.latents:
        own = torch.stack([end.logits[name] for end in ends])  # (starts, *plates, N, K)
        shared = [chains.sizes[plate] if plate in chains.shared else 1 for plate in chains.plates[name]]
        where = best.reshape(1, *shared, 1, 1).expand(1, *own.shape[1:])
        logits[name] = own.gather(0, where).squeeze(0)
    return MeanField(per_latent(logits), elbos.gather(0, best).squeeze(0))


def _tables(model: Run, plan: Plan, max_memory: float | None) -> tuple[list[Tensor], float | Tensor]:
    """Return log p(x, z) of all codes (cells, S), level by level, and the scale of the model."""
    # The ascent keeps the table and its exponential in memory.
    needed = 2 * plan.num_codes * plan.layout.batch_size * plan.dtype.itemsize
    limit = memory_limit(max_memory)
    if needed > limit:
        raise ValueError(
            f"Expected the table of {plan.num_codes:,} codes and {plan.layout.batch_size} data to fit into "
            f"{in_words(limit)}, but found {in_words(needed)}. Try fewer data at once, or a larger max_memory."
        )
    # An impossible code must add 0 times a finite number, not 0 * -inf.
    lowest = torch.finfo(plan.dtype).min / (plan.num_codes * (plan.layout.batch_size if plan.layout.is_shared else 1))
    if not plan.layout.is_shared:
        joint = torch.empty(plan.layout.batch_size, plan.num_codes, dtype=plan.dtype, device=plan.device)
        for numbers in plan.numbers():
            found = joint_scores(model, plan.layout, plan.codes(numbers))
            joint[:, numbers[0] : numbers[-1] + 1] = found.joint.clamp_min(lowest).T
        return [joint], found.scale
    levels = [level_scores(model, plan.layout, plan.codes(numbers)) for numbers in plan.numbers()]
    parts, scale = [part.tables for part in levels], levels[0].scale
    tables, step = [], plan.num_codes
    for level, table in zip(plan.layout.levels, zip(*parts, strict=True), strict=True):
        step //= level.num_codes  # the number of joint codes of the inner levels, on which this level does not depend
        tables.append(torch.cat(table)[::step].T.contiguous().clamp_min(lowest))
    return tables, scale


def _levels(plan: Plan) -> Iterator[tuple[Latent, Level]]:
    """Yield each latent with its level, in the order of their digits."""
    levels = {name: level for level in plan.layout.levels for name in level.names}
    return ((latent, levels[latent.name]) for latent in plan.layout.space.latents)


def _guide_starts(runs: Runs, plan: Plan, guide: Guide) -> list[tuple[Tensor, ...]]:
    """Return log q (cells, K) of each digit, or nothing if the guide is not known to be factorized."""
    latents = plan.layout.space.latents
    if plan.layout.obstacle is None:
        sites = guide.sites
    else:  # one latent depends on no other
        sites = read(runs.guide, plan.layout, plan.layout.some_codes(1), {}).sites if len(latents) == 1 else {}
    if any(latent.name not in sites for latent in latents):
        return []
    start: list[Tensor] = []
    for latent, level in _levels(plan):
        log_probs = sites[latent.name].log_probs  # (B or 1, N, K)
        for digit in log_probs.unbind(1):
            every = digit.expand(plan.layout.batch_size, -1)
            start.append(first_of(every.T, plan.batch_shape, level.shape).T)
    return [tuple(start)]


def _marginal_start(model: Run, plan: Plan) -> tuple[Tensor, ...]:
    """Return the marginals of the exact posterior, log q (cells, K), where data share latents."""
    return logs(digit for own in nested_marginals(model, plan).values() for digit in own.unbind(1))


def shared_sweep(log_q: tuple[Tensor, ...], tables: list[Tensor], plan: Plan) -> Digits:
    """Update every digit once, for latents that data share.

    The expectation of log p(x, z) is linear in the probabilities of each digit, so its derivative with respect to them
    is the conditional expectation: log q_n(k) = d E_q[log p(x, z)] / d q_n(k) + constant.
    """
    logits = list(log_q)
    for n in range(len(logits)):
        own = logits[n].exp().requires_grad_()
        with torch.enable_grad():
            probs = [own if i == n else other.exp() for i, other in enumerate(logits)]
            [gradient] = torch.autograd.grad(_expected(tables, probs, plan).sum(), [own])
        logits[n] = gradient.log_softmax(-1)
    total = _expected(tables, [digit.exp() for digit in logits], plan)
    outermost = plan.layout.levels[0].shape
    for digit, level in zip(logits, _levels_of_digits(plan), strict=True):
        entropy = torch.special.entr(digit.exp()).sum(-1, keepdim=True).T
        total = total + summed_over(entropy, level.shape, outermost).squeeze(0)
    return Digits(tuple(logits), total)


def _levels_of_digits(plan: Plan) -> list[Level]:
    return [level for latent, level in _levels(plan) for _ in range(latent.num_latents)]


def _expected(tables: list[Tensor], probs: list[Tensor], plan: Plan) -> Tensor:
    """Compute E_q[log p(x, z)] (cells of the outermost latents) from the table (cells, S) of each level."""
    digits = list(zip(probs, _levels_of_digits(plan), strict=True))
    total = tables[0].new_zeros(plan.layout.levels[0].shape.numel())
    for table, level in zip(tables, plan.layout.levels, strict=True):
        # The digits of this level and of the levels outside it, from the last to the first.
        for own, outer in reversed([digit for digit in digits if level.holds(digit[1].shape)]):
            rows = outer.spread(own.T, level).T  # (cells, K)
            table = (table.unflatten(1, (-1, rows.shape[1])) @ rows.unsqueeze(-1)).squeeze(-1)
        total = total + summed_over(table.T, level.shape, plan.layout.levels[0].shape).squeeze(0)
    return total
