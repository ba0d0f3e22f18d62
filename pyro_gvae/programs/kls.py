r"""The KL of each latent of a pair, digit by digit: in closed form, summed over codes, or drawn.

.. math:: \mathrm{KL}_n = \mathrm{E}_q[\log q(z_n | z', x) - \log p(z_n | z'')]

where z' and z'' are the latents that z_n depends on in the guide and in the model. An auxiliary latent of the guide has
E_q[log q], so that these KLs add up to KL(q(z | x) || p(z)).
"""

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from .cells import summed_over
from .draws import read_draws, scored
from .factors import Layout, Reading, add, coupling_of
from .joint import pieces, read_both, read_guide_once
from .kept import OutdatedError
from .look import Look
from .modes import without_trace
from .runs import Runs
from .samples import above_others
from .site import Codes, Site
from .statements import read


class LatentKL(NamedTuple):
    """The KL of a latent, summed over data.

    Attributes:
        value: the KL of each of its N digits, (N,), or of the whole latent, (1,), if it is continuous or the prior
            couples its digits. Scaled and masked as in the guide, and counted once where data share the latent.
        weight: the sum of the weights of data, (): their number if nothing is scaled, masked or shared.
    """

    value: Tensor
    weight: Tensor


def closed_sites(runs: Runs, layout: Layout, seen: Look | None = None) -> tuple[dict[str, Site], dict[str, Site]]:
    """Return the discrete latents of the guide, and those of the model, that depend on no other latent.

    Args:
        runs: the pair with its data bound.
        layout: the latents and plates of the pair.
        seen: the result of a first look, used instead of another run of the guide, see :func:`~.joint.read_guide_once`.
    """
    if layout.obstacle is not None:  # without an axis, shapes do not show what depends on what
        if len(layout.space.latents) > 1 or layout.has_continuous:
            return {}, {}
        codes = layout.some_codes(1)
        return read(runs.guide, layout, codes, {}).sites, read(runs.model, layout, codes, {}).sites
    if layout.has_continuous:
        with without_trace():
            drawn = read_draws(runs, layout, layout.few()[0])
        return _independent(drawn.q), _independent(drawn.p)
    guide = read_guide_once(runs, layout, seen)
    [both] = read_both(runs, layout, guide, layout.some_codes(layout.few()[0]))
    return guide.sites, _independent(both.p)


def _independent(found: Reading) -> dict[str, Site]:
    return {name: site for name, site in found.sites.items() if site.is_closed}


def closed_kls(runs: Runs, layout: Layout) -> dict[str, LatentKL]:
    """Compute the KL of latents that do not depend on each other, from one run of each program."""
    codes = layout.some_codes(1)
    q, p = (read(program, layout, codes, {}).sites for program in (runs.guide, runs.model))
    if any(site.depends for site in (*q.values(), *p.values())):
        raise OutdatedError
    return {name: _closed_kl(site, p[name]) for name, site in q.items()}


def summed_kls(runs: Runs, layout: Layout) -> dict[str, LatentKL]:
    """Compute the KL of each latent by a sum over all joint codes at once, with a pathwise draw of continuous ones."""
    codes = layout.space.codes(torch.arange(layout.space.num_codes, device=layout.device), layout.dtype)
    found: dict[str, list[LatentKL]] = {}
    for part in pieces(layout, codes):
        q = read(runs.guide, layout, part, {})
        p = read(runs.model, layout, part, q.values)
        log_q = add(site.score(part) for site in q.sites.values()) if q.sites else torch.zeros(1, 1)
        probs = log_q.exp().expand(-1, layout.batch_size)  # (s, B)
        closed = {} if layout.obstacle is not None else _both_independent(q, p)
        for name, ratio, weight in _ratios(part, q, p):
            own = LatentKL((probs.unsqueeze(-1) * ratio).sum((0, 1)), (probs * weight).sum())
            found.setdefault(name, []).append(closed.get(name) or own)
    return {name: LatentKL(*(add(values) for values in zip(*each, strict=True))) for name, each in found.items()}


def drawn_kls(runs: Runs, layout: Layout, num_particles: int) -> dict[str, LatentKL]:
    """Estimate the KL of each latent from P draws, with an unbiased gradient.

    Discrete latents are scored, with the mean of the other draws as baseline; continuous ones are reparameterized.
    """
    drawn = read_draws(runs, layout, num_particles)
    closed = {} if layout.obstacle is not None else _both_independent(drawn.q, drawn.p)
    draws = scored(layout, drawn)
    score = draws.score_function().unsqueeze(1)  # (P, 1, M)
    found = {}
    for name, own, weight in _ratios(drawn.codes, drawn.q, drawn.p):
        ratio = own.expand(num_particles, layout.batch_size, -1)
        costs = summed_over(ratio.detach().movedim(-1, 1).flatten(0, 1), layout.batch_shape, draws.apart)
        costs = costs.reshape(num_particles, ratio.shape[-1], -1)  # (P, N, M)
        surrogate = (above_others(costs) * score).mean(0).sum(-1)  # (N,)
        value = ratio.mean(0).sum(0) + surrogate - surrogate.detach()
        found[name] = closed.get(name) or LatentKL(value, weight.expand(num_particles, -1).mean(0).sum())
    return found


def _ratios(codes: Codes, q: Reading, p: Reading) -> Iterable[tuple[str, Tensor, Tensor]]:
    """Yield each latent's name, its weighted log q - log p (s or 1, B, N), and its weights (B,) or (s or 1, B)."""
    for name, site in q.sites.items():
        ratio = site.digit_scores(codes) - p.sites[name].digit_scores(codes)  # (s, B or 1, N)
        if p.sites[name].prior is not None:
            ratio = (ratio.sum(-1) - p.factors[coupling_of(name)].unweighed()).unsqueeze(-1)
        yield name, ratio * site.weight.unsqueeze(-1), site.weight
    for name, factor in q.factors.items():
        weight = factor.weigh(factor.log_prob.new_ones(factor.fn.batch_shape))
        ratio = factor.log_prob - p.factors[name].log_prob if name in p.factors else factor.log_prob
        yield name, ratio.unsqueeze(-1), weight


def _both_independent(q: Reading, p: Reading) -> dict[str, LatentKL]:
    prior = _independent(p)
    return {name: _closed_kl(site, prior[name]) for name, site in _independent(q).items() if name in prior}


def _closed_kl(q: Site, p: Site) -> LatentKL:
    kl = (q.log_probs.exp() * (q.log_probs - p.log_probs)).sum(-1)  # (B or 1, N)
    weight = q.weight
    if p.prior is not None:
        kl = (kl.sum(-1) - p.prior.mean_coupling(q.log_probs.exp())).unsqueeze(-1)
    return LatentKL(weight @ kl.expand(len(weight), -1), weight.sum())
