"""The codes of a model as N rows of K tiles, which is how a page shows them."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..distributions.coupled import CodePrior
from ..models.base import VAE
from ..models.bernoulli_vae import BernoulliVAE
from ..models.categorical_vae import CategoricalVAE
from .layers import Layer


class Tiles(NamedTuple):
    """What a page must know of a model's codes, which it takes for N one-hots of K categories.

    Args:
        encoder: the network from data (B, D).
        decoder: the network from what `code` returns.
        num_latents: N.
        num_categories: K.
        log_prior: log p(z_n = k), (N, K), of independent digits.
        code: one-hots (S, N, K) -> what the decoder takes.
        before_decoder: the same for the page.
        after_encoder: what the encoder returns -> logits (N, K), for the page.
        prior: the prior of digits that depend on each other, or None.
    """

    encoder: nn.Module
    decoder: nn.Module
    num_latents: int
    num_categories: int
    log_prior: Tensor
    code: Callable[[Tensor], Tensor]
    before_decoder: tuple[Layer, ...] = ()
    after_encoder: tuple[Layer, ...] = ()
    prior: CodePrior | None = None


def tiles(vae: VAE) -> Tiles:
    """Describe the codes of a model.

    Raises:
        ValueError: if its pictures do not depend on N one-hots or bits alone.

    Example:
        >>> found = tiles(BernoulliVAE(data_dim=6, num_bits=3, hidden=(5,)))
        >>> found.num_latents, found.num_categories, [layer.kind for layer in found.before_decoder]
        (3, 2, ['bits'])
    """
    if isinstance(vae, CategoricalVAE):
        log_prior = vae.prior_logits.log_softmax(-1)
        sizes = vae.num_latents, vae.num_categories
        return Tiles(vae.encoder, vae.decoder, *sizes, log_prior, lambda one_hots: one_hots, prior=vae.prior)
    if isinstance(vae, BernoulliVAE):
        # A bit is a one-hot of two categories, whose value is its second digit, and whose logits are 0 and the bit's.
        log_prior = torch.stack([torch.zeros_like(vae.prior_logits), vae.prior_logits], -1).log_softmax(-1)
        ends = (Layer("bits", {}, {}),), (Layer("bit_logits", {}, {}),)
        return Tiles(vae.encoder, vae.decoder, vae.num_bits, 2, log_prior, lambda one_hots: one_hots[..., 1], *ends)
    raise ValueError(
        f"Expected a run of the model 'categorical' or 'bernoulli', whose code is all that its pictures depend on and "
        f"has N rows of K tiles on the page, but found a {type(vae).__name__}. Try pyro-gvae report, encode or "
        "reconstruct."
    )
