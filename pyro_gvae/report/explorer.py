"""Write the explorer of a run: one page that runs the trained networks, and needs neither internet nor server."""

import json
import math
import warnings
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import exact
from ..data.dataset import Dataset
from ..data.parts import shown_part
from ..data.sliced import AnyDataset
from ..distributions.codes import joint_codes
from ..evaluate.code_statistics import latent_statistics
from ..evaluate.importance import log_importance_weights
from ..models.base import VAE
from ..programs.modes import judging
from ..runs.folder import check_writable
from ..runtime.rng import own_randomness
from ..train.kept_data import as_dataset
from ..train.loaded import load_run
from ..train.trained import load_model, trained_models
from .arrays import Arrays
from .graphs import read_graph
from .layers import is_layered, lowest_layer
from .pages import EXPLORER, printable, write_page
from .rounding import MOST_NATS, round_models
from .tiles import Tiles, tiles
from .views import View, view_of

#: The numbers of test data that a page shows, and from which the use of categories is computed.
NUM_SHOWN, NUM_USED = 200, 2000
#: The most codes that a page decodes, and the most natural parameters of all of them.
MOST_CODES, MOST_NUMBERS = 2**14, 2**24
#: The most natural parameters in a table that replaces a decoder: 4 MiB in half precision.
MOST_IN_TABLE = 2**21
#: The most bytes of a page's arrays, compressed and as text; beyond it, weights are rounded to half precision.
MOST_BYTES = 5_500_000
#: The most categories of all latents together: each has a tile in the page, and a probability for each datum.
MOST_TILES = 4096
#: Codes that are drawn from a prior that has too many codes to list.
NUM_DRAWN = 256
NUM_PARTICLES = 100


class Shown(NamedTuple):
    """A model of a page.

    Args:
        name: its name in the page.
        vae: the model, on the CPU.
    """

    name: str
    vae: VAE


def write_explorer(
    run: Path | str, *, program: VAE | None = None, data_dir: Path = Path("data"), output: Path | None = None
) -> Path:
    """Write the explorer of a run folder of `train`, `compare` or `fit`.

    The page shows test data, the code that the encoder gives each, the exact posterior if all codes can be summed, and
    the decoder's output for every code; the page itself computes all values. It contains the first seed of each
    estimator, with a switch between estimators.

    Args:
        run: the run folder, finished or not.
        program: a program with your networks, into which the run's weights are loaded; by default the package builds
            it.
        data_dir: the folder of the data sets that have files.
        output: the page; by default explorer.html in the run folder.

    Returns:
        The path of the page.

    Raises:
        ValueError: if it is not a run folder of a program whose codes alone determine the pictures, or a network can
            neither be recorded nor replaced by a table.
        OSError: if the data files are absent.
    """
    run = Path(run)
    check_writable(run if output is None else output.parent)
    if output is not None and output.is_dir():
        raise ValueError(f"Expected the name of a page, but found the folder '{output}'. Try {output / EXPLORER}.")
    models, data = _trained(run, data_dir) if program is None else _of_code(run, program, data_dir)
    return explorer(
        models,
        shown_part(data, NUM_USED)[1],
        data.image_shape,
        vocabulary=data.vocabulary if isinstance(data, Dataset) else None,
        title=f"{printable(run.resolve().name)}: {data.name}",
        path=output or run / EXPLORER,
    )


def _of_code(run: Path, program: VAE, data_dir: Path) -> tuple[list[Shown], AnyDataset]:
    loaded = load_run(run, data_dir=data_dir)
    return [Shown(type(program).__name__, loaded.load_into(program).eval())], as_dataset(loaded.data)


def _trained(run: Path, data_dir: Path) -> tuple[list[Shown], AnyDataset]:
    first = {which.estimator: which for which in reversed(trained_models(run))}
    models, data = [], None
    for which in reversed(first.values()):
        trained = load_model(run, which.estimator, which.seed, data_dir=data_dir)
        data = data or trained.data  # all models have the same data
        if all(bool(weight.isfinite().all()) for weight in trained.vae.state_dict().values()):
            models.append(Shown(which.estimator if len(first) > 1 else trained.name, trained.vae))
        else:
            said = f"Expected finite weights, but found NaN or infinity in {trained.name}, which is left out."
            warnings.warn(said, RuntimeWarning, stacklevel=3)
    if not models or data is None:
        raise ValueError(
            f"Expected a trained model with finite weights in '{run}', but found none. Try again when "
            "a cell has finished."
        )
    return models, data


def explorer_if_possible(run: Path, *, data_dir: Path = Path("data")) -> Path | None:
    """Write the explorer of a run beside its report, or return None if its models or data cannot be shown in a page."""
    try:
        return write_explorer(run, data_dir=data_dir)
    except (ValueError, OSError):
        return None


def explorer(
    models: Iterable[Shown],
    data: Tensor,
    image_shape: tuple[int, int],
    *,
    title: str,
    path: Path,
    vocabulary: Sequence[str] | None = None,
) -> Path:
    """Write the explorer of models of the same data.

    Args:
        models: one or more. Of several layers of codes, the page shows the lowest, with the others summed in its prior.
        data: data (M, D); the page shows the first 200, and computes the use of categories from all.
        image_shape: (H, W) with H * W = D; (1, D) of tables and counts of words.
        title: the title of the page.
        path: the path of the page.
        vocabulary: the D words that are counted in data of the observation "multinomial".

    Returns:
        The path.

    Raises:
        ValueError: if there is no model, the data are not of that shape, or a model's observation, networks or numbers
            cannot be shown.

    Example:
        >>> import tempfile
        >>> from pyro_gvae import CategoricalVAE
        >>> vae = CategoricalVAE(data_dim=6, num_latents=2, num_categories=3, hidden=(5,))
        >>> path = Path(tempfile.mkdtemp()) / "explorer.html"
        >>> explorer([Shown("mine", vae)], torch.ones(4, 6), (2, 3), title="An untrained model", path=path) == path
        True
    """
    models = [Shown(_named(one), lowest_layer(one.vae)) for one in models]
    if not models:
        raise ValueError("Expected one model or more, but found none.")
    if data.dim() != 2 or not len(data) or data.shape[1] != math.prod(image_shape):
        raise ValueError(f"Expected images (M, H * W) of shape {tuple(image_shape)}, but found {tuple(data.shape)}.")
    store, data = Arrays(), data.detach()
    view = view_of(models[0].vae, image_shape, vocabulary)
    described = [
        _described(shown.vae, shown.name, data.to(next(shown.vae.parameters())), view, store) for shown in models
    ]
    payload = {"models": described, "view": {"kind": view.kind} | view.described, "width": data.shape[1]}
    payload |= {"data": store.put(data[:NUM_SHOWN]), "count": min(len(data), NUM_SHOWN)}
    too_large = store.num_bytes() > MOST_BYTES
    rounded = round_models(models, described, data[:NUM_SHOWN], store) if too_large else None
    try:
        text = json.dumps(payload, allow_nan=False)
    except ValueError as error:
        raise ValueError(
            "Expected models of finite numbers, but found NaN or infinity, as after diverged training."
        ) from error
    return write_page(
        path,
        "explorer.html.j2",
        title=title,
        view=view.kind,
        models=[shown.name for shown in models],
        # "<" could end the element that holds it.
        payload=text.replace("<", "\\u003c"),
        arrays=store.as_text(),
        rounded=rounded,
        most_nats=MOST_NATS,
    )


def _named(shown: Shown) -> str:
    """Return the name of a model in the page, with the layer that is shown if there are several."""
    return f"{shown.name}, lowest layer" if is_layered(shown.vae) else shown.name


@judging
@torch.no_grad()
def _described(vae: VAE, name: str, data: Tensor, view: View, store: Arrays) -> dict[str, Any]:
    """Describe a model: its sizes, its networks or the tables that replace them, and statistics of its codes."""
    code = tiles(vae)
    sizes = code.num_latents, code.num_categories
    if code.num_latents * code.num_categories > MOST_TILES:
        raise ValueError(
            f"Expected at most {MOST_TILES} categories in all latents together, since each has a tile in the page, "
            f"but found {code.num_latents} latents of {code.num_categories}."
        )
    num_codes = code.num_categories**code.num_latents
    is_summed = num_codes <= MOST_CODES and num_codes * vae.natural_dim <= MOST_NUMBERS
    first = data[:NUM_SHOWN]
    log_q = torch.cat([code.guide(part) for part in data.split(1000)])
    statistics = latent_statistics(log_q)
    one_hots = joint_codes(*sizes, 0, 1, dtype=code.log_prior.dtype)
    decoder, guide = read_graph(code.decoder, one_hots, store), read_graph(code.guide, first[:1], store)
    return {
        "name": name,
        "latents": code.num_latents,
        "categories": code.num_categories,
        "summed": is_summed,
        "temperature": vae.temperature.item(),
        "natural": vae.natural_dim,
        "prior": code.log_prior.flatten().tolist(),
        **_coupled_prior(code, store, is_summed=is_summed),
        **_scores(vae, code.decoder(one_hots), first[:1], view, store),
        "guide": guide,
        "posteriors": store.put(log_q[:NUM_SHOWN]) if guide is None else None,
        "decoder": decoder,
        "table": _table(vae, code, store) if decoder is None else None,
        "usage": log_q.exp().mean(0).flatten().tolist(),
        "information": statistics.mutual_information.tolist(),
        "elbo": _elbos(vae, first, is_summed=is_summed).tolist(),
    }


def _scores(vae: VAE, natural: Tensor, x: Tensor, view: View, store: Arrays) -> dict[str, Any]:
    """Describe log p(x | z) = coefficients . T(x) - A + h(x), and what the page draws from it and from a datum."""
    functions: dict[str, tuple[Callable[[Tensor], Tensor], Tensor]] = {
        "coefficients": (lambda eta: vae.observation(eta).coefficients, natural),
        "normalizer": (lambda eta: vae.observation(eta).log_normalizer(), natural),
        "statistics": (vae.observation(natural).sufficient_statistics, x),
        "base": (vae.observation(natural).log_base_measure, x),
        "shown": (view.of_natural(vae), natural),
        "datum": (view.of_datum(vae), x),
    }
    found = {part: read_graph(function, example, store) for part, (function, example) in functions.items()}
    for part, graph in found.items():
        if graph is None:
            raise ValueError(
                f"Expected an observation made of operations that a page can compute, but found a "
                f"{type(vae.observation).__name__}, whose {part} uses others."
            )
    return found


def _coupled_prior(code: Tiles, store: Arrays, *, is_summed: bool) -> dict[str, Any]:
    """Describe a prior of dependent digits: log p(z) of all codes, or as a function, with codes that are drawn here."""
    if code.prior is None:
        return {"joint_prior": None, "log_prior": None}
    if is_summed:
        return {"joint_prior": store.put(code.prior.log_prob(code.prior.all_codes())), "log_prior": None}
    graph = read_graph(code.prior.log_prob, code.prior.draw(1), store)
    if graph is None:
        raise ValueError(
            f"Expected a prior made of operations that a page can compute, or at most {MOST_CODES:,} codes, whose "
            f"probabilities it could hold, but found a {type(code.prior).__name__} of "
            f"{code.num_categories}^{code.num_latents} codes."
        )
    with own_randomness(0):
        drawn = code.prior.draw(NUM_DRAWN).argmax(-1)
    return {"joint_prior": None, "log_prior": graph, "drawn": drawn.tolist()}


def _table(vae: VAE, code: Tiles, store: Arrays) -> list[int]:
    """Decode all codes, since the page cannot run this decoder."""
    sizes = code.num_latents, code.num_categories
    most = min(MOST_CODES, MOST_IN_TABLE // vae.natural_dim)
    if code.num_categories**code.num_latents > most:
        raise ValueError(
            f"Expected a decoder made of operations that a page can compute, or at most {most} codes, for which a "
            f"table would replace it, but found a {type(code.decoder).__name__} and "
            f"{code.num_categories}^{code.num_latents} codes."
        )
    one_hots = joint_codes(*sizes, dtype=code.log_prior.dtype)
    return store.put(torch.cat([code.decoder(part) for part in one_hots.split(1024)]), is_weight=True)


def _elbos(vae: VAE, x: Tensor, *, is_summed: bool) -> Tensor:
    if is_summed:
        return exact.bounds(vae, x).elbo
    with own_randomness(0):
        return log_importance_weights(vae, x, NUM_PARTICLES).mean(0)
