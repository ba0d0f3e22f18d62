"""Free bits: an ELBO that does not push the KL of a latent below a threshold."""

from typing import Any, final

import torch
from torch import Tensor, nn

from ..handlers.sites import Program
from ..programs.reader import read_guide, score
from ..programs.runs import bind
from ..programs.tensor_elbo import TensorELBO, recordable
from .exact import ExactEvidence


@final
class FreeBits(TensorELBO):
    r"""Another ELBO as a loss, in which the KL of each latent counts only where it exceeds a threshold.

    .. math::

        \mathrm{loss} = -\sum_b \mathrm{E}_{q(z|x_b)}[\log p(x_b|z)] + B \sum_n \max(\lambda, \mathrm{KL}_n),
        \quad \mathrm{KL}_n = \frac{1}{B} \sum_b \mathrm{KL}(q(z_n|x_b) \,\|\, p(z_n))

    (Kingma et al. 2016, arXiv 1606.04934, with each latent as a group of its own.) No latent gains by carrying less
    than lambda nats, averaged over the batch, so latents do not collapse to the prior early in training. The negative
    loss is at most the ELBO and *is no longer the ELBO*: evaluate the model without it.

    The term added to the other loss is B sum_n max(lambda - KL_n, 0), computed in closed form from the categoricals of
    guide and prior. If the other loss samples its KL, gradients below the threshold cancel only on average. If its KL
    is the relaxed one of Concrete densities, they do not cancel, because that is a different KL. Scale and mask of the
    guide's site apply to this KL too: masked data do not count, and under `weigh_kl` a latent costs beta max(lambda,
    KL_n).

    Args:
        elbo: the loss to add to, any of Pyro's or of this package that has a KL.
        nats: lambda, in nats per latent.

    Raises:
        ValueError: if `nats` is negative or not finite, or the loss has no KL; when called, if model or guide has a
            latent variable besides one site of one-hots or bits.

    Example:
        >>> from pyro_gvae import CategoricalVAE, ExactELBO, discretize
        >>> vae, x = CategoricalVAE(data_dim=6, num_latents=2, num_categories=3, hidden=(5,)), torch.ones(4, 6)
        >>> model, guide = discretize(vae.model), discretize(vae.guide)
        >>> FreeBits(ExactELBO(), nats=0.0).loss(model, guide, x) == ExactELBO().loss(model, guide, x)
        True
        >>> FreeBits(ExactELBO(), nats=0.5).loss(model, guide, x) > ExactELBO().loss(model, guide, x)
        True
    """

    def __init__(self, elbo: Any, nats: float) -> None:
        super().__init__()
        if not 0 <= nats < float("inf"):
            raise ValueError(f"Expected a finite number of free nats of at least 0, but found {nats:g}.")
        if isinstance(elbo, ExactEvidence):
            raise ValueError("Expected a loss with a KL to leave free, but found the log-evidence. Try ExactELBO.")
        self.elbo = elbo
        self.nats = nats

    @property
    def own(self) -> nn.Module | None:
        """The module that the other loss trains, if any; see :func:`pyro_gvae.estimators.own_state`."""
        own: nn.Module | None = getattr(self.elbo, "own", None)
        return own

    def why_not_recordable(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> str | None:
        """Return the other loss's reason, if it has one."""
        return (
            self.elbo.why_not_recordable(model, guide, *args, **kwargs) if isinstance(self.elbo, TensorELBO) else None
        )

    @torch.no_grad()
    def tensor_loss(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> Tensor:
        """Return the loss in nats, summed over the data."""
        penalty = self._penalty(model, guide, args, kwargs)
        return recordable(self.elbo, "loss")(model, guide, *args, **kwargs) + penalty

    def tensor_loss_and_grads(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> Tensor:
        """Return the same, and add gradients to `.grad` of the parameters."""
        loss = recordable(self.elbo, "loss_and_grads")(model, guide, *args, **kwargs)
        return loss + self._penalty_and_grads(model, guide, args, kwargs)

    @torch.no_grad()
    def loss(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> float:
        """Return the loss in nats, summed over the data. Its two terms are added in double precision."""
        penalty = self._penalty(model, guide, args, kwargs).item()
        return self.elbo.loss(model, guide, *args, **kwargs) + penalty

    def loss_and_grads(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> float:
        """Return the same, and add gradients to `.grad` of the parameters."""
        loss: float = self.elbo.loss_and_grads(model, guide, *args, **kwargs)
        return loss + self._penalty_and_grads(model, guide, args, kwargs).item()

    def differentiable_loss(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> Tensor:
        """Return the loss as a tensor."""
        loss: Tensor = self.elbo.differentiable_loss(model, guide, *args, **kwargs)
        return loss + self._penalty(model, guide, args, kwargs)

    def _penalty_and_grads(
        self, model: Program, guide: Program, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Tensor:
        penalty = self._penalty(model, guide, args, kwargs)
        if penalty.requires_grad:
            penalty.backward()
        return penalty.detach()

    def _penalty(self, model: Program, guide: Program, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        """Return B sum_n max(lambda - KL_n, 0), shape ()."""
        runs = bind(model, guide, *args, **kwargs)
        q = read_guide(runs.guide)
        prior = score(runs.model).prior
        kl = (q.log_probs.exp() * (q.log_probs - prior.log_probs)).sum(-1)  # (B, N)
        kl = kl.expand(q.batch_shape.numel(), -1)
        weights = q.weigh(kl.new_ones(len(kl)))  # (B,)
        total = weights.sum()
        mean_kl = weights @ kl / total.clamp_min(torch.finfo(kl.dtype).tiny)  # (N,); a weight of 0 is allowed
        return total * (self.nats - mean_kl).clamp_min(0).sum()
