"""Compute a guide's probability of each category, its entropies, and the KL of each latent, for given data."""

from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import torch
from torch import Size, Tensor

from ..exact.plan import make_plan
from ..programs.batches import Batch
from ..programs.chains import lay_out_chains
from ..programs.draws import lay_out_draws, read_draws
from ..programs.factors import Layout, Reading, add, coupling_of
from ..programs.joint import Guide, read_both, read_guide_once
from ..programs.kls import closed_sites
from ..programs.look import look
from ..programs.modes import judging
from ..programs.pair import HasPair
from ..programs.runs import Runs, bind_pair
from ..programs.site import Codes, Site
from .guided import MOST_KEPT, Guided, of_chains, of_drawn_chains
from .importance import most_pairs


class _Weighted(NamedTuple):
    """Codes with weights that add up to one for each datum, and the terms of both programs given these codes."""

    codes: Codes
    weights: Tensor  # (s, B)
    q: Reading
    p: Reading


@judging
@torch.no_grad()
def read_guide(
    pair: HasPair, x: Batch, *, is_summed: bool = True, num_particles: int = 1000, max_memory: float | None = None
) -> Guided:
    """Compute the guide's probabilities, entropies and KLs for the latents of data.

    Discrete latents that depend on no other latent, in guide and model, are computed in closed form. For others,
    expectations under the guide are sums over all joint codes, or means over draws. Latents inside of `pyro.markov` are
    summed one after another. A latent that the guide lacks gets its exact posterior given the latents that the guide
    has, since this is the guide whose ELBO :func:`pyro_gvae.exact.elbo` computes.

    Args:
        pair: model and guide.
        x: data (B, ...), or a tuple or dictionary of all arguments of the programs.
        is_summed: whether the codes are few enough to sum over. With continuous latents they are drawn in any case.
        num_particles: P, the number of draws for each datum.
        max_memory: bytes that a slice of codes or draws may use; 4 GB if None.

    Returns:
        The numbers of each datum.

    Raises:
        ValueError: if the latents of the programs do not fit together, or one datum's codes do not fit into memory.

    Example:
        >>> from pyro_gvae import CategoricalVAE
        >>> vae, x = CategoricalVAE(data_dim=6, num_latents=2, num_categories=3, hidden=(5,)), torch.ones(4, 6)
        >>> guided = read_guide(vae, x)
        >>> guided.log_probs["z"].shape, guided.kls["z"].shape, guided.is_exact
        (torch.Size([4, 2, 3]), torch.Size([4]), True)
    """
    runs = bind_pair(pair, x)
    seen = look(runs)
    if seen.alone or (seen.needs_axes and is_summed and not seen.given):
        chains = lay_out_chains(runs, seen, max_memory)
        return of_drawn_chains(runs, chains, num_particles, max_memory) if seen.given else of_chains(runs, chains)
    layout = lay_out_draws(runs, with_guide=not seen.says_all, seen=seen)
    guide, prior = closed_sites(runs, layout, seen)
    if len(guide) == len(prior) == len(layout.space.latents) and not layout.has_continuous:
        is_summed = True
        found: Iterable[_Weighted] = ()
    elif is_summed and not layout.has_continuous:
        found = _all_codes(runs, layout, max_memory)
    else:
        is_summed = False
        layout = lay_out_draws(runs, seen=seen)
        found = _draws(runs, layout, num_particles, max(1, most_pairs(pair, x, max_memory) // layout.batch_size))
    sizes = {name: layout.cells.sizes(site.batch_shape) for name, site in seen.model.discrete.items()}
    return _expected(layout, sizes, guide, prior, found, is_exact=is_summed)


@judging
@torch.no_grad()
def closed_log_probs(pair: HasPair, x: Batch) -> dict[str, Tensor] | None:
    """Return log q(z_n = k | x), (B, N, K), if no discrete latent depends on another one in the guide; else None.

    No code is drawn or summed over, whatever the prior is.

    Args:
        pair: model and guide.
        x: data (B, ...), or a tuple or dictionary of all arguments of the programs.
    """
    runs = bind_pair(pair, x)
    seen = look(runs)
    if seen.alone or seen.needs_axes:
        return None
    layout = lay_out_draws(runs, with_guide=not seen.says_all, seen=seen)
    guide, _ = closed_sites(runs, layout, seen)
    if len(guide) < len(layout.space.latents):
        return None
    return {name: site.log_probs.expand(layout.batch_size, -1, -1) for name, site in guide.items()}


def _all_codes(runs: Runs, layout: Layout, max_memory: float | None) -> Iterator[_Weighted]:
    """Yield all joint codes in slices, weighted by their probability."""
    plan = make_plan(runs, max_memory=max_memory)
    guide: Guide = read_guide_once(runs, layout)
    for numbers in plan.numbers():
        for both in read_both(runs, layout, guide, plan.codes(numbers)):
            q = Reading(guide.sites | both.q.sites, {}, {})
            log_q = add(site.score(both.codes) for site in q.sites.values())
            yield _Weighted(both.codes, plan.weights(log_q).expand(-1, layout.batch_size), q, both.p)


def _draws(runs: Runs, layout: Layout, num_particles: int, at_once: int) -> Iterator[_Weighted]:
    """Yield draws of all latents, all with the same weight."""
    weights = torch.full((1, layout.batch_size), 1 / num_particles, dtype=layout.dtype, device=layout.device)
    for start in range(0, num_particles, at_once):
        rows = min(at_once, num_particles - start)
        drawn = read_draws(runs, layout, rows)
        yield _Weighted(drawn.codes, weights.expand(rows, -1), drawn.q, drawn.p)


def _expected(
    layout: Layout,
    sizes: dict[str, Size],
    guide: dict[str, Site],
    prior: dict[str, Site],
    found: Iterable[_Weighted],
    *,
    is_exact: bool,
) -> Guided:
    """Compute the result from closed forms, and from expectations over weighted codes for everything else."""
    zero = torch.zeros((), dtype=layout.dtype, device=layout.device)
    totals: dict[tuple[str, str], Tensor] = defaultdict(lambda: zero)
    is_kept = is_exact and layout.space.num_codes * layout.batch_size <= MOST_KEPT
    table: list[Tensor] = []
    for one in found:
        for key, value in _terms(one, guide, prior):
            totals[key] = totals[key] + value
        if is_kept:
            table.append(add(site.score(one.codes) for site in one.q.sites.values()))
    log_probs, entropies, kls = {}, {}, {}
    for name in (latent.name for latent in layout.space.latents):
        if name in guide:
            log_probs[name] = guide[name].log_probs.expand(layout.batch_size, -1, -1)
            entropies[name] = _entropy(guide[name]).expand(layout.batch_size)
        else:
            log_probs[name] = totals["probs", name].log().clamp_min(torch.finfo(layout.dtype).min)
            entropies[name] = totals["entropy", name]
        kls[name] = _kl(guide[name], prior[name]) if name in guide and name in prior else totals["kl", name]
    kls |= {name: value for (kind, name), value in totals.items() if kind == "kl" and name not in kls}
    return Guided(
        log_probs={name: _of_each(own, layout, sizes[name]) for name, own in log_probs.items()},
        entropies=entropies,
        kls=kls,
        table=torch.cat([rows.expand(-1, layout.batch_size) for rows in table]) if table else None,
        is_factorized=len(guide) == len(layout.space.latents),
        closed=frozenset(guide) & frozenset(prior),
        is_exact=is_exact,
    )


def _terms(one: _Weighted, guide: dict[str, Site], prior: dict[str, Site]) -> Iterator[tuple[tuple[str, str], Tensor]]:
    """Yield the weighted sums over codes of everything that has no closed form: (kind, latent), value."""
    for name, site in one.q.sites.items():
        if name not in guide:
            yield ("probs", name), _mean_probs(one.weights, site)
            yield ("entropy", name), (one.weights * _entropy(site)).sum(0)
        if name not in guide or name not in prior:
            log_ratio = _weighed(site, one.codes) - _weighed(one.p.sites[name], one.codes)
            if one.p.sites[name].prior is not None:
                log_ratio = log_ratio - one.p.factors[coupling_of(name)].log_prob
            yield ("kl", name), (one.weights * log_ratio).sum(0)
    for name, factor in one.q.factors.items():
        log_ratio = factor.log_prob - (one.p.factors[name].log_prob if name in one.p.factors else 0.0)
        yield ("kl", name), (one.weights * log_ratio).sum(0)


def _mean_probs(weights: Tensor, site: Site) -> Tensor:
    """Return the weighted mean of a latent's probabilities, (B, N, K)."""
    probs = site.log_probs.exp()
    if not site.depends:
        return weights.sum(0)[:, None, None] * probs
    if probs.shape[1] == 1:  # the same for all data: one matrix product
        return (weights.T @ probs.flatten(1)).unflatten(1, probs.shape[2:])
    return torch.einsum("sb,sbnk->bnk", weights, probs)


def _entropy(site: Site) -> Tensor:
    """Return a datum's share of a latent's entropy given the latents it depends on, (B or 1,) or (s, B or 1)."""
    entropy = -(site.log_probs.exp() * site.log_probs).sum((-2, -1))
    return entropy if site.share == 1 else entropy * site.share


def _weighed(site: Site, codes: Codes) -> Tensor:
    """Return the log-probability of codes, (s, B), finite for impossible ones, whose weight is 0."""
    return site.weigh(site.score(codes).clamp_min(torch.finfo(site.log_probs.dtype).min))


def _kl(q: Site, p: Site) -> Tensor:
    """Return KL(q || p) of a latent that depends on no other latent, (B,)."""
    probs = q.log_probs.exp()
    kl = (probs * (q.log_probs - p.log_probs)).sum((-2, -1))
    return q.weigh(kl if p.prior is None else kl - p.prior.mean_coupling(probs))


def _of_each(values: Tensor, layout: Layout, sizes: Size) -> Tensor:
    """Return values (B, N, K), which are equal for data that share the latent, once for each of its M values."""
    event = values.shape[1:]
    return layout.cells.taken(values.reshape(*layout.batch_shape, *event), sizes, 2).reshape(-1, *event)
