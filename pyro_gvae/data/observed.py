"""Convert grey images to the data of an observation, which a program observes."""

import torch

from ..models.observations import Observation
from .dataset import UNIT, Dataset, check_grey


def observed(data: Dataset, observation: Observation) -> Dataset:
    """Convert grey images to data of an observation: levels for "categorical" pixels, unchanged for the others.

    `observation.to_pixels` converts them back.

    Args:
        data: images in [0, 1].
        observation: the distribution family of the pixels.

    Returns:
        A new data set with its own `value_range` and without a teacher, which does not model the converted data; or
        `data` itself if nothing changes.

    Raises:
        ValueError: if the images would change, but are binarized dynamically: their grey values are probabilities.

    Example:
        >>> from pyro_gvae.models.observations import CategoricalObservation
        >>> grey = Dataset("grey", torch.tensor([[0.0, 0.5, 1.0]]), torch.ones(1, 3), (1, 3))
        >>> levels = observed(grey, CategoricalObservation(num_levels=4))
        >>> levels.train.tolist(), levels.value_range
        ([[0.0, 2.0, 3.0]], (0.0, 3.0))
    """
    check_grey(data.value_range)
    low, high = sorted(observation.from_pixels(torch.tensor(UNIT)).tolist())
    parts = [getattr(data, part) for part in data.parts]
    if (low, high) == UNIT and all(torch.equal(observation.from_pixels(x), x) for x in parts):
        return data
    if data.binarize == "dynamic":
        raise ValueError(
            f"Expected grey values as data of {type(observation).__name__}, but found those of dynamic "
            "binarization, which are probabilities of black and white. Try binarize='none' or binarize='threshold'."
        )
    return data.mapped(observation.from_pixels, value_range=(low, high), teacher=None)
