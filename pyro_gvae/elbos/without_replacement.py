"""Score-function losses with several different joint codes per datum, drawn without replacement.

Shapes: the weights of P different codes s are (P, cells), where a cell is a datum, or the data that share a latent.
"""

from typing import final

from torch import Tensor
from typing_extensions import override

from ..distributions.without_replacement import inclusion_weights, set_weights
from ..programs.target import Target
from ..programs.without_replacement import Distinct
from .sampled import Estimate, SampledELBO


@final
class UnorderedSet(SampledELBO):
    r"""The ELBO's gradient from a set of P different joint codes, averaged over the orders of drawing them.

    .. math::

        \nabla \approx \sum_{s \in S} q(s) R(S, s) \Big(\nabla \log p(x, s)
        + \Big(f(s) - \sum_{s' \in S} q(s') R(S, s, s') f(s')\Big) \nabla \log q(s | x)\Big)

    with f(s) = log p(x, s) - log q(s | x). The leave-one-out ratio R(S, s) is the probability of the other codes of the
    set, drawn from all codes but s, over that of the set; R(S, s, s') is the same without s, and R(S, s, s) = 1: see
    :func:`~pyro_gvae.distributions.without_replacement.set_weights`. The estimate is the mean of the estimate of the
    first code over all orders in which the set may have been drawn, with a baseline from the other codes. (Kool, van
    Hoof and Welling 2020, arXiv 2002.06043.)

    A joint code comprises all digits that depend on each other: those of all discrete latents of a datum, or of all
    data that share a latent. Continuous latents that depend on no code are drawn once for all codes of the set.

    *Approximates* the ELBO of the discrete model. *With* P different codes for each datum, drawn digit by digit by
    stochastic beam search, and M + 1 runs of the guide where M latents depend on each other. *Requires* P >= 2. *Bias*:
    none; exact if there are not more than P codes and nothing is continuous.

    Args:
        num_particles: P, different codes per datum.

    Example:
        >>> import torch
        >>> from pyro_gvae.models.categorical_vae import CategoricalVAE
        >>> vae = CategoricalVAE(data_dim=6, num_latents=2, num_categories=3, hidden=(5,))
        >>> UnorderedSet(num_particles=4).loss(vae.model, vae.guide, torch.ones(4, 6)) > 0
        True
    """

    @override
    def estimate(self, target: Target) -> Estimate:
        drawn = target.draw_distinct(self.num_particles)
        first, second = set_weights(drawn.log_probs, is_complete=drawn.threshold is None)
        costs = drawn.together(drawn.costs)  # (P, cells)
        baselines = (second * costs).sum(1)
        return _estimate(drawn, first, first * (costs - baselines))


@final
class ReinforceWOR(SampledELBO):
    r"""REINFORCE with P different joint codes, weighted by their inverse inclusion probabilities.

    With the weights :math:`w_s = q(s) / P(s \text{ is drawn} | \kappa)` of
    :func:`~pyro_gvae.distributions.without_replacement.inclusion_weights`,

    .. math::

        \nabla \approx \sum_s w_s \nabla \log p(x, s)
        + \sum_s w_s \Big((1 - q(s) + w_s) f(s) - \sum_{s'} w_{s'} f(s')\Big) \nabla \log q(s | x)

    with f(s) = log p(x, s) - log q(s | x). The factor of f(s) corrects for the baseline, which contains f(s) too.
    (Kool, van Hoof and Welling 2019, "Buy 4 REINFORCE samples, get a baseline for free!", equation 10; the draws: arXiv
    1903.06059.) Joint codes and continuous latents are as in :class:`UnorderedSet`.

    *Approximates* the ELBO of the discrete model. *With* P different codes for each datum, and one more for the
    threshold, drawn by stochastic beam search. *Requires* P >= 2; the variance is finite from P = 4, since weights
    above t have a probability of order t^-(P+1). *Bias*: none; exact if there are not more than P codes and nothing is
    continuous.

    Args:
        num_particles: P, different codes per datum.

    Example:
        >>> import torch
        >>> from pyro_gvae.models.categorical_vae import CategoricalVAE
        >>> vae = CategoricalVAE(data_dim=6, num_latents=2, num_categories=3, hidden=(5,))
        >>> ReinforceWOR(num_particles=9).loss(vae.model, vae.guide, torch.ones(4, 6)) > 0
        True
    """

    @override
    def estimate(self, target: Target) -> Estimate:
        drawn = target.draw_distinct(self.num_particles)
        weights, costs = inclusion_weights(drawn.log_probs, drawn.threshold), drawn.together(drawn.costs)  # (P, cells)
        baseline = (weights * costs).sum(0)
        own = 1 - drawn.log_probs.exp() + weights
        return _estimate(drawn, weights, weights * (own * costs - baseline))


@final
class NormalizedReinforceWOR(SampledELBO):
    r""":class:`ReinforceWOR` with normalized weights, which have less variance and a bias.

    With w_s as in :class:`ReinforceWOR`, their sum W, and :math:`W_s = W - w_s + q(s)`,

    .. math::

        \nabla \approx \sum_s \frac{w_s}{W} \nabla \log p(x, s)
        + \sum_s \frac{w_s}{W_s} \Big(f(s) - \sum_{s'} \frac{w_{s'}}{W} f(s')\Big) \nabla \log q(s | x).

    (The same paper, equation 11.)

    *Approximates* the ELBO of the discrete model. *With* and *Requires*: as :class:`ReinforceWOR`. *Bias*: that of
    normalized weights, of order 1/P.

    Args:
        num_particles: P, different codes per datum.

    Example:
        >>> import torch
        >>> from pyro_gvae.models.categorical_vae import CategoricalVAE
        >>> vae = CategoricalVAE(data_dim=6, num_latents=2, num_categories=3, hidden=(5,))
        >>> NormalizedReinforceWOR(num_particles=4).loss(vae.model, vae.guide, torch.ones(4, 6)) > 0
        True
    """

    @override
    def estimate(self, target: Target) -> Estimate:
        drawn = target.draw_distinct(self.num_particles)
        weights, costs = inclusion_weights(drawn.log_probs, drawn.threshold), drawn.together(drawn.costs)  # (P, cells)
        total = weights.sum(0)
        normalized = weights / total
        with_own = weights / (total - weights + drawn.log_probs.exp())
        return _estimate(drawn, normalized, with_own * (costs - (normalized * costs).sum(0)))


def _estimate(drawn: Distinct, weights: Tensor, signals: Tensor) -> Estimate:
    """Return weighted means over codes, and the surrogate of their gradient.

    Args:
        drawn: P codes.
        weights: the weight of each code, (P, cells); weighted sums estimate means.
        signals: the factor of each code's score, (P, cells).
    """
    of_data = drawn.spread(weights)  # (P, B)
    weighed = of_data * drawn.costs
    surrogate = (of_data * drawn.paths).sum() + (signals * drawn.score).sum()
    for score in drawn.others:
        surrogate = surrogate + (drawn.signal(weighed, score) * score.of_each()).sum()
    return Estimate(weighed.sum(0), surrogate)
