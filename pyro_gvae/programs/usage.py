r"""How much a batch uses the categories of each discrete latent: q(z_n = k | x), averaged over data.

.. math:: \bar q_n(k) = \frac{1}{B} \sum_b \mathrm{E}_{q(z' | x_b)}[q(z_n = k | z', x_b)]

where z' are the latents that z_n depends on in the guide.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from .factors import Layout, add
from .joint import pieces
from .kept import OutdatedError
from .noise import independent
from .runs import Runs
from .samples import sample
from .site import Site
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
    return [_mean(_counted(site).sum((0, 1)), site) for site in sites]


def summed_usage(runs: Runs, layout: Layout) -> list[Usage]:
    """Compute the use by a sum over all joint codes at once."""
    codes = layout.space.codes(torch.arange(layout.space.num_codes, device=layout.device), layout.dtype)
    found: dict[str, Tensor] = {}
    sites: dict[str, Site] = {}
    for part in pieces(layout, codes):
        sites = read(runs.guide, layout, part, {}).sites
        log_q = add(site.score(part) for site in sites.values())
        probs = log_q.exp().expand(-1, layout.batch_size)  # (s, B)
        for name, site in sites.items():
            counted = torch.einsum("sb,sbf->f", probs, _counted(site, part[name]).expand(*probs.shape, -1))
            found[name] = found[name] + counted if name in found else counted
    return [_mean(found[name], site) for name, site in sites.items()]


def drawn_usage(runs: Runs, layout: Layout, num_particles: int) -> list[Usage]:
    """Estimate the use from P draws, with an unbiased gradient of the means.

    Discrete latents are scored, with the mean of the other draws as baseline; continuous ones are reparameterized.
    """
    drawn = sample(runs, layout, num_particles, independent)
    rows = num_particles, layout.batch_size
    scores = [site.score(drawn.codes).expand(rows) for site in drawn.q.sites.values()]
    scores += [factor.unweighed().expand(rows) for name, factor in drawn.q.factors.items() if name in drawn.scored]
    score = add(scores)  # (P, B)
    found = []
    for site in drawn.q.sites.values():
        counted = _counted(site).expand(*rows, -1)
        held = counted.detach()
        signal = (num_particles * held - held.sum(0)) / (num_particles - 1)
        surrogate = (signal * score.unsqueeze(-1)).mean(0) if site.depends else counted.new_zeros(())
        found.append(_mean((counted.mean(0) + surrogate - surrogate.detach()).sum(0), site))
    return found


def _counted(site: Site, codes: Tensor | None = None) -> Tensor:
    """Return the weight of each datum times q(z_n = k), and the weight itself: (s, B, N * K + 1).

    Args:
        site: a latent of the guide.
        codes: one-hots (s, N, K), which take the place of q(z_n = k).
    """
    probs = site.rows().exp() if codes is None else codes.unsqueeze(1)
    weights = site._replace(scale=1.0).weight.to(probs.dtype)[..., None, None]  # (B, 1, 1) or (s, B, 1, 1)
    weighed = weights * probs
    return torch.cat([weighed.flatten(-2), weights.squeeze(-1).expand(*weighed.shape[:-2], 1)], -1)


def _mean(counted: Tensor, site: Site) -> Usage:
    """Divide weighted sums over data, (N * K + 1,), by the sum of weights, which comes last."""
    num_data = counted[-1]
    mean = counted[:-1] / num_data.clamp_min(torch.finfo(counted.dtype).tiny)
    return Usage(mean.reshape(site.latent.num_latents, site.latent.num_categories), num_data)
