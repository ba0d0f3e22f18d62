"""ARMS: P binary codes, coupled so that they differ as much as possible; each is a baseline for the others."""

from typing import final

import torch
from torch import Tensor
from typing_extensions import override

from ..programs.latents import Latent
from ..programs.noise import by_uniform_noise
from ..programs.samples import Change
from ..programs.site import Site
from ..programs.target import Target
from .coupled import check_bits
from .rows import Rows, SiteEstimate, SiteGradient
from .sampled import Estimate, SampledELBO


@final
class ARMS(SampledELBO):
    r"""The ELBO's gradient from P antithetic binary codes.

    For each bit, P uniform numbers :math:`u_i = (1 - d_i)^{P - 1}` are drawn, where d is a draw from a flat Dirichlet
    distribution. They are as negatively correlated as P uniform numbers can be. Let s be the probability of the rarer
    value; code i has this value where :math:`u_i < s`. The leave-one-out gradient of such codes is too small by a
    factor of one minus their correlation, so

    .. math::

        g_n = \frac{1}{1 - \rho_n} \frac{1}{P - 1} \sum_i (f(z_i) - \bar f) \nabla \log q_n(z_{in}), \quad
        \frac{1}{1 - \rho_n} = \frac{1 - s}{1 - \max(0, 2 - s^{-1/(P - 1)})^{P - 1}}

    with f(z) = log p(x, z) - log q(z | x) is unbiased. For P = 2 this is :class:`~.coupled.DisARM`. (Dimitriev and Zhou
    2021, "ARMS: Antithetic-REINFORCE-Multi-Sample gradient for binary variables", arXiv 2105.14141, with the Dirichlet
    copula.)

    With several latents, each has such a gradient, given the latents that the guide declares before it: the other P - 1
    codes change this latent, and later latents are drawn again with the noise of the first code. The model's parameters
    get the mean gradient of log p(x, z) over all codes. Continuous latents are reparameterized, or scored where they
    cannot be.

    *Approximates* the ELBO of the discrete model. *With* 1 + M (P - 1) decoded codes for M discrete latents.
    *Requires* K = 2 for each, and P >= 2. *Bias*: none.

    Args:
        num_particles: P, the number of coupled codes per latent.

    Raises:
        ValueError: when called, if K is not 2 for a latent.

    Example:
        >>> from pyro_gvae.models.categorical_vae import CategoricalVAE
        >>> vae = CategoricalVAE(data_dim=6, num_latents=4, num_categories=2, hidden=(5,))
        >>> ARMS(num_particles=4).loss(vae.model, vae.guide, torch.ones(4, 6)) > 0
        True
    """

    @override
    def estimate(self, target: Target) -> Estimate:
        check_bits(target.layout.space.latents, "ARMS")
        num_others = self.num_particles - 1
        base = target.drawn(1, by_uniform_noise(_codes_of))
        first = torch.zeros(num_others, dtype=torch.long, device=target.layout.device)  # the row of the others
        others = {
            name: target.changed(base, Change(name, _others(site, base.noise[name], num_others), first), _codes_of)
            for name, site in base.q.sites.items()
        }
        drawn = [base, *others.values()]
        sizes = [1, *(num_others for _ in others)]
        codes = {name: torch.cat([one.codes[name] for one in drawn]) for name in base.codes}  # (1 + M (P - 1), ..)
        p = target.read({name: torch.cat([one.values[name] for one in drawn]) for name in base.values})
        log_joint = p.log_prob(codes).expand(sum(sizes), target.layout.batch_size).split(sizes)
        costs = [(log_p - one.q.log_prob(one.codes)).detach() for log_p, one in zip(log_joint, drawn, strict=True)]
        paths = [
            log_p - one.q.log_prob(one.codes, one.without_path) for log_p, one in zip(log_joint, drawn, strict=True)
        ]
        surrogate = torch.cat(paths).mean(0).sum() + base.score_function(costs[0])
        for (name, other), own in zip(others.items(), costs[1:], strict=True):
            site = base.q.sites[name]
            values = torch.cat([costs[0], own])  # (P, B)
            # Use the score of q itself, without scale and mask: f already has those.
            log_q = (torch.cat([base.codes[name], other.codes[name]]) * site.rows()).sum(-1)  # (P, B, N)
            scores = (_corrections(site.rows().detach().exp(), self.num_particles) * log_q).sum(-1)  # (P, B)
            surrogate = surrogate + ((values - values.mean(0)) / num_others * scores).sum()
        return Estimate(torch.cat(costs).mean(0), surrogate)


@final
class ARMSGradient(SiteGradient):
    """The gradient of one latent from several coupled codes; the other latents may be treated in any way.

    Args:
        num_codes: P, the number of coupled codes per draw.
    """

    def __init__(self, num_codes: int) -> None:
        super().__init__()
        self.num_codes = num_codes

    @override
    def check(self, latent: Latent) -> None:
        check_bits([latent], "ARMS")

    @override
    def forward(self, rows: Rows, name: str) -> SiteEstimate:
        log_probs, codes, count = rows.base.q.sites[name].rows(), rows.base.codes[name], self.num_codes - 1
        probs = log_probs.detach().exp()
        rarer, uniform = probs.amin(-1), rows.uniform(name)[..., 0]
        is_rarer = (codes * _codes_of(log_probs, torch.zeros_like(codes))).sum(-1) > 0
        first = torch.where(is_rarer, rarer * uniform, rarer + (1 - rarer) * uniform)  # (R, B, N)
        left = first ** (1 / count)  # 1 - d of the first
        uniforms = torch.stack([rows.uniform(name)[..., 0] for _ in range(count)])
        parts = -uniforms.clamp_min(torch.finfo(codes.dtype).tiny).log()
        numbers = (1 - left * parts / parts.sum(0)) ** count
        others = _codes_of(log_probs, numbers.unsqueeze(-1))  # (P - 1, R, B, N, 2)
        costs = torch.cat([rows.costs.unsqueeze(0), rows.costs_of(name, others)])  # (P, R, B)
        log_q = (torch.cat([codes.unsqueeze(0), others]) * log_probs).sum(-1)
        scores = (_corrections(probs, self.num_codes) * log_q).sum(-1)
        return SiteEstimate(((costs - costs.mean(0)) / count * scores).sum())


def _codes_of(log_probs: Tensor, noise: Tensor) -> Tensor:
    """Return codes (..., N, 2): the rarer value where the first number of the noise is below its probability."""
    probs = log_probs.detach().exp()
    rarer = (probs[..., 1:] < 0.5).to(probs.dtype)  # whether it is the second
    is_rarer = (noise[..., :1] < probs.amin(-1, keepdim=True)).to(probs.dtype)
    second = is_rarer * rarer + (1 - is_rarer) * (1 - rarer)
    return torch.cat([1 - second, second], -1)


def _others(site: Site, noise: Tensor, count: int) -> Tensor:
    """Return P - 1 codes (P - 1, B, N, 2) that are coupled to the first one, from its noise (1, B, N, 2)."""
    shape = noise.shape[2:-1]
    left = noise[..., 0] ** (1 / count)  # 1 - d of the first
    uniform = torch.rand(count, *site.own_shape, *shape, dtype=noise.dtype, device=noise.device)
    parts = -uniform.clamp_min(torch.finfo(noise.dtype).tiny).log()
    parts = parts.expand(count, *site.batch_shape, *shape).reshape(count, -1, *shape)  # shared by data
    numbers = (1 - left * parts / parts.sum(0)) ** count
    return _codes_of(site.rows(), numbers.unsqueeze(-1))


def _corrections(probs: Tensor, num_codes: int) -> Tensor:
    """Return 1 / (1 - rho) of each digit (..., N), from the probabilities (..., N, 2)."""
    rarer, power = probs.amin(-1), num_codes - 1
    both = (2 - rarer ** (-1 / power)).clamp_min(0) ** power  # P(both codes of a pair have the rarer value) / s
    return (1 - rarer) / (1 - both)
