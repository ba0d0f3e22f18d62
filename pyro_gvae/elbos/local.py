"""Local expectation gradients: each latent in turn is summed over its K categories, the others are sampled."""

from collections.abc import Iterator
from typing import final

import torch
from torch import Tensor
from typing_extensions import override

from ..distributions.codes import hamming_neighbours
from ..exact.expectation import finite
from ..programs.noise import by_gumbel_noise, independent, largest
from ..programs.samples import Change, Sample
from ..programs.site import Site
from ..programs.target import Target
from ..runtime.tuning import tuning
from .rows import MOST_SLICES, Rows, SiteEstimate, SiteGradient
from .sampled import Estimate, SampledELBO


@final
class LocalExpectation(SampledELBO):
    r"""The ELBO with local expectation gradients, which enumerate one latent at a time.

    For z ~ q, let f_nk be log p(x, z') - log q(z' | x), where z' is z with category k in its n-th digit, and with the
    latents that the guide declares after it drawn again. Then

    .. math::

        g = \frac{1}{P} \sum_{p} \sum_{n} \sum_{k} \nabla q_n(k | z^{(p)}) f_{nk}(z^{(p)})

    is the gradient for the parameters of q (Titsias, Lázaro-Gredilla 2015, arXiv 1503.01494; for independent
    categoricals, De Smet, Sansone, Zuidberg Dos Martires 2023, arXiv 2311.12569). The sum over k is a conditional
    expectation given the other digits and all earlier latents, so it is unbiased. Later latents are drawn with the
    noise that they had in z, so that costs that do not depend on the digit are equal and cancel. The model's parameters
    get the gradient of log p(x, z) at z itself, and continuous latents are reparameterized there; those that cannot be
    are scored.

    A latent whose distribution depends on no other latent, in model and guide, has its KL in closed form in place of
    log p(z) - log q(z). That makes no difference to g, because terms that do not depend on z_n cancel. With a single
    digit, and nothing continuous, the bound and the gradient for q are exact.

    The codes differ from z in at most one digit, so only 1 + N (K - 1) of the N K codes are distinct. Only z is
    differentiated; further runs score its neighbours without a graph, slice by slice. Averaging the gradient of log
    p(x, z) over these codes too would reduce its variance, but would need a graph and a backward pass of all of them.
    (Batch normalization in train mode normalizes over one slice at a time.)

    *Approximates* the ELBO of the discrete model. *With* 1 + N (K - 1) runs of the model for each of P samples per
    datum, with N (K - 1) summed over the discrete latents. *Requires* memory for the decoder's outputs, not for their
    graph.
    *Bias*: none.

    Args:
        num_particles: P, samples per datum.

    Example:
        >>> from pyro_gvae.models.categorical_vae import CategoricalVAE
        >>> vae = CategoricalVAE(data_dim=6, num_latents=2, num_categories=3, hidden=(5,))
        >>> LocalExpectation(num_particles=4).loss(vae.model, vae.guide, torch.ones(4, 6)) > 0
        True
    """

    @override
    def estimate(self, target: Target) -> Estimate:
        # If nothing is drawn again, the noise need not be kept.
        base = target.drawn(self.num_particles, by_gumbel_noise if target.layout.guide_depends else independent)
        p, q, rows = target.read(base.values), base.q, (self.num_particles, target.layout.batch_size)
        analytic = {name for name, site in q.sites.items() if not (site.depends or p.sites[name].depends)}
        joint = p.log_prob(base.codes, analytic)
        paths = (joint - q.log_prob(base.codes, base.without_path)).expand(rows)
        cost = (joint - q.log_prob(base.codes, analytic)).detach().expand(rows)  # (P, B)
        negative_kl = sum((_negative_kl(q.sites[name], p.sites[name]) for name in analytic), cost.new_zeros(1))  # (B,)
        # (P, total N, B); if there is no digit, it is the cost itself.
        expected = torch.cat([*_expected_costs(target, base, cost, analytic)] or [cost.unsqueeze(1)], 1)
        surrogate = (paths + expected.sum(1)).mean(0) + negative_kl
        return Estimate(
            bound=expected.mean((0, 1)) + negative_kl, surrogate=surrogate.sum() + base.score_function(cost)
        )


@final
class LocalGradient(SiteGradient):
    """The gradient of one latent, summing over each of its digits in turn; the others may be treated in any way."""

    @override
    def forward(self, rows: Rows, name: str) -> SiteEstimate:
        codes = rows.base.codes[name]
        shifted = _shifted(codes)  # (R, K, B, N, K)
        weights = (shifted * rows.base.q.sites[name].rows().unsqueeze(1).exp()).sum(-1).movedim(-1, 1)  # (R, N, K, B)
        num_rows, num_latents, num_categories, _ = weights.shape
        numbers = torch.arange(num_rows, device=codes.device).repeat_interleave(num_latents * (num_categories - 1))
        size = rows.slice_size(len(numbers))
        costs = [codes.new_empty(0, codes.shape[1])]  # with one category there are no neighbours
        for part, neighbours in zip(numbers.split(size), hamming_neighbours(codes, size), strict=False):
            costs.append(rows.costs_of_change(Change(name, neighbours, part)))
        table = _by_latent(rows.costs, torch.cat(costs), weights.shape)
        # A code of weight 0 may be impossible, under guide or model or both, and must add 0, not NaN.
        return SiteEstimate((weights * finite(table.masked_fill(weights.detach() == 0, 0.0))).sum())


def _expected_costs(target: Target, base: Sample, cost: Tensor, analytic: set[str]) -> Iterator[Tensor]:
    """Yield the expected cost (P, N, B) under each digit of each latent, given the others and all earlier latents.

    Data that share a latent multiply its probabilities by their own costs; the sum over them gives its gradient.
    """
    slice_size = _slice_size(base) if base.codes else 1
    for name, site in base.q.sites.items():
        shifted = _shifted(base.codes[name])  # (P, K, B, N, K)
        weights = (shifted * site.rows().unsqueeze(1).exp()).sum(-1).movedim(-1, 1)  # (P, N, K, B)
        neighbours = _costs_of_neighbours(target, base, name, slice_size, analytic)
        table = _by_latent(cost, neighbours, weights.shape)
        # A code of weight 0 may be impossible, under guide or model or both, and must add 0, not NaN.
        table = table.masked_fill(weights.detach() == 0, 0.0).clamp_min(torch.finfo(table.dtype).min)
        yield (weights * table).sum(2)


def _negative_kl(q: Site, p: Site) -> Tensor:
    """Compute -KL(q || p) of a latent that depends on no other, in nats (B,), scaled and masked as in the programs."""
    return p.weigh((q.log_probs.exp() * p.log_probs).sum((-2, -1))) + q.entropy()


def _shifted(z: Tensor) -> Tensor:
    """Shift all categories of z (P, B, N, K) by j = 0 .. K - 1, modulo K: (P, K, B, N, K)."""
    return torch.stack([z.roll(j, -1) for j in range(z.shape[-1])], 1)


def _slice_size(base: Sample) -> int:
    """Return how many neighbours of each datum are scored at once."""
    one = next(iter(base.codes.values()))
    neighbours = sum(len(codes) * codes.shape[-2] * (codes.shape[-1] - 1) for codes in base.codes.values())
    return max(tuning(one.device).decoded_rows // one.shape[1], -(-neighbours // MOST_SLICES), 1)


@torch.no_grad()
def _costs_of_neighbours(target: Target, base: Sample, name: str, slice_size: int, analytic: set[str]) -> Tensor:
    """Return log p - log q of the P N (K - 1) codes with one other digit of a latent, slice by slice: (s, B)."""
    codes = base.codes[name]
    particles, batch, num_latents, num_categories = codes.shape
    rows = torch.arange(particles, device=codes.device).repeat_interleave(num_latents * (num_categories - 1))
    costs = [codes.new_empty(0, batch)]  # with one category there are no neighbours
    for part, neighbours in zip(rows.split(slice_size), hamming_neighbours(codes, slice_size), strict=False):
        changed = target.changed(base, Change(name, neighbours, part), largest)
        log_p = target.read(changed.values).log_prob(changed.codes, analytic)
        costs.append((log_p - changed.q.log_prob(changed.codes, analytic)).expand(len(part), batch))
    return torch.cat(costs)


def _by_latent(own: Tensor, neighbours: Tensor, shape: torch.Size) -> Tensor:
    """Arrange the costs of z (P, B) and of its neighbours as (P, N, K, B); the third dimension is the shift j."""
    particles, num_latents, num_categories, batch = shape
    others = neighbours.reshape(particles, num_latents, num_categories - 1, batch)
    return torch.cat([own[:, None, None].expand(-1, num_latents, -1, -1), others], 2)
