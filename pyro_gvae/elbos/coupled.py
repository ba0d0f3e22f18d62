"""DisARM: leave-one-out differences of antithetic pairs of codes, coupled digit by digit."""

from collections.abc import Iterable
from typing import NamedTuple, final

import torch
from torch import Tensor
from typing_extensions import override

from ..programs.latents import Latent
from ..programs.noise import by_uniform_noise
from ..programs.samples import Change
from ..programs.target import Target
from .rows import Rows, SiteEstimate, SiteGradient
from .sampled import Estimate, SampledELBO


class Pairs(NamedTuple):
    """Pairs of codes z and z' of a latent that are coupled within each digit and independent across digits."""

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
    mean gradient of log p(x, z) over both codes. This is :class:`DisARMIW` for K = 2, and is computed in the same way,
    also with several latents.

    *Approximates* the ELBO of the discrete model. *With* 1 + M decoder calls for M discrete latents. *Requires* K = 2
    for each. *Bias*: none.

    Args:
        num_particles: P, the number of pairs per latent.

    Raises:
        ValueError: when called, if K is not 2 for a latent.

    Example:
        >>> from pyro_gvae.models.categorical_vae import CategoricalVAE
        >>> vae = CategoricalVAE(data_dim=6, num_latents=4, num_categories=2, hidden=(5,))
        >>> DisARM(num_particles=4).loss(vae.model, vae.guide, torch.ones(4, 6)) > 0
        True
    """

    @override
    def estimate(self, target: Target) -> Estimate:
        check_bits(target.layout.space.latents, "DisARM")
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
    arXiv 2106.08056: DisARM-IW). This is the leave-one-out estimator of two independent codes, with an importance
    weight for each latent that accounts for the coupling. In ascending order every pair of different categories can
    occur, so the estimator is unbiased, and no weight exceeds 2. The model's parameters get the mean gradient of log
    p(x, z) over both codes.

    With several latents, each has such a gradient, given the latents that the guide declares before it. The second code
    of a pair changes one latent; later ones are drawn again, from the same u. Pairs of different latents share their
    first codes, so M latents take 1 + M runs of the model, whose parameters get the mean gradient over all of them.
    Continuous latents are reparameterized, or scored where they cannot be.

    *Approximates* the ELBO of the discrete model. *With* 1 + M decoder calls for M discrete latents. *Requires* nothing
    more. *Bias*: none.

    Args:
        num_particles: P, the number of pairs per latent.

    Example:
        >>> from pyro_gvae.models.categorical_vae import CategoricalVAE
        >>> vae = CategoricalVAE(data_dim=6, num_latents=2, num_categories=3, hidden=(5,))
        >>> DisARMIW(num_particles=4).loss(vae.model, vae.guide, torch.ones(4, 6)) > 0
        True
    """

    @override
    def estimate(self, target: Target) -> Estimate:
        return coupled_estimate(target, self.num_particles)


@final
class CoupledGradient(SiteGradient):
    """The gradient of one latent from pairs of codes; the other latents may be treated in any way.

    Args:
        bits: the name, in error messages, of an estimator that requires K = 2; None accepts any K.
    """

    def __init__(self, bits: str | None = None) -> None:
        super().__init__()
        self.bits = bits

    @override
    def check(self, latent: Latent) -> None:
        if self.bits is not None:
            check_bits([latent], self.bits)

    @override
    def forward(self, rows: Rows, name: str) -> SiteEstimate:
        log_probs, codes = rows.base.q.sites[name].rows(), rows.base.codes[name]
        pair = partners(log_probs.detach().exp(), codes, rows.uniform(name))
        [other] = rows.costs_of(name, pair.second.unsqueeze(0))
        # Use the score of q itself, without scale and mask: f already has those.
        difference = ((codes - pair.second) * log_probs).sum(-1)  # (R, B, N)
        return SiteEstimate((0.5 * (rows.costs - other) * (pair.weights * difference).sum(-1)).sum())


def check_bits(latents: Iterable[Latent], name: str) -> None:
    """Refuse latents of more than two categories.

    Raises:
        ValueError: if K is not 2 for a latent.
    """
    for latent in latents:
        if latent.num_categories != 2:
            raise ValueError(
                f"Expected latents of K=2 categories, but found K={latent.num_categories} at '{latent.name}': "
                f"{name}'s antithetic codes are bits. Try disarm-iw, which takes any number of categories, or "
                "local-expectation."
            )


def coupled_estimate(target: Target, num_pairs: int) -> Estimate:
    """Return the mean of f over pairs of codes, and the surrogate of :class:`DisARMIW`."""
    base = target.drawn(num_pairs, by_uniform_noise(_codes_of))
    pairs = {name: couple(site.rows().detach().exp(), base.noise[name]) for name, site in base.q.sites.items()}
    others = [target.changed(base, Change(name, pair.second), _codes_of) for name, pair in pairs.items()]
    drawn = [base, *others]  # 1 + M
    codes = {name: torch.cat([one.codes[name] for one in drawn]) for name in base.codes}  # (P + P M, B, N, K)
    p = target.read({name: torch.cat([one.values[name] for one in drawn]) for name in base.values})
    rows = num_pairs, target.layout.batch_size
    log_joint = p.log_prob(codes).expand(num_pairs * len(drawn), -1).chunk(len(drawn))  # (P, B) each
    scored = list(zip(log_joint, drawn, strict=True))
    costs = [(log_p - one.q.log_prob(one.codes)).detach().expand(rows) for log_p, one in scored]  # f
    paths = [(log_p - one.q.log_prob(one.codes, one.without_path)).expand(rows) for log_p, one in scored]
    surrogate = torch.stack(paths).mean((0, 1)).sum() + base.score_function(costs[0])
    for (name, pair), other in zip(pairs.items(), costs[1:], strict=True):
        # Use the score of q itself, without scale and mask: f already has those.
        difference = ((base.codes[name] - pair.second) * base.q.sites[name].rows()).sum(-1)  # (P, B, N)
        score = 0.5 * (costs[0] - other) * (pair.weights * difference).sum(-1)  # (P, B)
        surrogate = surrogate + score.mean(0).sum()
    return Estimate(bound=torch.stack(costs).mean((0, 1)), surrogate=surrogate)


def couple(probs: Tensor, noise: Tensor) -> Pairs:
    """Return pairs of codes by the antithetic stick-breaking coupling of :class:`DisARMIW`.

    Args:
        probs: q_n(k), shape (..., N, K), without a gradient.
        noise: a uniform number for each flip, (P, ..., N, K).

    Returns:
        The pairs, and the importance weight of each latent.

    Example:
        >>> pairs = couple(torch.tensor([[[0.5, 0.5]]]), torch.rand(100, 1, 1, 2))  # always differ if q = 1/2
        >>> int((pairs.first * pairs.second).sum()), pairs.weights.unique()
        (0, tensor([0.5000]))
    """
    flips, order = _flips(probs)
    # The codes differ at the first flip that succeeds in either; before that, both fail with probability 1 - 2 p_i.
    both_fail = (1 - flips[..., :-2]).square() / (1 - 2 * flips[..., :-2])  # (..., N, K-2), where p_i <= 1/3
    one_fails = 1 - flips[..., :-1]  # (..., N, K-1), where p_i <= 1/2
    ratios = one_fails * torch.cat([torch.ones_like(one_fails[..., :1]), both_fail.cumprod(-1)], -1)
    first, second = _first_of(noise < flips), _first_of(1 - noise <= flips)
    apart = _first_of(first ^ second)[..., :-1]  # the first category of the two, if they differ
    return Pairs(_one_hot(first, order, noise), _one_hot(second, order, noise), (apart * ratios).sum(-1))


def partners(probs: Tensor, codes: Tensor, uniform: Tensor) -> Pairs:
    """Return pairs with given first codes (R, B, N, K): draw noise that produces these, and apply :func:`couple`."""
    flips, order = _flips(probs)
    flips = flips.expand_as(codes)
    succeeds = codes.gather(-1, order.expand_as(codes))
    fails = succeeds.cumsum(-1) == 0
    noise = torch.where(fails, flips + (1 - flips) * uniform, torch.where(succeeds > 0, flips * uniform, uniform))
    return couple(probs, noise)._replace(first=codes)


def _codes_of(log_probs: Tensor, noise: Tensor) -> Tensor:
    """Return the first codes of pairs, from the noise that both codes of a pair share."""
    flips, order = _flips(log_probs.detach().exp())
    return _one_hot(_first_of(noise < flips), order, noise)


def _flips(probs: Tensor) -> tuple[Tensor, Tensor]:
    """Return the probability p_i that each flip succeeds, and the ascending order of categories by probability."""
    probs, order = probs.sort(-1)
    return probs / probs.flip(-1).cumsum(-1).flip(-1), order  # the last is 1


def _one_hot(chosen: Tensor, order: Tensor, like: Tensor) -> Tensor:
    """Return codes (P, ..., N, K) in the program's order, from flags in ascending order of probability."""
    return torch.zeros_like(like).scatter_(-1, order.expand_as(like), chosen.to(like.dtype))


def _first_of(flags: Tensor) -> Tensor:
    """Keep only the first true entry along the last dimension."""
    return flags & (flags.cumsum(-1) == 1)
