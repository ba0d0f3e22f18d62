"""What a trained model makes: codes of data, reconstructions, samples; hard codes, whatever it was trained by."""

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
    """One hard code for each datum.

    Args:
        pair: a `CategoricalVAE`, or a `Pair` of programs with one one-hot site.
        x: data (B, D).
        kind: "map" is the most probable code under the guide q(z|x); "sample" is drawn from the guide; "exact" is the
            most probable code under the exact posterior p(z|x), of all K^N.
        max_memory: bytes that the exact sum may take.

    Returns:
        One-hot codes (B, N, K).

    Raises:
        ValueError: if there is no such kind, or K^N codes are too many for "exact".

    Example:
        >>> vae = CategoricalVAE(data_dim=6, num_latents=2, num_categories=3, hidden=(5,))
        >>> encode(vae, torch.ones(4, 6), "exact").argmax(-1).shape
        torch.Size([4, 2])
    """
    if kind not in get_args(CodeKind):
        raise ValueError(f"Expected a kind of code among {', '.join(get_args(CodeKind))}, but found '{kind}'.")
    if kind == "exact":
        return exact.posterior(pair, x, num_codes=1, max_memory=max_memory).codes.select(-3, 0)
    log_q = guide_log_probs(pair, x)  # (B, N, K)
    if kind == "sample":
        return FactorizedOneHotCategorical(logits=log_q).sample()
    return one_hot(log_q.argmax(-1), log_q.shape[-1]).to(log_q)


@judging
@torch.no_grad()
def reconstruct(vae: CategoricalVAE, x: Tensor, kind: CodeKind = "map", *, max_memory: float | None = None) -> Tensor:
    """E[x | z] at a code of each datum x (B, D), of a kind that :func:`encode` knows; shape (B, D)."""
    return vae.observation(vae.decoder(encode(vae, x, kind, max_memory=max_memory))).mean


@judging
@torch.no_grad()
def sample(vae: CategoricalVAE, num_samples: int, *, pixels: bool = False) -> Tensor:
    """Images of codes drawn from the prior, shape (num_samples, D).

    Args:
        vae: the model.
        num_samples: how many.
        pixels: draw pixels from p(x|z), ancestral samples of p(x); their means E[x|z] if not.

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
    """What a report shows of a model: test images, their reconstructions before and after training, prior samples.

    Args:
        vae: the trained model.
        initial: the same with its initial weights.
        data: what it was trained on.

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
