"""Write the explorer of a run: one page that runs the trained networks, and needs neither network nor server."""

import json
import math
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .. import exact
from ..data.parts import shown_part
from ..distributions.coupled import CodePrior
from ..evaluate.code_statistics import guide_log_probs, latent_statistics
from ..evaluate.importance import log_importance_weights
from ..models.base import VAE
from ..models.observations import (
    BernoulliObservation,
    CategoricalObservation,
    ContinuousBernoulliObservation,
    GaussianObservation,
    Observation,
)
from ..programs.modes import judging
from ..runs.folder import check_writable
from ..runtime.rng import own_randomness
from ..train.trained import load_model, trained_models
from .arrays import Arrays
from .layers import Layer, read_layers
from .pages import EXPLORER, printable, write_page
from .tiles import Tiles, tiles

#: Test images that a page shows, and those from which the use of categories is computed.
NUM_IMAGES, NUM_USED = 200, 2000
#: The most codes that a page decodes, and the most numbers that it keeps of them.
MOST_CODES, MOST_NUMBERS = 2**14, 2**24
#: The most bytes of a page's arrays, compressed and as text; above, weights are rounded to half precision.
MOST_BYTES = 5_500_000
#: The most categories of all latents together: each has a picture in the page, and a probability for each datum.
MOST_TILES = 4096
NUM_PARTICLES = 100

_OBSERVATIONS: dict[type[Observation], str] = {
    BernoulliObservation: "bernoulli",
    ContinuousBernoulliObservation: "continuous_bernoulli",
    GaussianObservation: "gaussian",
    CategoricalObservation: "categorical",
}


class Shown(NamedTuple):
    """A model of a page.

    Args:
        name: as the page lists it.
        vae: the model, on the CPU.
    """

    name: str
    vae: VAE


def write_explorer(run: Path, *, data_dir: Path = Path("data"), output: Path | None = None) -> Path:
    """Write the explorer of a run folder of `train` or `compare`.

    The page shows test images, the code that the encoder gives each, the exact posterior where all codes can be summed,
    and the decoder's picture of every code, with values that are computed in the page. Of several seeds it has the
    first, of several estimators all, with a switch.

    Args:
        run: the run folder, finished or not.
        data_dir: the folder of the data sets that have files.
        output: the page; by default explorer.html in the run folder.

    Returns:
        The path of the page.

    Raises:
        ValueError: if it is not a run folder of `CategoricalVAE` or `BernoulliVAE`, or a network can neither be read
            nor be replaced by a table.
        OSError: if the data files are absent.
    """
    check_writable(run if output is None else output.parent)
    if output is not None and output.is_dir():
        raise ValueError(f"Expected the name of a page, but found the folder '{output}'. Try {output / EXPLORER}.")
    first = {which.estimator: which for which in reversed(trained_models(run))}
    models, data = [], None
    for which in reversed(first.values()):
        trained = load_model(run, which.estimator, which.seed, data_dir=data_dir)
        data = data or trained.data  # all have the same, of which one is kept
        if all(bool(weight.isfinite().all()) for weight in trained.vae.state_dict().values()):
            models.append(Shown(which.estimator if len(first) > 1 else trained.name, trained.vae))
        else:
            said = f"Expected finite weights, but found others in {trained.name}, which the page leaves out."
            warnings.warn(said, RuntimeWarning, stacklevel=2)
    if not models or data is None:
        raise ValueError(
            f"Expected a trained model of finite weights in '{run}', but found none. Try again when "
            "a cell has finished."
        )
    return explorer(
        models,
        shown_part(data, NUM_USED)[1],
        data.image_shape,
        title=f"{printable(run.resolve().name)}: {data.name}",
        path=output or run / EXPLORER,
    )


def explorer_if_possible(run: Path, *, data_dir: Path = Path("data")) -> Path | None:
    """Write the explorer of a run beside its report, or return None if its models or data cannot be shown in a page."""
    try:
        return write_explorer(run, data_dir=data_dir)
    except (ValueError, OSError):
        return None


def explorer(models: Iterable[Shown], images: Tensor, image_shape: tuple[int, int], *, title: str, path: Path) -> Path:
    """Write the explorer of models of the same data.

    Args:
        models: one or more.
        images: data (M, D); the page shows the first 200, and use of categories is that of all.
        image_shape: (H, W) with H * W = D.
        title: of the page.
        path: of the page.

    Returns:
        The path.

    Raises:
        ValueError: if there is no model, the data are no images of that shape, or a model's observation, networks or
            numbers cannot be shown.

    Example:
        >>> import tempfile
        >>> from pyro_gvae import CategoricalVAE
        >>> vae = CategoricalVAE(data_dim=6, num_latents=2, num_categories=3, hidden=(5,))
        >>> path = Path(tempfile.mkdtemp()) / "explorer.html"
        >>> explorer([Shown("mine", vae)], torch.ones(4, 6), (2, 3), title="An untrained model", path=path) == path
        True
    """
    models = list(models)
    if not models:
        raise ValueError("Expected one model or more, but found none.")
    if images.dim() != 2 or not len(images) or images.shape[1] != math.prod(image_shape):
        raise ValueError(f"Expected images (M, H * W) of shape {tuple(image_shape)}, but found {tuple(images.shape)}.")
    store = Arrays()
    images = images.detach()
    described = [_described(shown.vae, shown.name, images.to(next(shown.vae.parameters())), store) for shown in models]
    shown = store.put(images[:NUM_IMAGES])
    rounded = store.round_weights() if store.num_bytes() > MOST_BYTES else None
    payload = {"models": described, "images": shown, "count": min(len(images), NUM_IMAGES)}
    payload |= {"height": image_shape[0], "width": image_shape[1]}
    try:
        text = json.dumps(payload, allow_nan=False)
    except ValueError as error:
        raise ValueError(
            "Expected models of finite numbers, but found others, as after training that diverged."
        ) from error
    return write_page(
        path,
        "explorer.html.j2",
        title=title,
        models=[shown.name for shown in models],
        # "<" could end the element that holds it.
        payload=text.replace("<", "\\u003c"),
        arrays=store.as_text(),
        rounded=rounded,
    )


@judging
@torch.no_grad()
def _described(vae: VAE, name: str, images: Tensor, store: Arrays) -> dict[str, Any]:
    """Describe a model: its sizes, its networks or tables in their place, and what is known of its codes."""
    kind = _OBSERVATIONS.get(type(vae.observation))
    if kind is None:
        raise ValueError(
            f"Expected an observation among {', '.join(_OBSERVATIONS.values())}, but found a "
            f"{type(vae.observation).__name__}, whose formula the page does not have."
        )
    code = tiles(vae)
    if code.num_latents * code.num_categories > MOST_TILES:
        raise ValueError(
            f"Expected at most {MOST_TILES} categories of all latents together, each of which has a picture in the "
            f"page, but found {code.num_latents} latents of {code.num_categories}."
        )
    num_codes = code.num_categories**code.num_latents
    is_summed = num_codes <= MOST_CODES and num_codes * vae.natural_dim <= MOST_NUMBERS
    first = images[:NUM_IMAGES]
    log_q = guide_log_probs(vae, images)
    assert isinstance(log_q, Tensor)  # of its one latent
    statistics = latent_statistics(log_q)
    decoder = read_layers(code.decoder, code.code(torch.zeros_like(code.log_prior).unsqueeze(0)))
    encoder = read_layers(code.encoder, first[:1])
    return {
        "name": name,
        "latents": code.num_latents,
        "categories": code.num_categories,
        "summed": is_summed,
        "observation": kind,
        "scale": vae.observation.log_scale.exp().item() if isinstance(vae.observation, GaussianObservation) else None,
        "levels": vae.observation.natural_per_pixel,
        "temperature": vae.temperature.item(),
        "prior": code.log_prior.flatten().tolist(),
        "joint_prior": None if code.prior is None else _joint_prior(code.prior, store, is_summed=is_summed),
        "encoder": None if encoder is None else _placed([*encoder, *code.after_encoder], store),
        "posteriors": store.put(log_q[:NUM_IMAGES]) if encoder is None else None,
        "decoder": None if decoder is None else _placed([*code.before_decoder, *decoder], store),
        "table": _table(vae, code, store, is_summed=is_summed) if decoder is None else None,
        "usage": log_q.exp().mean(0).flatten().tolist(),
        "information": statistics.mutual_information.tolist(),
        "elbo": _elbos(vae, first, is_summed=is_summed).tolist(),
    }


def _placed(layers: list[Layer], store: Arrays) -> list[dict[str, Any]]:
    return [
        {"kind": layer.kind} | layer.numbers | {name: store.put(w, is_weight=True) for name, w in layer.weights.items()}
        for layer in layers
    ]


def _joint_prior(prior: CodePrior, store: Arrays, *, is_summed: bool) -> list[int]:
    """Return log p(z) of all codes, since the page knows no prior but that of independent digits."""
    if not is_summed:
        raise ValueError(
            f"Expected a prior of independent digits, or at most {MOST_CODES:,} codes, whose probabilities the page "
            f"could hold, but found a {type(prior).__name__} of {prior.num_categories}^{prior.num_latents} codes."
        )
    return store.put(prior.log_prob(prior.all_codes()))


def _table(vae: VAE, code: Tiles, store: Arrays, *, is_summed: bool) -> list[int]:
    """Decode all codes, since the page cannot run this decoder."""
    if not is_summed:
        most = min(MOST_CODES, MOST_NUMBERS // vae.natural_dim)
        raise ValueError(
            f"Expected a decoder whose layers the page knows (linear, convolutions, norms, usual activations, one "
            f"after another), or at most {most} codes, whose pictures it could hold, but found a "
            f"{type(code.decoder).__name__} and {code.num_categories}^{code.num_latents} codes."
        )
    codes = torch.cartesian_prod(*[torch.arange(code.num_categories)] * code.num_latents).reshape(-1, code.num_latents)
    one_hots = nn.functional.one_hot(codes, code.num_categories).to(code.log_prior.dtype)
    return store.put(torch.cat([code.decoder(code.code(part)) for part in one_hots.split(1024)]), is_weight=True)


def _elbos(vae: VAE, x: Tensor, *, is_summed: bool) -> Tensor:
    if is_summed:
        return exact.bounds(vae, x).elbo
    with own_randomness(0):
        return log_importance_weights(vae, x, NUM_PARTICLES).mean(0)
