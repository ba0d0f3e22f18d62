"""Double control variates: a leave-one-out baseline, applied to costs minus their Taylor expansions.

Shapes: codes b_p (P, B, N, K) of a latent, drawn from q; costs f(b_p) = log p(x, b_p) - log q(b_p | x), (P, B).
"""

from typing import final

import torch
from torch import Tensor, nn
from typing_extensions import override

from ..programs.latents import Latent
from ..programs.noise import independent
from ..programs.samples import Sample
from ..programs.target import Target
from .control_variates import check_relaxable
from .own import fit_to, take_types_and_width
from .rows import Rows, SiteEstimate, SiteGradient
from .sampled import Estimate, SampledELBO


@final
class Scale(nn.Module):
    """The learned scale alpha of the expansions; its best value is 1 if the costs are linear in the codes."""

    def __init__(self) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.tensor(1.0))
        self.register_load_state_dict_pre_hook(take_types_and_width)


@final
class DoubleCV(SampledELBO):
    r"""REINFORCE with a leave-one-out baseline and a second control variate, a Taylor expansion of the cost.

    Let :math:`g_p` be the mean of :math:`\nabla_b f(b_j)` over the other codes, :math:`j \ne p`, and :math:`c_p =
    g_p \cdot (b_p - \pi)` the expansion around the probabilities :math:`\pi` of q. With :math:`h_p = f(b_p) - \alpha
    c_p`,

    .. math::

        \nabla \approx \frac{1}{P} \sum_p \nabla \log p(x, b_p)
        + \frac{1}{P} \sum_p \Big(\Big(h_p - \frac{1}{P - 1} \sum_{j \ne p} h_j\Big) \nabla \log q(b_p | x)
        + \alpha \, g_p \cdot \nabla \pi\Big).

    The last term is the mean of what was subtracted: :math:`g_p` does not depend on :math:`b_p`. (Titsias and Shi 2021,
    "Double Control Variates for Gradient Estimation in Discrete Latent Variable Models", arXiv 2111.05300, for bits.
    The same holds for one-hots of any K.) With several latents, the expansion is a sum over all of them, each around
    its probabilities given the latents before it; the derivative of f ignores that later latents of the guide depend on
    a code.

    :math:`\alpha` is learned; gradients are unbiased for any value. As in :class:`~.control_variates.REBAR`, its loss
    is log(S + R), where S is the squared norm of the gradient with respect to the logits and R is the same for
    :math:`\alpha = 0`, which is `reinforce-loo`.

    *Approximates* the ELBO of the discrete model. *With* P codes in one decoder call, which is differentiated with
    respect to the codes too. *Requires* P >= 2, one-hots or bits, and networks that are differentiable in their codes.
    *Bias*: none.

    Args:
        num_particles: P, samples per datum.

    Attributes:
        own: a module with the parameter `alpha`, initially 1.

    Example:
        >>> from pyro_gvae.models.categorical_vae import CategoricalVAE
        >>> vae = CategoricalVAE(data_dim=6, num_latents=4, num_categories=2, hidden=(5,))
        >>> DoubleCV(num_particles=4).loss(vae.model, vae.guide, torch.ones(4, 6)) > 0
        True
    """

    own: Scale

    def __init__(self, *, num_particles: int = 4) -> None:
        super().__init__(num_particles=num_particles)
        self.own = Scale()

    @override
    def estimate(self, target: Target) -> Estimate:
        check_relaxable(target.layout.space.latents)
        fit_to(self.own, target.layout)
        num_codes, alpha = self.num_particles, self.own.alpha
        base = target.drawn(num_codes, independent)
        rows = num_codes, target.layout.batch_size
        soft = {name: codes.detach().requires_grad_() for name, codes in base.codes.items()}
        log_joint = target.read_codes(base, soft).log_prob(soft).expand(rows)  # (P, B)
        costs = (log_joint - base.q.log_prob(base.codes)).detach()  # f
        slopes = _slopes(log_joint, base, soft)
        paths = log_joint - base.q.log_prob(base.codes, base.without_path)
        others = {name: (slope.sum(0) - slope) / (num_codes - 1) for name, slope in slopes.items()}  # g_p
        expansions = torch.zeros_like(costs)
        for name, site in base.q.sites.items():
            expansions = expansions + (others[name] * (base.codes[name] - site.rows().detach().exp())).sum((-2, -1))
        plain, expanded = _advantages(costs), _advantages(expansions)  # (P, B)
        surrogate = paths.mean(0).sum() + base.score_function(costs)
        squares = costs.new_zeros(())
        for name, site in base.q.sites.items():
            log_probs, codes, slope = site.rows(), base.codes[name], others[name] / num_codes
            own_scale = alpha.detach()
            weight = (plain - own_scale * expanded)[..., None, None] * codes  # (P, B, N, K)
            surrogate = surrogate + (weight * log_probs).sum() + own_scale * (slope * log_probs.exp()).sum()
            # The same gradients with respect to the logits: the part without alpha, and the part that alpha multiplies.
            probs = log_probs.detach().exp()
            without = site.by_cell(plain[..., None, None] * (codes - probs)).sum(0)
            mean = probs * (slope - (probs * slope).sum(-1, keepdim=True))
            variate = site.by_cell(expanded[..., None, None] * (codes - probs) - mean).sum(0)
            squares = squares + (without - alpha * variate).square().sum() + without.square().sum()  # S + R
        own_loss = squares.clamp_min(torch.finfo(squares.dtype).tiny).log() if soft else None
        return Estimate(costs.mean(0), surrogate, own_loss)


@final
class DoubleCVGradient(SiteGradient):
    """The gradient of one latent by double control variates; the other latents may be treated in any way."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = Scale()

    @override
    def check(self, latent: Latent) -> None:
        check_relaxable([latent])

    @override
    def forward(self, rows: Rows, name: str) -> SiteEstimate:
        fit_to(self.scale, rows.target.layout)
        base, site = rows.base, rows.base.q.sites[name]
        codes, log_probs = base.codes[name], site.rows()
        probs = log_probs.detach().exp()
        own = self._slopes(rows, name)
        slope = own - rows.above_others(own)  # the mean of the others: g_p
        expanded = (slope * (codes - probs)).sum((-2, -1))
        plain, expanded = rows.above_others(rows.costs), rows.above_others(expanded)  # (R, B)
        alpha = self.scale.alpha
        weight = (plain - alpha.detach() * expanded)[..., None, None] * codes
        surrogate = (weight * log_probs).sum() + alpha.detach() * (slope * log_probs.exp()).sum()
        without = rows.by_cell(name, plain[..., None, None] * (codes - probs))
        mean = probs * (slope - (probs * slope).sum(-1, keepdim=True))
        variate = rows.by_cell(name, expanded[..., None, None] * (codes - probs) - mean)
        squares = (without - alpha * variate).square().sum() + without.square().sum()
        return SiteEstimate(surrogate, squares.clamp_min(torch.finfo(squares.dtype).tiny).log())

    @staticmethod
    def _slopes(rows: Rows, name: str) -> Tensor:
        """Return the derivative of each row's cost with respect to the codes (R, B, N, K) of a latent."""
        base, site = rows.base, rows.base.q.sites[name]
        soft = base.codes[name].detach().requires_grad_()
        codes = base.codes | {name: soft}
        log_p = rows.target.read_codes(base, codes).log_prob(codes)
        log_probs = site.rows().detach()
        slope = -site.weight[..., None, None] * log_probs
        if log_p.requires_grad:
            [found] = torch.autograd.grad(log_p.sum(), soft, allow_unused=True, materialize_grads=True)
            slope = slope + found
        return rows.weights(base).detach()[..., None, None] * slope.masked_fill(log_probs.exp() == 0, 0.0)


def _advantages(costs: Tensor) -> Tensor:
    """Subtract from each of P costs the mean of the others, and divide by P."""
    return (costs - costs.mean(0)) / (len(costs) - 1)


def _slopes(log_joint: Tensor, base: Sample, soft: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the derivative of log p - log q in the codes (P, B, N, K) of each latent, 0 for impossible categories."""
    if log_joint.requires_grad and soft:
        found = torch.autograd.grad(
            log_joint.sum(), list(soft.values()), retain_graph=True, allow_unused=True, materialize_grads=True
        )
    else:
        found = tuple(map(torch.zeros_like, soft.values()))
    slopes = {}
    for (name, site), slope in zip(base.q.sites.items(), found, strict=True):
        log_probs = site.rows().detach()
        own = site.weight[..., None, None] * log_probs
        slopes[name] = (slope - own).masked_fill(log_probs.exp() == 0, 0.0)
    return slopes
