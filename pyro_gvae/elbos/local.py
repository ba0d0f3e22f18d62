"""Local expectation gradients: each latent in turn is summed over its K categories, the others are sampled."""

from typing import final

import torch
from torch import Tensor
from typing_extensions import override

from ..distributions.codes import hamming_neighbours
from ..programs.reader import negative_kl, score
from ..programs.target import Target
from ..runtime.tuning import tuning
from .sampled import Estimate, SampledELBO

#: Most slices of neighbours: a recording holds the operations of every slice, and takes longer with each.
MOST_SLICES = 32


@final
class LocalExpectation(SampledELBO):
    r"""The ELBO with local expectation gradients, which enumerate one latent at a time.

    For z ~ q, and z[n=k] the code that has category k in its n-th latent and is z elsewhere,

    .. math::

        g = \frac{1}{P} \sum_{p} \sum_{n} \sum_{k} \nabla q_n(k) \log p(x | z^{(p)}[n{=}k]) - \nabla \mathrm{KL}(q \| p)

    is the gradient for the parameters of q (Titsias, Lázaro-Gredilla 2015, arXiv 1503.01494; for independent
    categoricals, De Smet, Sansone, Zuidberg Dos Martires 2023, arXiv 2311.12569). The parameters of log p(x | z) get
    its gradient at z itself. The sum over k is a conditional expectation given the other latents, so it is unbiased.
    Taking the KL exactly makes no difference: log p(z) - log q(z), summed over k, has the same gradient, because terms
    that do not depend on z_n cancel. With a single latent, the bound and the gradient for q are exact.

    The codes differ from z in at most one latent, so only 1 + N (K - 1) of the N K codes are distinct. Only z is
    differentiated; further runs of the model score its neighbours without a graph, slice by slice. Averaging the
    gradient of log p(x | z) over these codes too would reduce its variance, but would need a graph and a backward pass
    of all of them. (Batch normalization in train mode normalizes over one slice at a time.)

    *Approximates* the ELBO of the discrete model. *With* 1 + N (K - 1) decoder calls for each of P codes per datum.
    *Requires* memory for the decoder's outputs, not for their graph. *Bias*: none.

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
        shifted = _shifted(target.sample(self.num_particles))  # (P, K, B, N, K)
        weights = (shifted * target.log_probs.exp()).sum(-1).movedim(-1, 1)  # (P, N, K, B)
        sampled = score(target.model, shifted[:, 0], target.nesting)
        neighbours = _scores_of_neighbours(target, shifted[:, 0])
        table = _by_latent(sampled.table.detach(), neighbours, weights.shape)  # (P, N, K, B)
        expected = (weights * table).sum(2)  # (P, N, B)
        kl_part = negative_kl(target.q, target.log_probs, sampled.prior)  # (B,)
        return Estimate(
            bound=expected.mean((0, 1)) + kl_part,
            surrogate=((sampled.table + expected.sum(1)).mean(0) + kl_part).sum(),
        )


def _shifted(z: Tensor) -> Tensor:
    """Shift all categories of z (P, B, N, K) by j = 0 .. K - 1, modulo K: (P, K, B, N, K)."""
    return torch.stack([z.roll(j, -1) for j in range(z.shape[-1])], 1)


@torch.no_grad()
def _scores_of_neighbours(target: Target, z: Tensor) -> Tensor:
    """Score log p(x | .) of the P N (K - 1) Hamming neighbours of z (P, B, N, K), slice by slice: (s, B)."""
    particles, batch, num_latents, num_categories = z.shape
    rows = tuning(z.device).decoded_rows
    slice_size = max(rows // batch, -(-particles * num_latents * (num_categories - 1) // MOST_SLICES), 1)
    tables = [score(target.model, codes, target.nesting).table for codes in hamming_neighbours(z, slice_size)]
    return torch.cat([z.new_empty(0, batch), *tables])  # with one category there are no neighbours


def _by_latent(own: Tensor, neighbours: Tensor, shape: torch.Size) -> Tensor:
    """Arrange the scores of z (P, B) and of its neighbours as (P, N, K, B); the third dimension is the shift j."""
    particles, num_latents, num_categories, batch = shape
    others = neighbours.reshape(particles, num_latents, num_categories - 1, batch)
    table = torch.cat([own[:, None, None].expand(-1, num_latents, -1, -1), others], 2)
    return table.clamp_min(torch.finfo(table.dtype).min)  # an impossible code of weight 0 must add 0, not NaN
