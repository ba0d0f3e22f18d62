"""DisARM: leave-one-out differences of antithetic pairs of codes, coupled latent by latent."""

from typing import NamedTuple, final

import torch
from torch import Tensor
from typing_extensions import override

from ..programs.target import Target
from .sampled import Estimate, SampledELBO


class Pairs(NamedTuple):
    """Pairs of codes z and z' that are coupled within each latent and independent across latents."""

    first: Tensor  # (P, B, N, K), distributed as q
    second: Tensor  # (P, B, N, K), distributed as q
    weights: Tensor  # (P, B, N): q_n(z_n) q_n(z'_n) / joint probability of the pair, 0 where z_n = z'_n


@final
class DisARM(SampledELBO):
    r"""The ELBO's gradient from P antithetic pairs of binary codes.

    A pair shares one uniform number u_n for each latent: z_n = 1[1 - u_n < s_n] and z'_n = 1[u_n < s_n] with s_n =
    sigmoid(phi_n) and phi_n = logits_n1 - logits_n0. With f(z) = log p(x, z) - log q(z | x), the gradient for phi_n is

    .. math:: g_n = \frac{1}{2} (f(z) - f(z')) \, (-1)^{z'_n} \, 1[z_n \neq z'_n] \, \sigma(|\phi_n|)

    (Dong, Mnih, Tucker 2020, arXiv 2006.10680; independently Yin et al. 2020, as U2G). The model's parameters get the
    mean gradient of log p(x, z) over both codes. This is :class:`DisARMIW` for K = 2, and is computed as such.

    *Approximates* the ELBO of the discrete model. *With* two decoder calls for each pair. *Requires* K = 2. *Bias*:
    none.

    Args:
        num_particles: P, the number of pairs; each takes two decoder calls.

    Raises:
        ValueError: when called, if K is not 2.

    Example:
        >>> from pyro_gvae.models.categorical_vae import CategoricalVAE
        >>> vae = CategoricalVAE(data_dim=6, num_latents=4, num_categories=2, hidden=(5,))
        >>> DisARM(num_particles=4).loss(vae.model, vae.guide, torch.ones(4, 6)) > 0
        True
    """

    @override
    def estimate(self, target: Target) -> Estimate:
        num_categories = target.log_probs.shape[-1]
        if num_categories != 2:
            raise ValueError(
                f"Expected latents of K=2 categories, but found K={num_categories}: DisARM's antithetic pairs are "
                "pairs of bits. Try disarm-iw, which takes any number of categories, or local-expectation."
            )
        return coupled_estimate(target, self.num_particles)


@final
class DisARMIW(SampledELBO):
    r"""The ELBO's gradient from P pairs of codes, coupled by stick breaking so that they differ: DisARM for any K.

    Each latent is a sequence of coin flips, "is it category 1? if not, is it 2? ..", in ascending order of q_n. Flip i
    succeeds with probability p_i = q_i / sum_{j >= i} q_j; the two codes of a pair use u_i and 1 - u_i. With f(z) = log
    p(x, z) - log q(z | x),

    .. math::

        g = \frac{1}{2} (f(z) - f(z')) \sum_n w_n \nabla (\log q_n(z_n) - \log q_n(z'_n)), \quad
        w_n = \frac{q_n(z_n) \, q_n(z'_n)}{p_n(z_n, z'_n)}
            = (1 - p_m) \prod_{i < m} \frac{(1 - p_i)^2}{1 - 2 p_i}, \quad m = \min(z_n, z'_n)

    and w_n = 0 where z_n = z'_n (Dong, Mnih, Tucker 2021, "Coupled Gradient Estimators for Discrete Latent Variables",
    arXiv 2106.08056: DisARM-IW). This is the leave-one-out estimator of two independent codes, with each latent
    importance-weighted to coupled codes. In ascending order every pair of different categories can occur, so the
    estimator is unbiased, and no weight exceeds 2. The model's parameters get the mean gradient of log p(x, z) over
    both codes.

    *Approximates* the ELBO of the discrete model. *With* two decoder calls for each pair. *Requires* nothing more.
    *Bias*: none.

    Args:
        num_particles: P, the number of pairs; each takes two decoder calls.

    Example:
        >>> from pyro_gvae.models.categorical_vae import CategoricalVAE
        >>> vae = CategoricalVAE(data_dim=6, num_latents=2, num_categories=3, hidden=(5,))
        >>> DisARMIW(num_particles=4).loss(vae.model, vae.guide, torch.ones(4, 6)) > 0
        True
    """

    @override
    def estimate(self, target: Target) -> Estimate:
        return coupled_estimate(target, self.num_particles)


def coupled_estimate(target: Target, num_pairs: int) -> Estimate:
    """Return the mean of f over pairs of codes, and the surrogate of :class:`DisARMIW`."""
    pairs = sample_pairs(target.log_probs.detach().exp(), num_pairs)
    log_joint = target.log_joint(torch.cat([pairs.first, pairs.second]))  # (2P, B)
    first, second = (log_joint - target.log_q(torch.cat([pairs.first, pairs.second]))).detach().chunk(2)  # (P, B) each
    # Use the score of q itself, without scale and mask: f already has those.
    difference = ((pairs.first - pairs.second) * target.log_probs).sum(-1)  # (P, B, N): log q_n(z_n) - log q_n(z'_n)
    score = 0.5 * (first - second) * (pairs.weights * difference).sum(-1)  # (P, B)
    bound = 0.5 * (first + second).mean(0)  # (B,)
    return Estimate(bound=bound, surrogate=score.mean(0).sum() + log_joint.mean(0).sum())


def sample_pairs(probs: Tensor, num_pairs: int) -> Pairs:
    """Draw P pairs of codes for each datum by the antithetic stick-breaking coupling of :class:`DisARMIW`.

    Args:
        probs: q_n(k), shape (B, N, K), without a gradient.
        num_pairs: P.

    Returns:
        The pairs, and the importance weight of each latent.

    Example:
        >>> pairs = sample_pairs(torch.tensor([[[0.5, 0.5]]]), 100)  # two equal categories are never drawn together
        >>> int((pairs.first * pairs.second).sum()), pairs.weights.unique()
        (0, tensor([0.5000]))
    """
    probs, order = probs.sort(-1)  # ascending, (B, N, K)
    flips = probs / probs.flip(-1).cumsum(-1).flip(-1)  # p_i; the last is 1
    # The codes differ at the first flip that succeeds in either; before that, both fail with probability 1 - 2 p_i.
    both_fail = (1 - flips[..., :-2]).square() / (1 - 2 * flips[..., :-2])  # (B, N, K-2), where p_i <= 1/3
    one_fails = 1 - flips[..., :-1]  # (B, N, K-1), where p_i <= 1/2
    ratios = one_fails * torch.cat([torch.ones_like(one_fails[..., :1]), both_fail.cumprod(-1)], -1)
    u = torch.rand(num_pairs, *probs.shape, dtype=probs.dtype, device=probs.device)
    first, second = _first_of(u < flips), _first_of(1 - u <= flips)
    apart = _first_of(first ^ second)[..., :-1]  # the first category of the two, if they differ
    codes = [torch.zeros_like(u).scatter_(-1, order.expand_as(u), z.to(u.dtype)) for z in (first, second)]
    return Pairs(codes[0], codes[1], (apart * ratios).sum(-1))


def _first_of(flags: Tensor) -> Tensor:
    """Keep only the first true entry along the last dimension."""
    return flags & (flags.cumsum(-1) == 1)
