"""Free bits: an ELBO whose KL of each latent is not pushed below a threshold."""

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
    r"""Another ELBO as a loss, but with a KL that counts only where it exceeds a threshold for its latent.

    .. math::

        \mathrm{loss} = -\sum_b \mathrm{E}_{q(z|x_b)}[\log p(x_b|z)] + B \sum_n \max(\lambda, \mathrm{KL}_n),
        \quad \mathrm{KL}_n = \frac{1}{B} \sum_b \mathrm{KL}(q(z_n|x_b) \,\|\, p(z_n))

    (Kingma et al. 2016, arXiv 1606.04934; each latent is a group of its own.) No latent gains by carrying less than
    lambda on average over the batch, which keeps latents from collapsing to the prior early in training. Minus the
    result is at most the ELBO, and *is no longer the ELBO*: evaluate the model without it.

    What is added to the other loss is B sum_n max(lambda - KL_n, 0), in closed form, from the categoricals of guide and
    prior. With a loss that samples its KL, gradients below the threshold cancel in the mean only; with the relaxed KL
    of Concrete densities they do not cancel, as that is another KL. Scales and masks of the guide's site are those of
    its KL: data that are masked do not count, and under `weigh_kl` a latent costs beta max(lambda, KL_n).

    Args:
        elbo: the loss to add to, of any kind that Pyro or this package has.
        nats: lambda, for each latent, in nats.

    Raises:
        ValueError: if `nats` is negative or not finite, or the loss has no KL; when it is used, if model or guide have
            other latent variables than one one-hot site of event shape (N, K) or (K,).

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
        """What the other loss learns, if anything; see :func:`pyro_gvae.estimators.own_state`."""
        own: nn.Module | None = getattr(self.elbo, "own", None)
        return own

    def why_not_recordable(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> str | None:
        """What the other loss says, if anything."""
        return (
            self.elbo.why_not_recordable(model, guide, *args, **kwargs) if isinstance(self.elbo, TensorELBO) else None
        )

    @torch.no_grad()
    def tensor_loss(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> Tensor:
        """The loss in nats, summed over the data."""
        missing = self._missing(model, guide, args, kwargs)
        return recordable(self.elbo, "loss")(model, guide, *args, **kwargs) + missing

    def tensor_loss_and_grads(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> Tensor:
        """The same; gradients are added to `.grad` of the parameters."""
        loss = recordable(self.elbo, "loss_and_grads")(model, guide, *args, **kwargs)
        return loss + self._missing_and_grads(model, guide, args, kwargs)

    @torch.no_grad()
    def loss(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> float:
        """The loss in nats, summed over the data; the two numbers are added in double precision."""
        missing = self._missing(model, guide, args, kwargs).item()
        return self.elbo.loss(model, guide, *args, **kwargs) + missing

    def loss_and_grads(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> float:
        """The same; gradients are added to `.grad` of the parameters."""
        loss: float = self.elbo.loss_and_grads(model, guide, *args, **kwargs)
        return loss + self._missing_and_grads(model, guide, args, kwargs).item()

    def differentiable_loss(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> Tensor:
        """The loss as a tensor."""
        loss: Tensor = self.elbo.differentiable_loss(model, guide, *args, **kwargs)
        return loss + self._missing(model, guide, args, kwargs)

    def _missing_and_grads(
        self, model: Program, guide: Program, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Tensor:
        missing = self._missing(model, guide, args, kwargs)
        if missing.requires_grad:
            missing.backward()
        return missing.detach()

    def _missing(self, model: Program, guide: Program, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        """B sum_n max(lambda - KL_n, 0), shape ()."""
        runs = bind(model, guide, *args, **kwargs)
        q = read_guide(runs.guide)
        prior = score(runs.model).prior
        kl = (q.log_probs.exp() * (q.log_probs - prior.log_probs)).sum(-1)  # (B, N)
        kl = kl.expand(q.batch_shape.numel(), -1)
        weights = q.weigh(kl.new_ones(len(kl)))  # (B,)
        total = weights.sum()
        mean_kl = weights @ kl / total.clamp_min(torch.finfo(kl.dtype).tiny)  # (N,); a weight of 0 is allowed
        return total * (self.nats - mean_kl).clamp_min(0).sum()
