"""Fit a distribution without a code to data, each pixel, word or column by itself: the least that a model must beat."""

import copy

import torch
from torch import Tensor

from ..distributions.blocks import BinaryBlock, CategoricalBlock, CountBlock, GaussianBlock, WordBlock
from ..distributions.exponential_family import ExponentialFamily
from ..distributions.observations import Gaussian
from ..models.observations import (
    BernoulliObservation,
    CategoricalObservation,
    ContinuousBernoulliObservation,
    GaussianObservation,
    MultinomialObservation,
    Observation,
)
from ..models.table import LEAST_SCALE, TableObservation

#: What is added to the count of each level, so that levels without training data have a finite log-probability.
PSEUDO_COUNT = 0.5
#: Halvings of the interval in which the log-odds of a continuous Bernoulli are searched, and its half length.
HALVINGS, MOST_LOG_ODDS = 40, 500.0
#: The least and the most dispersion of counts.
DISPERSIONS = (1e-3, 1e6)


@torch.no_grad()
def independent(observation: Observation, x: Tensor) -> ExponentialFamily | None:
    """Fit a distribution without a code to data, with the family of an observation.

    The parameters of each value have the highest likelihood, but for half a count that is added to each level. The
    dispersion of counts follows from their mean and variance.

    Args:
        observation: the family; its own scales are not used if it learns them.
        x: data (M, D); NaN where the family allows missing values.

    Returns:
        The distribution of a datum, with event shape (D,); None for a family of your own.

    Example:
        >>> found = independent(BernoulliObservation(), torch.tensor([[1.0, 0.0], [1.0, 0.0], [1.0, 1.0]]))
        >>> found.mean
        tensor([0.8750, 0.3750])
    """
    count = len(x) + 2 * PSEUDO_COUNT
    match observation:
        case BernoulliObservation():
            return observation(((x.sum(0) + PSEUDO_COUNT) / count).logit())
        case ContinuousBernoulliObservation():
            return observation(_log_odds(observation, (x.sum(0) + PSEUDO_COUNT) / count))
        case GaussianObservation():
            learns = isinstance(observation.log_scale, torch.nn.Parameter)
            scale = (x - x.mean(0)).square().mean().sqrt() if learns else observation.log_scale.exp()
            return Gaussian(x.mean(0), scale.clamp_min(torch.finfo(scale.dtype).tiny))
        case CategoricalObservation():
            levels = observation.natural_per_pixel
            places = torch.arange(x.shape[1], device=x.device) * levels
            counts = torch.bincount((x.long() + places).flatten(), minlength=x.shape[1] * levels)
            return observation((counts + PSEUDO_COUNT).log())
        case MultinomialObservation():
            return observation((x.sum(0) + PSEUDO_COUNT).log())
        case TableObservation():
            return _row(copy.deepcopy(observation), x)
    return None


def independent_log_prob(observation: Observation, train: Tensor, x: Tensor) -> float | None:
    """Return the mean log-likelihood of data under the distribution that :func:`independent` fits to training data.

    Args:
        observation: the family.
        train: training data (M, D).
        x: data (B, D).

    Returns:
        Nats per datum; None if the family is unknown, or data have another shape.
    """
    if train.dim() != 2 or x.dim() != 2:
        return None
    fitted = independent(observation, train)
    return None if fitted is None else fitted.log_prob(x).double().mean().item()


def _log_odds(observation: Observation, mean: Tensor) -> Tensor:
    """Find the log-odds whose distribution has a mean, which rises with them."""
    low, high = torch.full_like(mean, -MOST_LOG_ODDS), torch.full_like(mean, MOST_LOG_ODDS)
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        is_below = observation(middle).mean < mean
        low, high = torch.where(is_below, middle, low), torch.where(is_below, high, middle)
    return (low + high) / 2


def _row(observation: TableObservation, x: Tensor) -> ExponentialFamily:
    """Fit each column of a table to its known cells; this changes the observation's scales."""
    parts: list[Tensor] = []
    for block in observation.blocks():
        cells = x.index_select(-1, block.places)
        kept = ~cells.isnan()
        cells, count = torch.where(kept, cells, 0.0), kept.sum(0)
        mean = cells.sum(0) / count.clamp_min(1)
        variance = torch.where(kept, cells - mean, 0.0).square().sum(0) / count.clamp_min(1)
        match block:
            case BinaryBlock():
                parts.append(((cells.sum(0) + PSEUDO_COUNT) / (count + 2 * PSEUDO_COUNT)).logit())
            case CategoricalBlock():
                parts.append((block.one_hots(cells, kept).sum(0) + PSEUDO_COUNT).log())
            case GaussianBlock():
                parts.append(mean)
                observation.log_scale.copy_((variance - LEAST_SCALE**2).clamp_min(LEAST_SCALE**4).log() / 2)
            case CountBlock():
                mean = mean.clamp_min(torch.finfo(mean.dtype).tiny)
                parts.append(mean.log())
                dispersion = mean.square() / (variance - mean).clamp_min(torch.finfo(mean.dtype).tiny)
                observation.log_dispersion.copy_(dispersion.clamp(*DISPERSIONS).log())
            case WordBlock():
                parts.append((cells.sum(0) + PSEUDO_COUNT).log())
    natural, means = torch.cat(parts), observation.log_means().to(x.dtype)
    natural[len(natural) - len(means) :] -= means  # which the observation adds
    return observation(natural)
