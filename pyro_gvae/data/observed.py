"""Grey images as data of an observation: the one place where they become what a program observes."""

from dataclasses import replace

import torch

from ..models.observations import Observation
from .dataset import UNIT, Dataset, check_grey


def observed(data: Dataset, observation: Observation) -> Dataset:
    """Makes data of an observation of grey images: levels for "categorical" pixels, and the same for the others.

    `observation.to_pixels` shows them again.

    Args:
        data: images in [0, 1].
        observation: what they are to be data of.

    Returns:
        A new data set with another `value_range`, and without a teacher, of whose data these are a function; `data`
        itself where they are such data as they stand.

    Raises:
        ValueError: where images are binarized anew for every batch, and these would be other data than they are.

    Example:
        >>> from pyro_gvae.models.observations import CategoricalObservation
        >>> grey = Dataset("grey", torch.tensor([[0.0, 0.5, 1.0]]), torch.ones(1, 3), (1, 3))
        >>> levels = observed(grey, CategoricalObservation(num_levels=4))
        >>> levels.train.tolist(), levels.value_range
        ([[0.0, 2.0, 3.0]], (0.0, 3.0))
    """
    check_grey(data.value_range)
    train, test = (observation.from_pixels(x) for x in (data.train, data.test))
    low, high = sorted(observation.from_pixels(torch.tensor(UNIT)).tolist())
    if (low, high) == UNIT and torch.equal(train, data.train) and torch.equal(test, data.test):
        return data
    if data.binarize == "dynamic":
        raise ValueError(
            f"Expected grey values that are data of {type(observation).__name__}, but found those of dynamic "
            "binarization, which are probabilities of black and white. Try binarize='none' or 'threshold'."
        )
    return replace(data, train=train, test=test, value_range=(low, high), teacher=None)
