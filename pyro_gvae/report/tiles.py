"""The codes of a model as N rows of K tiles, which is how a page shows them."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..distributions.coupled import CodePrior
from ..models.base import VAE
from ..models.bernoulli_vae import BernoulliVAE
from ..models.categorical_vae import CategoricalVAE
from ..models.gaussian_mixture_vae import GaussianMixtureVAE
from ..models.hidden_markov_model import HiddenMarkovModel
from ..models.joint_vae import JointVAE
from ..models.semi_supervised_vae import SemiSupervisedVAE
from ..programs.modes import judging


class Tiles(NamedTuple):
    """What a page needs to know of a model's codes, which it treats as N one-hots of K categories.

    Args:
        num_latents: N.
        num_categories: K.
        log_prior: log p(z_n = k), (N, K), if digits are independent in the prior.
        prior: the prior, if they are not.
        guide: data (B, D) -> log q(z_n = k | x), (B, N, K).
        decoder: one-hots (B, N, K), or soft codes -> natural parameters (B, ..).
    """

    num_latents: int
    num_categories: int
    log_prior: Tensor
    prior: CodePrior | None
    guide: Callable[[Tensor], Tensor]
    decoder: Callable[[Tensor], Tensor]


def tiles(vae: VAE) -> Tiles:
    """Describe the codes of a model.

    Raises:
        ValueError: if its pictures do not depend on N independent one-hots or bits alone.

    Example:
        >>> found = tiles(BernoulliVAE(data_dim=6, num_bits=3, hidden=(5,)))
        >>> found.num_latents, found.num_categories, found.guide(torch.ones(4, 6)).shape
        (3, 2, torch.Size([4, 3, 2]))
    """
    if isinstance(vae, CategoricalVAE):
        return Tiles(
            vae.num_latents,
            vae.num_categories,
            vae.prior_logits.log_softmax(-1),
            vae.prior,
            lambda x: vae.encoder(vae.observation.inputs(x)).log_softmax(-1),
            vae.decoder,
        )
    if isinstance(vae, BernoulliVAE):
        # A bit is a one-hot of two categories: its value is the second component, its logits are 0 and the bit's.
        return Tiles(
            vae.num_bits,
            2,
            _of_bits(vae.prior_logits),
            None,
            lambda x: _of_bits(vae.encoder(vae.observation.inputs(x))),
            lambda one_hots: vae.decoder(one_hots[..., 1]),
        )
    reason = REASONS.get(type(vae), "which no row of tiles can show")
    raise ValueError(
        "Expected a run of the model 'categorical', 'bernoulli' or 'hierarchical', whose code is a row of tiles for "
        f"each latent, but found a {type(vae).__name__}, {reason}. Try pyro-gvae report, encode or reconstruct."
    )


#: Data whose codes are changed for the pictures of categories, and the most numbers of all pictures.
NUM_CHANGED, MOST_NUMBERS = 100, 2**19


@judging
@torch.no_grad()
def category_pictures(vae: VAE, x: Any) -> Tensor | None:
    """Return what each category of each latent looks like: the decoder's mean for codes with that latent changed to it.

    Args:
        vae: a model.
        x: data (B, D), whose most probable codes are changed, one latent at a time; the result is a mean over them.

    Returns:
        Grey pixels as bytes, from 0 (black) to 255 (white), (N, K, D), or None if pictures do not depend on N one-hots
        alone, or would be large.

    Example:
        >>> vae = CategoricalVAE(data_dim=6, num_latents=2, num_categories=3, hidden=(5,))
        >>> category_pictures(vae, torch.ones(4, 6)).shape
        torch.Size([2, 3, 6])
    """
    try:
        code = tiles(vae)
    except ValueError:
        return None
    if code.num_latents * code.num_categories * vae.data_dim > MOST_NUMBERS:
        return None
    one_hots = torch.eye(code.num_categories, device=x.device)
    codes = one_hots[code.guide(x).argmax(-1)].to(code.log_prior.dtype)  # (B, N, K)
    rows = []
    for latent in range(code.num_latents):
        changed = codes.repeat(code.num_categories, 1, 1, 1)  # (K, B, N, K)
        changed[:, :, latent] = one_hots.unsqueeze(1)
        means = [vae.observation(code.decoder(own)).mean.mean(0) for own in changed]
        rows.append(vae.observation.to_pixels(torch.stack(means)))
    return (255 * torch.stack(rows)).round().clamp(0, 255).byte()


def _of_bits(logits: Tensor) -> Tensor:
    return torch.stack([torch.zeros_like(logits), logits], -1).log_softmax(-1)


#: Why a ready-made program has no rows of tiles.
REASONS: dict[type[VAE], str] = {
    JointVAE: "whose pictures depend on a Gaussian besides the code",
    GaussianMixtureVAE: "whose pictures depend on a Gaussian, and on its component only through that",
    SemiSupervisedVAE: "whose pictures depend on a Gaussian style besides the class",
    HiddenMarkovModel: "whose states, one for each step of a sequence, are not decoded together",
}
