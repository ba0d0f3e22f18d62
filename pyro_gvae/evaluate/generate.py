"""Encode, reconstruct and sample with a trained model, always with hard codes, whichever estimator trained it."""

import math
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from ..config.checks import at_least
from ..config.models import Labels
from ..data.columns import Data, columns
from ..data.labels import shown, use_of_labels
from ..data.sliced import AnyDataset
from ..exact import HasPair
from ..exact.backwards import best_given, sample_given
from ..exact.best import best_codes
from ..exact.plan import PerLatent, per_latent
from ..handlers.one_hot_messenger import innermost
from ..handlers.sites import Discrete, Run
from ..models.base import VAE
from ..programs.chains import lay_out_chains
from ..programs.choices import choose, most_probable, one_draw
from ..programs.latents import latent_of
from ..programs.look import look
from ..programs.modes import judging
from ..programs.runs import bind_pair
from ..programs.statements import Draw, Place, Reader

CodeKind = Literal["map", "sample", "exact"]

#: Images shown in a report: reconstructions of the first test images, and prior samples.
NUM_RECONSTRUCTIONS, NUM_SAMPLES = 10, 25


@judging
@torch.no_grad()
def encode(pair: HasPair, x: Data, kind: CodeKind = "map", *, max_memory: float | None = None) -> PerLatent:
    """Encode each datum as one hard code, and a value of each continuous latent.

    Args:
        pair: a `CategoricalVAE`, or a `Pair` of programs.
        x: data (B, D), or a tuple or dictionary of all arguments of the programs.
        kind: "map" is the most probable code of each latent under the guide q(z|x), given the codes of the latents that
            it depends on, and the mean of a continuous latent; "sample" is a sample of the guide; "exact" is the most
            probable joint code under the exact posterior p(z|x). Latents that the guide lacks get the most probable
            joint code, or a sample, of their exact posterior given the values of the others.
        max_memory: bytes that the exact sum may use.

    Returns:
        One-hot codes (B, N, K), also for bits and integers; for several latents, by name, with the values of continuous
        latents. B stands for the plates of a latent. For the probabilities of codes, see
        :func:`~pyro_gvae.evaluate.code_statistics.guide_log_probs` and :func:`pyro_gvae.exact.posterior`.

    Raises:
        ValueError: if the kind is unknown; for "exact", if there are too many codes or continuous latents, or if data
            share a latent.

    Example:
        >>> from pyro_gvae import CategoricalVAE
        >>> vae = CategoricalVAE(data_dim=6, num_latents=2, num_categories=3, hidden=(5,))
        >>> encode(vae, torch.ones(4, 6), "exact").argmax(-1).shape
        torch.Size([4, 2])
    """
    if kind not in get_args(CodeKind):
        raise ValueError(f"Expected a kind of code among {', '.join(get_args(CodeKind))}, but found '{kind}'.")
    runs = bind_pair(pair, x)
    if kind == "exact":
        return best_codes(pair, x, max_memory=max_memory)
    if kind == "sample":
        found = choose(runs.guide, one_draw, lambda _, fn: fn.sample())
    else:
        found = choose(runs.guide, most_probable, _mean)
    codes = found.values | found.codes
    if look(runs, with_guide=False).model.discrete.keys() - found.codes.keys():  # the guide lacks some
        seen = look(runs)
        chains = lay_out_chains(runs, seen, max_memory)
        given = {name: found.values[name] for name in (*found.codes, *seen.given)}
        codes |= (sample_given if kind == "sample" else best_given)(runs, chains, given)
    return per_latent(codes)


def _mean(name: str, fn: Any) -> Tensor:
    try:
        mean: Tensor = fn.mean
    except NotImplementedError:
        mean = torch.full((), math.nan)
    if not mean.isfinite().all():  # as that of a Cauchy distribution
        raise ValueError(
            f"Expected continuous latents that have a mean, but found '{name}', a {type(innermost(fn)).__name__}. Try "
            'kind="sample".'
        )
    return mean


@judging
@torch.no_grad()
def reconstruct(vae: VAE, x: Data, kind: CodeKind = "map", *, max_memory: float | None = None) -> Tensor:
    """Reconstruct data as E[x | z], from the latents of each datum.

    Args:
        vae: a ready-made program for such data.
        x: data (B, D), or a tuple of data and labels for a program that takes labels.
        kind: how the latents are chosen, as for :func:`encode`.
        max_memory: bytes that the exact sum may use.

    Returns:
        Means (B, D), in the form of the data: probabilities of ink for black and white pixels.

    Raises:
        ValueError: as :func:`encode`.

    Example:
        >>> from pyro_gvae import CategoricalVAE
        >>> vae = CategoricalVAE(data_dim=6, num_latents=2, num_categories=3, hidden=(5,))
        >>> reconstruct(vae, torch.ones(4, 6)).shape
        torch.Size([4, 6])
    """
    found = encode(vae, x, kind, max_memory=max_memory)

    def value(name: str) -> Tensor:
        return found[name] if isinstance(found, dict) else found

    def place(name: str, site: Discrete) -> Tensor:
        return latent_of(name, site).value(value(name))

    mean: Tensor = _observation(bind_pair(vae, x).model, place, lambda name, _: value(name)).mean
    return mean


def given_codes(vae: VAE, codes: dict[str, Tensor], *, label: int | None = None) -> Any:
    """Return the distribution p(x | z) for each of S joint codes, with batch shape (S, 1).

    Args:
        vae: a ready-made program whose latents are all discrete.
        codes: one-hots (S, N, K) by the latent's name.
        label: the class y in p(x | z, y), for a program of data given their labels.
    """

    def place(name: str, site: Discrete) -> Tensor:
        return latent_of(name, site).value(codes[name].to(site.logits.dtype).unsqueeze(1))

    return _observation(bind_pair(vae, *_any_datum(vae, label)).model, place, lambda _, fn: fn.sample())


def _any_datum(vae: VAE, label: int | None) -> tuple[Tensor, ...]:
    """Return an arbitrary datum (1, D), perhaps with a label, for models that only need the number of data."""
    least, _ = vae.observation.data_range
    x = next(vae.parameters(), vae.temperature).new_full((1, vae.data_dim), least)
    return (x,) if label is None else (x, torch.tensor([label], device=x.device))


def _observation(model: Run, place: Place, draw: Draw) -> Any:
    """Run a model with latents from `place` (discrete) and `draw` (continuous); return the distribution of its data."""
    reader = Reader(place, draw)
    reader.run(model)
    observed = {name: msg["fn"] for name, msg in reader.messages.items() if msg["is_observed"]}
    if len(observed) != 1 and "x" not in observed:  # labels may be observed as well as x
        raise ValueError(f"Expected a model that observes x in one statement, but found {len(observed)}. Try Pyro.")
    return observed["x"] if "x" in observed else next(iter(observed.values()))


@judging
@torch.no_grad()
def sample(vae: VAE, num_samples: int, *, pixels: bool = False, label: int | None = None) -> Tensor:
    """Generate data from latents sampled from the prior.

    Args:
        vae: a ready-made program of images, tables or words.
        num_samples: how many.
        pixels: sample the pixels from p(x|z), which gives samples of p(x); otherwise return their means E[x|z].
        label: the class y of samples from p(x | y), for a program that takes labels. If None, a conditional program
            generates equally many data of each class, in the order of the classes.

    Returns:
        Samples or means (num_samples, D).

    Raises:
        ValueError: if `num_samples` is not positive, or the label is not a class.

    Example:
        >>> from pyro_gvae import CategoricalVAE
        >>> vae = CategoricalVAE(data_dim=6, num_latents=2, num_categories=3, hidden=(5,))
        >>> sample(vae, 4, pixels=True).unique()
        tensor([0., 1.])
    """
    at_least("num_samples", num_samples, 1)
    use, num_classes = use_of_labels(vae), getattr(vae, "num_classes", 0)
    if label is None and use is Labels.GIVEN:
        ends = [num_samples * (one + 1) // num_classes for one in range(num_classes)]
        counts = [end - start for start, end in zip([0, *ends], ends, strict=False)]
        parts = [_samples(vae, count, pixels, one) for one, count in enumerate(counts) if count]
        return torch.cat(parts)
    if label is not None and (use is Labels.UNUSED or not 0 <= label < num_classes):
        known = f"a label of 0 to {num_classes - 1}" if num_classes else "no label, since the program takes none"
        raise ValueError(f"Expected {known}, but found {label}.")
    return _samples(vae, num_samples, pixels, label)


def _samples(vae: VAE, num_samples: int, pixels: bool, label: int | None) -> Tensor:
    rows = torch.Size([num_samples])

    def new_axis(batch_shape: torch.Size) -> torch.Size:
        """Return the axis of samples, left of the plate "data", unless a site has it from the latents already."""
        return rows if len(batch_shape) == 1 else torch.Size()

    def place(name: str, site: Discrete) -> Tensor:
        return latent_of(name, site).value(site.sample(new_axis(site.batch_shape)))

    found = _observation(
        bind_pair(vae, *_any_datum(vae, label)).model, place, lambda _, fn: fn.sample(new_axis(fn.batch_shape))
    )
    images: Tensor = found.sample() if pixels else found.mean  # (num_samples, 1, D)
    return images.squeeze(1)


@torch.no_grad()
def pictured(vae: VAE, initial: VAE | None, data: AnyDataset) -> dict[str, Tensor]:
    """Make the images of a report: test images, their reconstructions before and after training, prior samples.

    Args:
        vae: the trained model.
        initial: the same model with its initial weights, if they are known.
        data: the data set that it was trained on.

    Returns:
        `inputs`, `reconstructions_start` (if known), `reconstructions_end` (R, D) and `samples` (M, D), as pixels in
        [0, 1].
    """
    rows = shown(vae, data, NUM_RECONSTRUCTIONS)
    start = {} if initial is None else {"reconstructions_start": reconstruct(initial, rows)}
    arrays = {
        "inputs": columns(rows)[0],
        **start,
        "reconstructions_end": reconstruct(vae, rows),
        "samples": sample(vae, NUM_SAMPLES),
    }
    return {name: vae.observation.to_pixels(x) for name, x in arrays.items()}


def digits_of(values: PerLatent) -> Tensor:
    """Concatenate the digits (..., N, K) of several latents of K categories, in the order of their names.

    Example:
        >>> digits_of({"z2": torch.ones(1, 2, 3), "z1": torch.zeros(1, 1, 3)}).shape
        torch.Size([1, 3, 3])
    """
    if not isinstance(values, dict):
        return values
    return torch.cat([values[name] for name in sorted(values, key=in_order)], -2)


def numbers_of(found: PerLatent) -> dict[str, Tensor]:
    """Convert the result of :func:`encode` to numbers by name: categories (B, N), and continuous values (B, L).

    A single latent is named "latent".

    Example:
        >>> numbers_of({"y": torch.eye(3).unsqueeze(1), "z": torch.ones(3, 2)})["y"].tolist()
        [[0], [1], [2]]
    """
    named = found if isinstance(found, dict) else {"latent": found}
    ordered = {name: named[name] for name in sorted(named, key=in_order)}
    return {name: values.argmax(-1) if values.dim() == 3 else values for name, values in ordered.items()}


def in_order(name: str) -> tuple[int, str]:
    """Return a key that sorts layers by their numbers: z2 before z10."""
    return len(name), name
