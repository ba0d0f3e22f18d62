"""A program of several layers of one-hots as one of its lowest layer, which alone determines the pictures."""

from typing import final

import torch
from torch import Tensor, nn

from ..distributions.codes import code_numbers, joint_codes, num_codes
from ..models.base import VAE
from ..models.categorical_vae import CategoricalVAE
from ..models.hierarchical_categorical_vae import HierarchicalCategoricalVAE
from ..models.priors import JointPrior

#: The most joint codes of a layer, and the number of codes of the layer above that are summed at a time.
MOST_CODES, AT_A_TIME = 2**14, 1024


def is_layered(vae: VAE) -> bool:
    """Tell whether a program has layers above the one that determines the pictures."""
    return isinstance(vae, HierarchicalCategoricalVAE) and vae.num_layers > 1


def lowest_layer(vae: VAE) -> VAE:
    r"""Return the program of the lowest layer, with the same networks; its prior sums over all layers above.

    .. math:: p(z_l) = \sum_{z_{l+1}} p(z_l | z_{l+1}) p(z_{l+1})

    p(x), p(z_1 | x) and q(z_1 | x) are those of the layers together. The ELBO is at least as high, since what the guide
    says of the layers above no longer matters.

    Args:
        vae: a program; any other than a :class:`~pyro_gvae.models.hierarchical_categorical_vae` is returned as it is.

    Raises:
        ValueError: if a layer has too many codes to sum over.

    Example:
        >>> from pyro_gvae import exact
        >>> vae = HierarchicalCategoricalVAE(6, num_layers=3, num_latents=1, num_categories=3, hidden=(5,))
        >>> x = torch.ones(4, 6)
        >>> torch.allclose(exact.log_evidence(lowest_layer(vae), x), exact.log_evidence(vae, x), atol=1e-5)
        True
    """
    if not isinstance(vae, HierarchicalCategoricalVAE):
        return vae
    if num_codes(vae.num_latents, vae.num_categories) > MOST_CODES:
        raise ValueError(
            f"Expected at most {MOST_CODES:,} joint codes in each layer, over which the prior of the lowest layer is a "
            f"sum, but found {vae.num_categories}^{vae.num_latents}. Try pyro-gvae report, encode or reconstruct."
        )
    prior = JointPrior(vae.num_latents, vae.num_categories, _Table(_log_prior(vae)))
    lowest = CategoricalVAE(
        vae.data_dim,
        vae.num_latents,
        vae.num_categories,
        hidden=(),
        observation=vae.observation,
        prior=prior,
        temperature=vae.temperature.item(),
        prior_temperature=vae.prior_temperature.item(),
        encoder=vae.encoder,
        decoder=vae.decoder,
        name=vae.name,
    )
    return lowest.to(next(vae.parameters())).train(vae.training)


@torch.no_grad()
def _log_prior(vae: HierarchicalCategoricalVAE) -> Tensor:
    """Return log p(z_1) of all codes of the lowest layer, (S,)."""
    codes = joint_codes(vae.num_latents, vae.num_categories, dtype=vae.prior_logits.dtype)
    digits = codes.flatten(1)  # (S, N K)
    log_prior = digits @ vae.prior_logits.log_softmax(-1).flatten()
    for down in reversed(vae.down):
        parts = []
        for above, log_weights in zip(codes.split(AT_A_TIME), log_prior.split(AT_A_TIME), strict=True):
            log_probs = down(above).log_softmax(-1).flatten(1)  # (s, N K)
            parts.append((log_probs @ digits.T + log_weights.unsqueeze(-1)).logsumexp(0))
        log_prior = torch.stack(parts).logsumexp(0)
    return log_prior


@final
class _Table(nn.Module):
    """One number for each joint code, by which one-hot codes (..., N, K) are mapped to (...)."""

    values: Tensor

    def __init__(self, values: Tensor) -> None:
        super().__init__()
        self.register_buffer("values", values)

    def forward(self, codes: Tensor) -> Tensor:
        return self.values[code_numbers(codes)]
