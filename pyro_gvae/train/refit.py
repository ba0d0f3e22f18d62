"""Fit the prior to the codes of data: alone, after the other networks, or a tree prior's edges at each epoch."""

from typing import Any

import torch
from torch import Tensor

from ..data.batches import epoch_batches
from ..distributions.coupled import CodePrior
from ..distributions.one_hot import FactorizedOneHotCategorical
from ..models.categorical_vae import CategoricalVAE
from ..models.pairwise_priors import TreePrior
from ..programs.modes import judging
from ..runtime.rng import own_randomness
from .training import Training


@torch.enable_grad()
def fit_prior(
    vae: CategoricalVAE,
    x: Tensor,
    *,
    epochs: int = 20,
    batch_size: int = 256,
    learning_rate: float = 1e-2,
    seed: int = 0,
) -> float:
    r"""Train only the prior, on the codes that the encoder gives to data.

    It maximizes :math:`\frac{1}{M} \sum_m \mathrm{E}_{q(z | x_m)}[\log p(z)]`, the term of the ELBO that contains the
    prior. If this mean has no closed form, one code is drawn for each datum and step. A tree is found first.

    Args:
        vae: the program; the digits of its prior depend on each other: `vae.prior = MixturePrior(N, K)`.
        x: data (M, D).
        epochs: passes over the data.
        batch_size: data in a step.
        learning_rate: the learning rate of Adam.
        seed: the seed of order and draws.

    Returns:
        The mean of log p(z) over data and the guide in the last epoch, in nats per datum.

    Raises:
        ValueError: if the prior is one of independent digits.

    Example:
        >>> vae = CategoricalVAE(data_dim=6, num_latents=2, num_categories=3, hidden=(5,), prior="mixture")
        >>> before = fit_prior(vae, torch.ones(4, 6), epochs=1)
        >>> fit_prior(vae, torch.ones(4, 6), epochs=50) > before
        True
    """
    prior = vae.prior
    if prior is None:
        raise ValueError("Expected a prior to fit, but found independent digits. Try vae.prior = MixturePrior(N, K).")
    if isinstance(prior, TreePrior):
        _refit(vae, prior, x)
    optimizer = torch.optim.Adam(prior.parameters(), lr=learning_rate)
    mean = 0.0
    with own_randomness(seed):
        for epoch in range(epochs):
            total = 0.0
            for batch in epoch_batches(x, min(batch_size, len(x)), seed=seed, epoch=epoch):
                optimizer.zero_grad()
                values = _log_prior(prior, _logits(vae, batch))
                (-values.mean()).backward()
                optimizer.step()
                total += values.sum().item()
            mean = total / len(x)
    return mean


@judging
@torch.no_grad()
def _logits(vae: CategoricalVAE, x: Tensor) -> Tensor:
    return vae.guide_logits(x)


def _log_prior(prior: CodePrior, logits: Tensor) -> Tensor:
    """Return the mean of log p(z) under the guide for each datum, (B,), or log p(z) of a draw."""
    q = FactorizedOneHotCategorical(logits=logits)
    return prior.mean_log_prob(q.probs) if prior.has_mean else prior.log_prob(q.sample())


def _refit(vae: CategoricalVAE, prior: TreePrior, x: Tensor) -> None:
    prior.refit(_logits(vae, x).softmax(-1))


def refit_if_due(training: Training) -> None:
    """Find the tree of a prior again at the beginning of each epoch but the first.

    The tree depends only on weights, data and step, so that a resumed run and all processes find the same one.
    """
    prior: Any = getattr(training.vae, "prior", None)
    step = training.state.step
    if not isinstance(prior, TreePrior) or step == 0 or step % training.per_epoch:
        return
    sample: Any = training.watched
    _refit(training.vae, prior, sample)
