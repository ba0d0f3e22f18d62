"""An ELBO plus a reward for using many categories in a batch, so that training does not settle on a few."""

import functools
from typing import Any, final

import torch
from torch import Tensor
from typing_extensions import override

from ..programs.draws import lay_out_draws
from ..programs.kls import closed_sites
from ..programs.layout import lay_out
from ..programs.modes import without_trace
from ..programs.runs import Runs
from ..programs.usage import Usage, closed_usage, drawn_usage, summed_usage
from .penalized import PenalizedELBO, Penalty, fits_one_slice

#: Draws per datum if there are too many codes to sum over.
NUM_PARTICLES = 8


@final
class UsageEntropy(PenalizedELBO):
    r"""Another loss plus a reward for using all categories of each discrete latent in a batch.

    .. math::

        \mathrm{loss} = \mathrm{loss}_\mathrm{other} - w B \sum_n \mathrm{H}(\bar q_n), \quad
        \bar q_n(k) = \frac{1}{B} \sum_b q(z_n = k | x_b)

    The entropy is that of the mean posterior of the batch, not of each posterior: each posterior may be sharp, as long
    as data use different categories. The mutual information of datum and digit is H(q_n) minus the mean entropy; this
    rewards the first term. *The loss is no longer minus an ELBO*: anneal w to 0, and evaluate without this term.

    Probabilities are in closed form if latents do not depend on each other in the guide. Otherwise they are summed over
    all joint codes if these fit into one slice of memory, or else estimated from 8 draws, whose entropy is too small on
    average. Masked data do not count, a latent that data share counts once, and the scale of the guide's sites does not
    apply, so this term remains where `weigh_kl` removes the KL.

    Args:
        elbo: the loss to add the term to: any loss of Pyro or of this package that trains a guide.
        weight: w, in nats per datum and nat of entropy: at least 0, a number or a tensor of shape (), such as a buffer.
            A recorded step reads the tensor's current value.

    Raises:
        ValueError: if the weight is negative or not finite.

    Example:
        >>> from pyro_gvae import CategoricalVAE, ExactELBO, discretize
        >>> vae, x = CategoricalVAE(data_dim=6, num_latents=2, num_categories=3, hidden=(5,)), torch.ones(4, 6)
        >>> model, guide = discretize(vae.model), discretize(vae.guide)
        >>> UsageEntropy(ExactELBO(), 0.5).loss(model, guide, x) < ExactELBO().loss(model, guide, x)
        True
    """

    def __init__(self, elbo: Any, weight: float | Tensor) -> None:
        super().__init__(elbo)
        value = torch.as_tensor(weight)
        if value.dim() > 0 or not 0 <= value.item() < float("inf"):
            raise ValueError(f"Expected one finite weight of the entropy of at least 0, but found {weight}.")
        self.weight = weight

    @override
    def plan_penalty(self, runs: Runs) -> Penalty:
        """Choose how probabilities are computed."""
        layout, probed = lay_out(runs), runs.again()
        with torch.no_grad(), without_trace():
            independent = closed_sites(probed, layout)[0].keys()
            can_be_summed = not layout.has_continuous and fits_one_slice(probed, layout)
        if independent == {latent.name for latent in layout.space.latents}:
            return lambda bound: self._of(closed_usage(bound, layout))
        if can_be_summed:
            return lambda bound: self._of(summed_usage(bound, layout))
        with_particles = lay_out_draws(runs)
        return lambda bound: self._of(drawn_usage(bound, with_particles, NUM_PARTICLES))

    def _of(self, found: list[Usage]) -> Tensor:
        return -self.weight * functools.reduce(torch.add, [use.entropy() for use in found])
