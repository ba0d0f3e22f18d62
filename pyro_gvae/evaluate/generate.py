"""Encode, reconstruct and sample with a trained model, always with hard codes, whichever estimator trained it."""

from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from .. import exact
from ..data.dataset import Dataset
from ..distributions.one_hot import FactorizedOneHotCategorical
from ..exact import HasPair
from ..models.categorical_vae import CategoricalVAE
from ..programs.modes import judging
from .code_statistics import guide_log_probs

CodeKind = Literal["map", "sample", "exact"]

#: Images shown in a report: reconstructions of the first test images, and prior samples.
NUM_RECONSTRUCTIONS, NUM_SAMPLES = 10, 25


@judging
@torch.no_grad()
def encode(pair: HasPair, x: Tensor, kind: CodeKind = "map", *, max_memory: float | None = None) -> Tensor:
    """Encode each datum as one hard code.

    Args:
        pair: a `CategoricalVAE`, or a `Pair` of programs with one one-hot site.
        x: data (B, D).
        kind: "map" is the most probable code under the guide q(z|x); "sample" is a sample of the guide; "exact" is the
            most probable of all K^N codes under the exact posterior p(z|x).
        max_memory: bytes that the exact sum may use.

    Returns:
        One-hot codes (B, N, K).

    Raises:
        ValueError: if the kind is unknown, or there are too many codes for "exact".

    Example:
        >>> vae = CategoricalVAE(data_dim=6, num_latents=2, num_categories=3, hidden=(5,))
        >>> encode(vae, torch.ones(4, 6), "exact").argmax(-1).shape
        torch.Size([4, 2])
    """
    if kind not in get_args(CodeKind):
        raise ValueError(f"Expected a kind of code among {', '.join(get_args(CodeKind))}, but found '{kind}'.")
    if kind == "exact":
        codes = exact.posterior(pair, x, num_codes=1, max_memory=max_memory).codes
        if isinstance(codes, dict):
            found = ", ".join(f"'{name}'" for name in codes)
            raise ValueError(
                f"Expected one discrete latent, but found {found}. Try exact.posterior, which takes several."
            )
        return codes.select(-3, 0)
    log_q = guide_log_probs(pair, x)  # (B, N, K)
    if kind == "sample":
        return FactorizedOneHotCategorical(logits=log_q).sample()
    return one_hot(log_q.argmax(-1), log_q.shape[-1]).to(log_q)


@judging
@torch.no_grad()
def reconstruct(vae: CategoricalVAE, x: Tensor, kind: CodeKind = "map", *, max_memory: float | None = None) -> Tensor:
    """Reconstruct data x (B, D) as E[x | z], shape (B, D), from a code of each datum; see :func:`encode` for `kind`."""
    return vae.observation(vae.decoder(encode(vae, x, kind, max_memory=max_memory))).mean


@judging
@torch.no_grad()
def sample(vae: CategoricalVAE, num_samples: int, *, pixels: bool = False) -> Tensor:
    """Generate images, shape (num_samples, D), from codes sampled from the prior.

    Args:
        vae: the model.
        num_samples: how many images.
        pixels: sample the pixels from p(x|z), which gives samples of p(x); otherwise return their means E[x|z].

    Raises:
        ValueError: if `num_samples` is not positive.

    Example:
        >>> vae = CategoricalVAE(data_dim=6, num_latents=2, num_categories=3, hidden=(5,))
        >>> sample(vae, 4, pixels=True).unique()
        tensor([0., 1.])
    """
    if num_samples < 1:
        raise ValueError(f"Expected num_samples of at least 1, but found {num_samples}.")
    codes = FactorizedOneHotCategorical(logits=vae.prior_logits).sample((num_samples,))  # (num_samples, N, K)
    observation = vae.observation(vae.decoder(codes))
    return observation.sample() if pixels else observation.mean


@torch.no_grad()
def pictured(vae: CategoricalVAE, initial: CategoricalVAE, data: Dataset) -> dict[str, Tensor]:
    """Make the images of a report: test images, their reconstructions before and after training, prior samples.

    Args:
        vae: the trained model.
        initial: the same model with its initial weights.
        data: the data that it was trained on.

    Returns:
        `inputs`, `reconstructions_start`, `reconstructions_end` (R, D) and `samples` (M, D), as pixels in [0, 1].
    """
    shown = data.test[:NUM_RECONSTRUCTIONS]
    arrays = {
        "inputs": shown,
        "reconstructions_start": reconstruct(initial, shown),
        "reconstructions_end": reconstruct(vae, shown),
        "samples": sample(vae, NUM_SAMPLES),
    }
    return {name: vae.observation.to_pixels(x) for name, x in arrays.items()}
