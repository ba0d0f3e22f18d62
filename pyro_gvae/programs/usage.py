r"""How much a batch uses the categories of each discrete latent: q(z_n = k | x), averaged over data.

.. math:: \bar q_n(k) = \frac{1}{B} \sum_b \mathrm{E}_{q(z' | x_b)}[q(z_n = k | z', x_b)]

where z' are the latents that z_n depends on in the guide.
"""

import functools
from typing import NamedTuple

import torch
from torch import Tensor

from .factors import Layout, Site
from .joint import pieces
from .kept import OutdatedError
from .noise import independent
from .runs import Runs
from .samples import sample
from .statements import read


class Usage(NamedTuple):
    """The use of a latent's categories."""

    probs: Tensor  # (N, K): the mean of q(z_n = k | x) over data
    num_data: Tensor  # (): the data that have the latent and are not masked; data that share it count once

    def entropy(self) -> Tensor:
        """Return the entropy of the use of all digits, times the number of data: ()."""
        return -self.num_data * (self.probs * self.probs.clamp_min(torch.finfo(self.probs.dtype).tiny).log()).sum()


def closed_usage(runs: Runs, layout: Layout) -> list[Usage]:
    """Compute the use of latents that depend on no other, from one run of the guide."""
    sites = read(runs.guide, layout, layout.some_codes(1), {}).sites.values()
    if any(site.depends for site in sites):
        raise OutdatedError
    return [_mean(site, site.rows()[0].exp()) for site in sites]


def summed_usage(runs: Runs, layout: Layout) -> list[Usage]:
    """Compute the use by a sum over all joint codes at once."""
    codes = layout.space.codes(torch.arange(layout.space.num_codes, device=layout.device), layout.dtype)
    found: dict[str, list[Usage]] = {}
    for part in pieces(layout, codes):
        sites = read(runs.guide, layout, part, {}).sites
        log_q = functools.reduce(torch.add, [site.score(part) for site in sites.values()])
        weights = log_q.exp().expand(-1, layout.batch_size)  # (s, B)
        for name, site in sites.items():
            found.setdefault(name, []).append(_mean(site, torch.einsum("sb,snk->bnk", weights, part[name])))
    return [each[0]._replace(probs=functools.reduce(torch.add, [use.probs for use in each])) for each in found.values()]


def drawn_usage(runs: Runs, layout: Layout, num_particles: int) -> list[Usage]:
    """Estimate the use from P draws, with an unbiased gradient of the means.

    Discrete latents are scored, with the mean of the other draws as baseline; continuous ones are reparameterized.
    """
    drawn = sample(runs, layout, num_particles, independent)
    rows = num_particles, layout.batch_size
    scores = [site.score(drawn.codes).expand(rows) for site in drawn.q.sites.values()]
    scores += [factor.unweighed().expand(rows) for name, factor in drawn.q.factors.items() if name in drawn.scored]
    score = functools.reduce(torch.add, scores)  # (P, B)
    found = []
    for site in drawn.q.sites.values():
        probs = site.rows().exp().expand(num_particles, -1, -1, -1)  # (P, B, N, K)
        held = probs.detach()
        signal = (num_particles * held - held.sum(0)) / (num_particles - 1)
        surrogate = (signal * score[..., None, None]).mean(0) if site.depends else probs.new_zeros(())
        found.append(_mean(site, probs.mean(0) + surrogate - surrogate.detach()))
    return found


def _mean(site: Site, probs: Tensor) -> Usage:
    """Average probabilities (B, N, K) over data."""
    weights = site._replace(scale=1.0).weight.to(probs.dtype)  # (B,)
    num_data = weights.sum()
    mean = torch.einsum("b,bnk->nk", weights, probs) / num_data.clamp_min(torch.finfo(probs.dtype).tiny)
    return Usage(mean, num_data)
