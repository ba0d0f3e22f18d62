"""Score-function losses with several codes per datum, which share one decoder call and are each other's baselines.

Shapes: codes z_p (P, B, N, K), drawn from q(z | x); log w_p = log p(x, z_p) - log q(z_p | x), shape (P, B).
"""

import math
from typing import final

import torch
from torch import Tensor
from typing_extensions import override

from ..programs.shared import unscaled
from ..programs.target import Target
from .rows import Rows, SiteEstimate, SiteGradient
from .sampled import Estimate, SampledELBO


@final
class ReinforceLOO(SampledELBO):
    r"""REINFORCE with a leave-one-out baseline: for each code, the mean log-weight of the others.

    .. math::

        \nabla \approx \frac{1}{P} \sum_p \nabla \log p(x, z_p)
        + \frac{1}{P} \sum_p \Big(\log w_p - \frac{1}{P - 1} \sum_{j \ne p} \log w_j\Big) \nabla \log q(z_p | x)

    Given the codes, the first term is the exact gradient for the model's parameters. The gradient of -log q(z_p | x)
    has mean zero and is left out, as in stock `Trace_ELBO`. (Kool, van Hoof and Welling 2019, "Buy 4 REINFORCE samples,
    get a baseline for free!")

    *Approximates* the ELBO of the discrete model, mean_p log w_p. *With* P codes for each datum. *Requires* P >= 2.
    *Bias*: none.

    Args:
        num_particles: P, samples per datum.

    Example:
        >>> from pyro_gvae.models.categorical_vae import CategoricalVAE
        >>> vae = CategoricalVAE(data_dim=6, num_latents=2, num_categories=3, hidden=(5,))
        >>> ReinforceLOO(num_particles=4).loss(vae.model, vae.guide, torch.ones(4, 6)) > 0
        True
    """

    @override
    def estimate(self, target: Target) -> Estimate:
        draws = target.draw(self.num_particles)
        log_weights = (draws.log_joint - draws.log_q).detach()  # (P, B)
        paths = draws.log_joint if draws.pathwise is None else draws.log_joint - draws.pathwise
        surrogate = paths.mean(0).sum()
        for score in draws.scores:
            signal, log_q = draws.signal(log_weights, score)
            # log w_p minus the mean of the others is P / (P - 1) times log w_p minus the mean of all.
            advantages = (signal - signal.mean(0)) / (self.num_particles - 1)
            surrogate = surrogate + (advantages * log_q).sum()
        return Estimate(log_weights.mean(0), surrogate)


@final
class ScoreGradient(SiteGradient):
    """The score-function gradient of one latent; the mean cost of the other draws, if any, is the baseline."""

    @override
    def forward(self, rows: Rows, name: str) -> SiteEstimate:
        score = rows.base.q.sites[name].score(rows.base.codes)
        return SiteEstimate((rows.above_others(rows.costs) * score).sum())


@final
class VIMCO(SampledELBO):
    r"""The importance-weighted bound of P codes; the learning signal of a code is its contribution to the bound.

    .. math::

        L = \log \frac{1}{P} \sum_p w_p, \qquad
        \nabla \approx \sum_p (L - L_{-p}) \nabla \log q(z_p | x) + \sum_p \tilde w_p \nabla \log w_p,

    where :math:`\tilde w` are the normalized weights and :math:`L_{-p}` is the bound with the geometric mean of the
    other weights in place of :math:`w_p`. Weights are normalized within a datum, never over a batch. (Mnih and Rezende
    2016, "Variational Inference for Monte Carlo Objectives", arXiv 1602.06725; the bound: Burda et al. 2016, arXiv
    1509.00519.)

    *Approximates* log p(x) of the discrete model by its importance-weighted lower bound, which is tighter for larger P.
    *With* P codes for each datum and P^2 numbers for the baselines. *Requires* P >= 2 and one scale for all sites.
    *Bias*: none, as the gradient of that bound.

    Args:
        num_particles: P, samples per datum.

    Raises:
        ValueError: when called, if sites of one datum are scaled differently.

    Example:
        >>> from pyro_gvae.models.categorical_vae import CategoricalVAE
        >>> vae = CategoricalVAE(data_dim=6, num_latents=2, num_categories=3, hidden=(5,))
        >>> VIMCO(num_particles=5).loss(vae.model, vae.guide, torch.ones(4, 6)) > 0
        True
    """

    @override
    def estimate(self, target: Target) -> Estimate:
        draws = target.draw(self.num_particles)
        scale = draws.common_scale()
        difference = draws.together(draws.log_joint - draws.log_q)  # (P, B), or fewer where data share anything
        log_weights = unscaled(difference.detach(), scale)
        bound = _log_mean_exp(log_weights)
        signals = scale * (bound - _without_each(log_weights))
        pathwise = log_weights.softmax(0) * difference
        return Estimate(scale * bound, pathwise.sum() + (signals * draws.score_function()).sum())


@final
class OVIS(SampledELBO):
    r"""The importance-weighted bound of P codes, with the control variate that minimizes the variance for large P.

    .. math::

        L = \log \frac{1}{P} \sum_p w_p, \qquad
        \nabla \approx \sum_p \tilde w_p \nabla \log p(x, z_p)
        + \sum_p (L - \tilde w_p - c_p) \nabla \log q(z_p | x), \qquad
        c_p = \log \frac{1}{P - 1} \sum_{j \ne p} w_j - \gamma \tilde w_p + (1 - \gamma) \log \Big(1 - \frac{1}{P}\Big)

    where :math:`\tilde w` are the normalized weights. With gamma = 0, which is best if one weight dominates, the
    control variate depends on the other codes alone. With gamma = 1, which is best if weights are equal, it contains
    the weight of its own code, and the guide's gradient tends to that of the inclusive KL. (Liévin et al. 2020,
    "Optimal Variance Control of the Score Function Gradient Estimator for Importance Weighted Bounds", arXiv
    2008.01998, equation 17.)

    *Approximates* log p(x) of the discrete model by its importance-weighted lower bound. *With* P codes for each datum
    and P^2 numbers for the control variates. *Requires* P >= 2 and one scale for all sites. *Bias*: none with gamma =
    0, as the gradient of that bound; otherwise in the guide's gradient.

    Args:
        num_particles: P, samples per datum.
        gamma: a number between 0 and 1.

    Raises:
        ValueError: when called, if sites of one datum are scaled differently.

    Example:
        >>> from pyro_gvae.models.categorical_vae import CategoricalVAE
        >>> vae = CategoricalVAE(data_dim=6, num_latents=2, num_categories=3, hidden=(5,))
        >>> OVIS(num_particles=5).loss(vae.model, vae.guide, torch.ones(4, 6)) > 0
        True
    """

    def __init__(self, *, num_particles: int = 5, gamma: float = 0.0) -> None:
        super().__init__(num_particles=num_particles)
        self.gamma = gamma

    @override
    def estimate(self, target: Target) -> Estimate:
        draws = target.draw(self.num_particles)
        scale = draws.common_scale()
        difference = draws.together(draws.log_joint - draws.log_q)  # (P, B), or fewer where data share anything
        log_weights = unscaled(difference.detach(), scale)
        bound, weights = _log_mean_exp(log_weights), log_weights.softmax(0)
        signals = scale * (bound - _of_the_others(log_weights))
        # The part of the signal that remains if all weights are equal multiplies log q with its scale and mask, so that
        # masked data have no gradient.
        own = self.gamma * weights - (1 - self.gamma) * math.log1p(-1 / self.num_particles)
        scored = draws.together(draws.log_q if draws.pathwise is None else draws.log_q - draws.pathwise)
        surrogate = (weights * difference + own * scored).sum() + (signals * draws.score_function()).sum()
        return Estimate(scale * bound, surrogate)


@final
class ReweightedWakeSleep(SampledELBO):
    r"""Train the model on log p(x) and the guide on the inclusive KL, with the same weighted codes.

    .. math::

        \nabla_\theta \approx \sum_p \tilde w_p \nabla \log p(x, z_p), \qquad
        \nabla_\phi \approx \sum_p \tilde w_p \nabla \log q(z_p | x),

    with weights :math:`\tilde w_p = w_p / \sum_j w_j` normalized within each datum. (Stock
    `pyro.infer.ReweightedWakeSleep` normalizes them over the whole batch, Pyro issue 3104.) The guide minimizes KL(p(z
    | x) || q(z | x)), which is its wake phase; there is no sleep phase. (Bornschein and Bengio 2015, "Reweighted
    Wake-Sleep", arXiv 1406.2751.)

    *Approximates* log p(x) of the discrete model and, for the guide, the inclusive KL. *With* P codes for each datum.
    *Requires* P >= 2, one scale for all sites, and a guide that shares no parameters with the model. *Bias*: that of
    normalized weights, which is of order 1/P. The loss is minus the importance-weighted bound, which is below log p(x);
    the guide's gradient is not the gradient of this loss.

    Args:
        num_particles: P, samples per datum.

    Raises:
        ValueError: when called, if sites of one datum are scaled differently.

    Example:
        >>> from pyro_gvae.models.categorical_vae import CategoricalVAE
        >>> vae = CategoricalVAE(data_dim=6, num_latents=2, num_categories=3, hidden=(5,))
        >>> ReweightedWakeSleep(num_particles=5).loss(vae.model, vae.guide, torch.ones(4, 6)) > 0
        True
    """

    @override
    def estimate(self, target: Target) -> Estimate:
        draws = target.draw(self.num_particles, pathwise=False)
        scale = draws.common_scale()
        log_joint, log_q = draws.together(draws.log_joint), draws.together(draws.log_q)  # (P, B)
        log_weights = unscaled((log_joint - log_q).detach(), scale)
        surrogate = log_weights.softmax(0) * (log_joint + log_q)
        return Estimate(scale * _log_mean_exp(log_weights), surrogate.sum())


def _log_mean_exp(log_weights: Tensor) -> Tensor:
    """Compute the log of the mean of exp over particles: (P, ..., B) -> (..., B)."""
    return torch.logsumexp(log_weights, 0) - math.log(len(log_weights))


def _of_the_others(log_weights: Tensor) -> Tensor:
    """Compute the log of the mean of the other weights, for each: (P, B) -> (P, B)."""
    num_particles = len(log_weights)
    is_own = torch.eye(num_particles, dtype=torch.bool, device=log_weights.device).unsqueeze(-1)  # (P, P, 1)
    others = log_weights.unsqueeze(1).expand(-1, num_particles, -1)  # (P, left out, B)
    return others.masked_fill(is_own, -math.inf).logsumexp(0) - math.log(num_particles - 1)


def _without_each(log_weights: Tensor) -> Tensor:
    """Compute the bounds in which each weight is replaced by the geometric mean of the others: (P, B) -> (P, B).

    No weight is subtracted from a sum, because that would lose small weights next to a large one.
    """
    num_particles = len(log_weights)
    is_own = torch.eye(num_particles, dtype=torch.bool, device=log_weights.device).unsqueeze(-1)  # (P, P, 1)
    others = log_weights.unsqueeze(1).expand(-1, num_particles, -1)  # (P, left out, B)
    means = others.masked_fill(is_own, 0.0).sum(0) / (num_particles - 1)  # (left out, B)
    return _log_mean_exp(torch.where(is_own, means, others))
