"""DAPS: train the guide by weighted maximum likelihood, with weights held to a target effective number of codes."""

from typing import final

import torch
from torch import Tensor, nn
from typing_extensions import override

from ..programs.shared import unscaled
from ..programs.target import Target
from .own import fit_to, take_types_and_width
from .sampled import Estimate, SampledELBO


@final
class TrustRegion(nn.Module):
    """The learned multiplier eta of the trust region; the larger it is, the more even are the weights."""

    def __init__(self) -> None:
        super().__init__()
        self.log_eta = nn.Parameter(torch.tensor(0.0))
        self.register_load_state_dict_pre_hook(take_types_and_width)


@final
class DAPS(SampledELBO):
    r"""The ELBO of P codes for the model, and the weighted likelihood of the same codes for the guide.

    The guide is moved towards

    .. math:: q^* \propto \exp((\log p(x, z) + \eta \log q(z | x)) / (\eta + \beta)),

    which maximizes :math:`E_{q^*} \log p(x, z) + \beta H(q^*)` in a trust region KL(q* || q) around q:

    .. math::

        \nabla_\theta \approx \frac{1}{P} \sum_p \nabla \log p(x, z_p), \qquad
        \nabla_\phi \approx \sum_p \tilde w_p \nabla \log q(z_p | x), \qquad
        \tilde w_p \propto \exp \frac{\log p(x, z_p) - \beta \log q(z_p | x)}{\eta + \beta}

    with weights normalized for each datum. A single :math:`\eta` for all data is learned by minimizing the squared
    difference between the mean effective number of codes :math:`1 / \sum_p \tilde w_p^2` and its target. For
    :math:`\eta = 0` and :math:`\beta = 1` these are the weights of :class:`~.score.ReweightedWakeSleep`. (Drolet et al.
    2025, "Discrete Variational Autoencoding via Policy Search", arXiv 2509.24716, whose encoder may be autoregressive;
    with log p(x, z) in place of log p(x | z), which is the same for the uniform prior of the paper.)

    *Approximates* the ELBO of the discrete model. *With* P codes for each datum in one decoder call. *Requires* P >= 2,
    one scale for all sites, and a guide that shares no parameters with the model. *Bias*: none in the loss; the guide's
    gradient is not the gradient of this loss.

    Args:
        num_particles: P, samples per datum.
        target: the target effective number of codes, as a share of P, in (1 / P, 1).
        beta: the weight of the entropy, at least 0.

    Attributes:
        own: a module with the parameter `log_eta`, initially 0.

    Raises:
        ValueError: when called, if sites of one datum are scaled differently.

    Example:
        >>> from pyro_gvae.models.categorical_vae import CategoricalVAE
        >>> vae = CategoricalVAE(data_dim=6, num_latents=2, num_categories=3, hidden=(5,))
        >>> DAPS(num_particles=5).loss(vae.model, vae.guide, torch.ones(4, 6)) > 0
        True
    """

    own: TrustRegion

    def __init__(self, *, num_particles: int = 8, target: float = 0.5, beta: float = 1.0) -> None:
        super().__init__(num_particles=num_particles)
        self.target = target
        self.beta = beta
        self.own = TrustRegion()

    @override
    def estimate(self, target: Target) -> Estimate:
        fit_to(self.own, target.layout)
        draws = target.draw(self.num_particles, pathwise=False)
        scale = draws.common_scale()
        log_joint, log_q = draws.together(draws.log_joint), draws.together(draws.log_q)  # (P, B)
        advantages = unscaled((log_joint - self.beta * log_q).detach(), scale)
        weights = _weights(advantages, self.own.log_eta.exp() + self.beta)
        effective = (1 / weights.square().sum(0)).mean()
        surrogate = log_joint.mean(0).sum() + (weights.detach() * log_q).sum()
        own_loss = (effective - self.target * self.num_particles).square()
        return Estimate((log_joint - log_q).detach().mean(0), surrogate, own_loss)


def _weights(advantages: Tensor, temperature: Tensor) -> Tensor:
    """Return normalized weights (P, B)."""
    return (advantages / temperature).softmax(0)
