"""The thermodynamic variational objective: log p(x) as an integral from the guide to the posterior."""

from typing import final

from typing_extensions import override

from ..programs.shared import unscaled
from ..programs.target import Target
from .sampled import Estimate, SampledELBO


@final
class ThermodynamicObjective(SampledELBO):
    r"""The left Riemann sum of the integral over temperatures that equals log p(x), from P codes.

    With log w_p = log p(x, z_p) - log q(z_p | x) and :math:`\pi_\beta \propto q w^\beta`, log p(x) is the integral of
    :math:`E_{\pi_\beta} \log w` over beta from 0 to 1, and this integrand does not decrease with beta. So

    .. math:: T = \sum_{k=0}^{J-1} (\beta_{k+1} - \beta_k) E_{\pi_{\beta_k}} \log w \le \log p(x)

    is a lower bound, which for J = 1 is the ELBO; :math:`\beta_0 = 0`, and the others are evenly spaced on a log scale
    from :math:`\beta_1` to 1. Expectations are estimated with the weights :math:`\bar w_p = w_p^\beta / \sum_j
    w_j^\beta` of the same P codes, and their gradients by

    .. math::

        \sum_p \bar w_p \nabla \log w_p + \frac{P}{P - 1} \sum_p \bar w_p \Big(\log w_p - \sum_j \bar w_j \log w_j\Big)
        \nabla \log \pi_\beta(z_p), \quad \log \pi_\beta = \beta \log p(x, z) + (1 - \beta) \log q(z | x),

    a covariance, so no gradient through the sampling is needed. (Masrani, Le and Wood 2019, "The Thermodynamic
    Variational Objective", arXiv 1907.00031, equations 11 to 13.) The first term's gradient of -log q is left out at
    beta = 0, where its mean is zero.

    *Approximates* the left Riemann sum, a bound of log p(x) of the discrete model. *With* P codes for each datum in one
    decoder call. *Requires* P >= 2, and one scale for all sites. *Bias*: that of normalized weights, of order 1/P.

    Args:
        num_particles: P, samples per datum.
        num_partitions: J >= 1, parts of the integral.
        first: beta_1, in (0, 1]; not used if J is 1.

    Raises:
        ValueError: when called, if sites of one datum are scaled differently.

    Example:
        >>> import torch
        >>> from pyro_gvae.models.categorical_vae import CategoricalVAE
        >>> vae = CategoricalVAE(data_dim=6, num_latents=2, num_categories=3, hidden=(5,))
        >>> ThermodynamicObjective(num_particles=5).loss(vae.model, vae.guide, torch.ones(4, 6)) > 0
        True
    """

    def __init__(self, *, num_particles: int = 5, num_partitions: int = 2, first: float = 0.05) -> None:
        super().__init__(num_particles=num_particles)
        self.betas = partition(num_partitions, first)

    @override
    def estimate(self, target: Target) -> Estimate:
        draws = target.draw(self.num_particles, pathwise=False)
        scale = draws.common_scale()
        log_joint, log_q = (unscaled(draws.together(one), scale) for one in (draws.log_joint, draws.log_q))  # (P, B)
        log_weights = (log_joint - log_q).detach()
        betas = log_weights.new_tensor(self.betas)
        widths = betas.diff()  # (J,)
        of_each = (betas[:-1, None, None] * log_weights).softmax(1)  # (J, P, B)
        means = (of_each * log_weights).sum(1)  # (J, B)
        covariances = self.num_particles / (self.num_particles - 1) * of_each * (log_weights - means.unsqueeze(1))
        weights = widths[:, None, None] * of_each
        signals = widths[:, None, None] * covariances
        heated = betas[:-1, None, None]
        for_joint = (weights + heated * signals).sum(0)  # (P, B)
        for_q = ((1 - heated) * signals - weights.where(heated > 0, 0.0)).sum(0)
        surrogate = scale * (for_joint * log_joint + for_q * log_q)
        return Estimate(scale * (widths.unsqueeze(-1) * means).sum(0), surrogate.sum())


def partition(num_partitions: int, first: float) -> tuple[float, ...]:
    """Return 0, and J numbers from the first to 1 that are evenly spaced on a log scale.

    Raises:
        ValueError: if there are no parts, or the first is not in (0, 1].

    Example:
        >>> partition(1, 0.05), partition(3, 0.01)
        ((0.0, 1.0), (0.0, 0.01, 0.1, 1.0))
    """
    if num_partitions < 1:
        raise ValueError(f"Expected at least one part of the integral, but found num_partitions={num_partitions}.")
    if not 0 < first <= 1:
        raise ValueError(f"Expected the first beta to be in (0, 1], but found first={first}. Try 0.05.")
    steps = num_partitions - 1
    return 0.0, *(round(first ** (1 - k / steps), 12) for k in range(steps)), 1.0
