"""A weighted mean of the exact wake loss and the exact ELBO, as one Pyro loss."""

from typing import Any, final

from torch import Tensor
from typing_extensions import override

from ..handlers.sites import Program
from ..programs.tensor_elbo import DifferentiableELBO
from .exact import ExactELBO
from .wake import ExactWake


@final
class WakeMixture(DifferentiableELBO):
    r"""The exact wake loss with weight w, plus the exact ELBO with weight 1 - w.

    .. math::

        \mathrm{loss} = -\sum_b \big( w \log p(x_b) + (1 - w) \mathrm{ELBO}_b \big)

    Its gradient is the same weighted mean of the gradients of :class:`~pyro_gvae.elbos.wake.ExactWake` and of
    :class:`~pyro_gvae.ExactELBO`. With the exclusive encoder, the model maximizes log p(x) - (1 - w) KL(q(z | x) || p(z
    | x)), which keeps its posterior near the distributions that the guide can represent, and the guide maximizes the
    ELBO. With the inclusive encoder, the guide's gradient is a weighted mean of those of both KLs.

    The codes are summed twice, once for each part.

    Args:
        wake: the exact wake loss.
        elbo: the exact ELBO.
        evidence_weight: w, between 0 and 1.

    Raises:
        ValueError: if w is out of range; when called, if one of the two parts raises it.

    Example:
        >>> import torch
        >>> from pyro_gvae import CategoricalVAE
        >>> vae, x = CategoricalVAE(data_dim=6, num_latents=2, num_categories=3, hidden=(5,)), torch.ones(4, 6)
        >>> wake, elbo = ExactWake(), ExactELBO()
        >>> losses = wake, WakeMixture(wake, elbo, 0.5), elbo
        >>> low, mean, high = (loss.loss(vae.model, vae.guide, x) for loss in losses)
        >>> low <= mean <= high
        True
    """

    def __init__(self, wake: ExactWake, elbo: ExactELBO, evidence_weight: float) -> None:
        super().__init__()
        if not 0 <= evidence_weight <= 1:
            raise ValueError(
                f"Expected an evidence_weight between 0 and 1, but found {evidence_weight}. Try 1, the evidence alone."
            )
        self.wake = wake
        self.elbo = elbo
        self.evidence_weight = evidence_weight

    @override
    def why_not_recordable(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> str | None:
        reasons = (part.why_not_recordable(model, guide, *args, **kwargs) for part in (self.wake, self.elbo))
        return next((reason for reason in reasons if reason is not None), None)

    def differentiable_loss(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> Tensor:
        """Return the loss as a tensor, in nats summed over the data. The backward pass computes slices again."""
        wake, elbo = (part.differentiable_loss(model, guide, *args, **kwargs) for part in (self.wake, self.elbo))
        return self.evidence_weight * wake + (1 - self.evidence_weight) * elbo
