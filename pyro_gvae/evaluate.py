"""What a trained model is worth as a discrete model, whatever it was trained by."""

from typing import NamedTuple

import pyro
import torch
from torch import Tensor
from torch.nn.functional import one_hot

from . import exact
from .estimators import Estimator
from .models import CategoricalVAE


class DiscreteScores(NamedTuple):
    """Means over data, in nats per datum."""

    elbo: float
    log_evidence: float


@torch.no_grad()
def discrete_scores(vae: CategoricalVAE, x: Tensor, *, max_memory: float | None = None) -> DiscreteScores:
    """The exact ELBO and the exact log-evidence of the discrete model, both summed over all K^N codes.

    ELBO = E_q[log p(x, z) - log q(z|x)] <= log p(x) = log sum_z p(x, z).

    Args:
        vae: the model.
        x: data (B, D).
        max_memory: bytes that the sum may take.

    Returns:
        Means over the B data, nats per datum.

    Raises:
        ValueError: if K^N codes are too many.
    """
    elbo = exact.elbo(vae, x, max_memory=max_memory)  # (B,)
    log_evidence = exact.log_evidence(vae, x, max_memory=max_memory)  # (B,)
    return DiscreteScores(elbo.mean().item(), log_evidence.mean().item())


@torch.no_grad()
def own_objective(vae: CategoricalVAE, estimator: Estimator, x: Tensor) -> float:
    """What the estimator itself reports for data x (B, D): minus its loss, in nats per datum.

    For a relaxed estimator this is a bound of the *relaxed* model (or none at all, with the categorical KL),
    estimated with one fresh sample for each datum; it is not the ELBO of the discrete model.
    """
    model, guide, elbo = estimator.bind(vae)
    with pyro.get_param_store().scope():
        return -float(elbo.loss(model, guide, x)) / len(x)


@torch.no_grad()
def reconstructions(vae: CategoricalVAE, x: Tensor) -> Tensor:
    """E[x | z] at the most probable code of the guide, for data x (B, D); shape (B, D)."""
    code = one_hot(vae.encoder(x).argmax(-1), vae.num_categories).to(x)  # (B, N, K)
    return vae.observation(vae.decoder(code)).mean


@torch.no_grad()
def prior_samples(vae: CategoricalVAE, num_samples: int) -> Tensor:
    """E[x | z] at codes drawn from the prior; shape (num_samples, D)."""
    logits = vae.prior_logits.expand(num_samples, -1, -1)  # (num_samples, N, K)
    code = torch.distributions.OneHotCategorical(logits=logits).sample()
    return vae.observation(vae.decoder(code)).mean


@torch.no_grad()
def code_usage(vae: CategoricalVAE, x: Tensor, *, max_memory: float | None = None) -> Tensor:
    """The aggregated exact posterior: the mean of p(z_n = k | x) over data x (B, D); shape (N, K)."""
    return exact.posterior(vae, x, max_memory=max_memory).marginals.mean(0)
