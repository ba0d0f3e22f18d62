"""Variants of an estimator with another objective: a weighted KL, free bits, a mixed guide, a reward for code use."""

import dataclasses
from collections.abc import Mapping

from torch import Tensor

from ..elbos.free_bits import FreeBits
from ..elbos.usage_entropy import UsageEntropy
from ..handlers import unimix, weigh_kl
from .base import Estimator
from .claims import FreeNats, MixedGuide, Objective, RewardedUse, WeightedKL


def with_kl_weight(chosen: Estimator, beta: float | Tensor) -> Estimator:
    """Return the estimator for the objective whose KL is multiplied by beta; see :func:`~pyro_gvae.handlers.weigh_kl`.

    Args:
        chosen: an estimator of an ELBO.
        beta: a number of at least 0, or a tensor of shape (), such as a buffer, that is annealed between steps.

    Returns:
        An estimator for the same programs.

    Raises:
        ValueError: if beta is negative or not finite, or the objective has no KL, such as log p(x).

    Example:
        >>> import torch
        >>> from pyro_gvae import CategoricalVAE, estimator, make_step
        >>> vae = CategoricalVAE(data_dim=6, num_latents=2, num_categories=3, hidden=(5,))
        >>> beta = torch.tensor(0.0)
        >>> step = make_step(vae, with_kl_weight(estimator("gumbel-softmax"), beta))
        >>> for number in range(20):
        ...     _ = beta.fill_(min(1.0, number / 10))  # the recorded step reads it
        ...     loss = step(torch.ones(4, 6))
    """
    _check_has_kl(chosen, "to weigh")
    weigh = weigh_kl(beta=beta)
    return dataclasses.replace(
        chosen,
        handler=lambda program: chosen.handled(weigh(program)),
        details=(*chosen.details, WeightedKL(beta)),
        at_site=None,
    )


def with_free_bits(chosen: Estimator, nats: float | Mapping[str, float]) -> Estimator:
    """Return the estimator for the objective with free bits; see :class:`~pyro_gvae.elbos.free_bits.FreeBits`.

    Args:
        chosen: an estimator of an ELBO.
        nats: the free KL per latent, averaged over a batch, in nats: one number for all, or one for each name.

    Returns:
        An estimator for the same programs.

    Raises:
        ValueError: if `nats` is negative or not finite, or the objective has no KL.

    Example:
        >>> from pyro_gvae import estimator
        >>> with_free_bits(estimator("exact"), nats=0.2).approximates
        'the ELBO of the discrete model, with 0.2 free nats for each latent'
    """
    _check_has_kl(chosen, "to leave free")
    FreeBits(chosen.elbo(), nats)  # check now, not at the first step
    return dataclasses.replace(
        chosen,
        elbo=lambda: FreeBits(chosen.elbo(), nats),
        details=(*chosen.details, FreeNats(tuple(nats.items()) if isinstance(nats, Mapping) else nats)),
        at_site=None,
    )


def with_unimix(chosen: Estimator, share: float | Tensor) -> Estimator:
    """Return the estimator for a guide whose probabilities are mixed with the uniform; see `handlers.unimix`.

    Args:
        chosen: an estimator that trains a guide.
        share: u, from 0 to 1, or a tensor of shape (), such as a buffer, that is annealed between steps. Anneal it to
            0: training uses the mixed guide, but evaluation uses the guide itself.

    Returns:
        An estimator for the same programs.

    Raises:
        ValueError: if the share is out of range, or the estimator does not use the guide.

    Example:
        >>> from pyro_gvae import estimator
        >>> with_unimix(estimator("exact"), share=0.01).approximates
        'the ELBO of the discrete model, of the guide mixed with the uniform'
    """
    _check_has_guide(chosen, "to mix")
    return dataclasses.replace(
        chosen, of_guide=unimix(share=share), details=(*chosen.details, MixedGuide(share)), at_site=None
    )


def with_usage_entropy(chosen: Estimator, weight: float | Tensor) -> Estimator:
    """Return the estimator with a reward for using all categories; see `elbos.usage_entropy.UsageEntropy`.

    Args:
        chosen: an estimator that trains a guide.
        weight: w, at least 0, or a tensor of shape (), such as a buffer, that is annealed between steps. Anneal it to
            0: until then, the objective is not an ELBO.

    Returns:
        An estimator for the same programs.

    Raises:
        ValueError: if the weight is negative or not finite, or the estimator does not use the guide.

    Example:
        >>> from pyro_gvae import estimator
        >>> with_usage_entropy(estimator("exact"), weight=1.0).approximates
        "the ELBO of the discrete model, with a reward for the entropy of the codes' use"
    """
    _check_has_guide(chosen, "to reward")
    UsageEntropy(chosen.elbo(), weight)  # check now, not at the first step
    return dataclasses.replace(
        chosen,
        elbo=lambda: UsageEntropy(chosen.elbo(), weight),
        details=(*chosen.details, RewardedUse(weight)),
        at_site=None,
    )


def _check_has_guide(chosen: Estimator, purpose: str) -> None:
    if chosen.objective is Objective.EVIDENCE:
        raise ValueError(
            f"Expected an objective with a guide {purpose}, but found {chosen.approximates}, by '{chosen.name}'. Try "
            "exact-wake, or an estimator of the ELBO."
        )


def _check_has_kl(chosen: Estimator, purpose: str) -> None:
    if not chosen.objective.is_elbo:
        raise ValueError(
            f"Expected an objective with a KL {purpose}, but found {chosen.approximates}, by '{chosen.name}'. Try an "
            "estimator of the ELBO, such as exact or reinforce-loo."
        )
