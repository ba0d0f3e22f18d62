"""Encode, reconstruct and sample with a trained model, always with hard codes, whichever estimator trained it."""

from typing import Any, Literal, cast, get_args

import torch
from torch import Tensor

from .. import exact
from ..data.dataset import Dataset
from ..distributions.one_hot import FactorizedOneHotCategorical
from ..exact import HasPair
from ..exact.backwards import best_given, sample_given
from ..exact.plan import PerLatent, per_latent
from ..models.categorical_vae import CategoricalVAE
from ..programs.chains import lay_out_chains
from ..programs.choices import choose, most_probable, one_draw
from ..programs.look import look
from ..programs.modes import judging
from ..programs.runs import bind_pair, items

CodeKind = Literal["map", "sample", "exact"]

#: Images shown in a report: reconstructions of the first test images, and prior samples.
NUM_RECONSTRUCTIONS, NUM_SAMPLES = 10, 25


@judging
@torch.no_grad()
def encode(pair: HasPair, x: Tensor, kind: CodeKind = "map", *, max_memory: float | None = None) -> PerLatent:
    """Encode each datum as one hard code, beside a value of each continuous latent.

    Args:
        pair: a `CategoricalVAE`, or a `Pair` of programs.
        x: data (B, D), or all arguments of the programs.
        kind: "map" is the most probable code under the guide q(z|x), of a latent that depends on others the most
            probable one given theirs, and the mean of a continuous latent; "sample" is a sample of the guide; "exact"
            is the most probable of all joint codes under the exact posterior p(z|x). Latents that the guide lacks have
            the most probable joint code, or a sample, of their exact posterior given the values of the others.
        max_memory: bytes that the exact sum may use.

    Returns:
        One-hot codes (B, N, K), whatever the values are; of several latents, by name, with the values of continuous
        ones. B stands for the plates of a latent. Probabilities of codes are
        :func:`~pyro_gvae.evaluate.code_statistics.guide_log_probs`, or :func:`pyro_gvae.exact.posterior`.

    Raises:
        ValueError: if the kind is unknown; for "exact", if there are too many codes or continuous latents, or if data
            share a latent.

    Example:
        >>> vae = CategoricalVAE(data_dim=6, num_latents=2, num_categories=3, hidden=(5,))
        >>> encode(vae, torch.ones(4, 6), "exact").argmax(-1).shape
        torch.Size([4, 2])
    """
    if kind not in get_args(CodeKind):
        raise ValueError(f"Expected a kind of code among {', '.join(get_args(CodeKind))}, but found '{kind}'.")
    runs = bind_pair(pair, *items(x))
    if kind == "exact":
        exactly = exact.posterior(pair, *items(x), num_codes=1, max_memory=max_memory).codes
        named = exactly if isinstance(exactly, dict) else {"": exactly}
        return per_latent({name: own.select(-3, 0) for name, own in named.items()})
    seen = look(runs)
    if kind == "sample":
        found = choose(runs.guide, one_draw, lambda _, fn: fn.sample())
    else:
        found = choose(runs.guide, most_probable, _mean)
    codes = found.values | found.codes
    if seen.alone:
        chains = lay_out_chains(runs, seen, max_memory)
        given = {name: found.values[name] for name in (*found.codes, *seen.given)}
        codes |= (sample_given if kind == "sample" else best_given)(runs, chains, given)
    return per_latent(codes)


def _mean(name: str, fn: Any) -> Tensor:
    try:
        mean: Tensor = fn.mean
    except NotImplementedError as error:
        raise ValueError(
            f"Expected continuous latents that have a mean, but found '{name}', a {type(fn).__name__}. Try "
            'kind="sample".'
        ) from error
    return mean


@judging
@torch.no_grad()
def reconstruct(vae: CategoricalVAE, x: Tensor, kind: CodeKind = "map", *, max_memory: float | None = None) -> Tensor:
    """Reconstruct data x (B, D) as E[x | z], shape (B, D), from a code of each datum; see :func:`encode` for `kind`."""
    codes = cast(Tensor, encode(vae, x, kind, max_memory=max_memory))  # of its one latent
    return vae.observation(vae.decoder(codes)).mean


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
