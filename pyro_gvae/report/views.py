"""How a page shows data and their distributions: as pictures, the columns of a table, or words."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from torch import Tensor

from ..evaluate.predictive import moments
from ..models.base import VAE
from ..models.observations import MultinomialObservation
from ..models.table import TableObservation

Function = Callable[[Tensor], Tensor]


class View(NamedTuple):
    """How a page shows data.

    Args:
        kind: "image", "table" or "words".
        described: further settings for the page.
        of_natural: a model -> the function from natural parameters (B, ..) to what the page draws for a distribution.
        of_datum: a model -> the function from data (B, D) to what the page draws for a datum.
    """

    kind: str
    described: dict[str, Any]
    of_natural: Callable[[VAE], Function]
    of_datum: Callable[[VAE], Function]


def view_of(vae: VAE, image_shape: tuple[int, int], vocabulary: Sequence[str] | None) -> View:
    """Choose how to show the data of a model, by its observation.

    Args:
        vae: the model.
        image_shape: (H, W); counts are shown as pictures if H > 1.
        vocabulary: the words that are counted; without them, words are numbered.

    Raises:
        ValueError: if there are more or fewer words than counts.

    Example:
        >>> from pyro_gvae import CategoricalVAE
        >>> vae = CategoricalVAE(2, 1, 2, (3,), observation="multinomial")
        >>> view_of(vae, (1, 2), ("tea", "rose")).kind, view_of(vae, (2, 1), None).kind
        ('words', 'image')
    """
    observation, width = vae.observation, vae.data_dim
    if isinstance(observation, TableObservation):
        if all(column.kind == "word" for column in observation.columns):
            return View(
                "words", {"words": [column.name for column in observation.columns], "known": True}, _shares, _as_it_is
            )
        return View("table", {"columns": [column._asdict() for column in observation.columns]}, _moments, _as_it_is)
    if isinstance(observation, MultinomialObservation) and (vocabulary is not None or image_shape[0] == 1):
        words = [f"word {place + 1}" for place in range(width)] if vocabulary is None else list(vocabulary)
        if len(words) != width:
            raise ValueError(f"Expected {width} words, one for each count of a datum, but found {len(words)}.")
        return View("words", {"words": words, "known": vocabulary is not None}, _means, _as_it_is)
    black_and_white = vae.observation.from_pixels(next(vae.parameters()).new_tensor([0.0, 1.0])).tolist()
    described = {"height": image_shape[0], "width": image_shape[1], "black": black_and_white[0]}
    return View("image", described | {"white": black_and_white[1]}, _pixels, lambda vae: vae.observation.to_pixels)


def _moments(vae: VAE) -> Function:
    def function(natural: Tensor) -> Tensor:
        row: Any = vae.observation(natural)
        assert isinstance(vae.observation, TableObservation)
        return moments(row, vae.observation.columns)

    return function


def _shares(vae: VAE) -> Function:
    def function(natural: Tensor) -> Tensor:
        means = vae.observation(natural).mean  # of rows of a typical length
        return means / means.sum(-1, keepdim=True)

    return function


def _means(vae: VAE) -> Function:
    return lambda natural: vae.observation(natural).mean


def _pixels(vae: VAE) -> Function:
    return lambda natural: vae.observation.to_pixels(vae.observation(natural).mean)


def _as_it_is(vae: VAE) -> Function:
    return lambda x: x
