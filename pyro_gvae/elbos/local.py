"""Partial enumeration: every latent is summed over its K categories in turn, the others sampled."""

from typing import final

import torch
from torch import Tensor
from typing_extensions import override

from ..distributions.codes import hamming_neighbours
from ..programs.reader import negative_kl, score
from ..programs.target import Target
from ..runtime.tuning import tuning
from .sampled import Estimate, SampledELBO

#: A recording holds the operations of each slice, and takes as much longer.
MOST_SLICES = 32


@final
class LocalExpectation(SampledELBO):
    r"""The ELBO's gradient, enumerated over one latent at a time: local expectation gradients.

    For z ~ q, and z[n=k] the code that has category k in its n-th latent and is z elsewhere,

    .. math::

        g = \frac{1}{P} \sum_{p} \sum_{n} \sum_{k} \nabla q_n(k) \log p(x | z^{(p)}[n{=}k]) - \nabla \mathrm{KL}(q \| p)

    for what q depends on, and for the parameters of log p(x | z) its gradient at z itself (Titsias, Lázaro-Gredilla
    2015, arXiv 1503.01494; for independent categoricals, De Smet, Sansone, Zuidberg Dos Martires 2023, arXiv
    2311.12569). The sum over k is a conditional expectation given the other latents, hence unbiased. That the KL of
    factorized distributions is taken exactly changes nothing: log p(z) - log q(z) in place of it, summed over k, has
    the same gradient, because what does not depend on z_n cancels. With one latent the bound, and the gradient for
    what q depends on, are exact.

    The codes differ from z in one latent at most, so 1 + N (K - 1) of the N K are distinct. Only z is differentiated
    through: further runs of the model score the others without a graph, slice by slice. The mean of the gradients
    under q_n would be a calmer one for the parameters of log p(x | z), at the price of a graph, and a backward pass, of
    all those codes. (A decoder that normalizes over its batch, in training, does so over one slice at a time.)

    Args:
        num_particles: P.

    Example:
        >>> from pyro_gvae.models.categorical_vae import CategoricalVAE
        >>> vae = CategoricalVAE(data_dim=6, num_latents=2, num_categories=3, hidden=(5,))
        >>> LocalExpectation(num_particles=4).loss(vae.model, vae.guide, torch.ones(4, 6)) > 0
        True
    """

    @override
    def estimate(self, target: Target) -> Estimate:
        turned = _turned(target.sample(self.num_particles))  # (P, K, B, N, K)
        weights = (turned * target.log_probs.exp()).sum(-1).movedim(-1, 1)  # (P, N, K, B)
        sampled = score(target.model, turned[:, 0], target.nesting)
        neighbours = _scores_of_neighbours(target, turned[:, 0])
        table = _by_latent(sampled.table.detach(), neighbours, weights.shape)  # (P, N, K, B)
        expected = (weights * table).sum(2)  # (P, N, B)
        kl_part = negative_kl(target.q, target.log_probs, sampled.prior)  # (B,)
        return Estimate(
            bound=expected.mean((0, 1)) + kl_part,
            surrogate=((sampled.table + expected.sum(1)).mean(0) + kl_part).sum(),
        )


def _turned(z: Tensor) -> Tensor:
    """z (P, B, N, K) with all of its latents j = 0 .. K-1 categories further on, modulo K: (P, K, B, N, K)."""
    return torch.stack([z.roll(j, -1) for j in range(z.shape[-1])], 1)


@torch.no_grad()
def _scores_of_neighbours(target: Target, z: Tensor) -> Tensor:
    """log p(x | .) of the P N (K - 1) codes that differ from z (P, B, N, K) in one latent, slice by slice: (s, B)."""
    particles, batch, num_latents, num_categories = z.shape
    rows = tuning(z.device).decoded_rows
    slice_size = max(rows // batch, -(-particles * num_latents * (num_categories - 1) // MOST_SLICES), 1)
    tables = [score(target.model, codes, target.nesting).table for codes in hamming_neighbours(z, slice_size)]
    return torch.cat([z.new_empty(0, batch), *tables])  # of one category there are none


def _by_latent(own: Tensor, neighbours: Tensor, shape: torch.Size) -> Tensor:
    """Scores of z, (P, B), and of its neighbours, as (P, N, K, B); the third dimension is j = 0 .. K-1."""
    particles, num_latents, num_categories, batch = shape
    others = neighbours.reshape(particles, num_latents, num_categories - 1, batch)
    table = torch.cat([own[:, None, None].expand(-1, num_latents, -1, -1), others], 2)
    return table.clamp_min(torch.finfo(table.dtype).min)  # a code that cannot be and weighs 0 must add 0, not NaN
