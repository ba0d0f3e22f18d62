"""Observations: modules that build p(x | z) from what a decoder returns, one class for each family."""

import inspect
import math
from abc import ABC, abstractmethod
from typing import Any, final

import torch
from torch import Tensor, nn

from ..distributions.bernoulli import Bernoulli, ContinuousBernoulli
from ..distributions.exponential_family import ExponentialFamily
from ..distributions.observations import CategoricalPixels, Gaussian


class Observation(nn.Module, ABC):
    """Abstract base: builds the distribution of a datum, and knows which data it is of.

    A new family is a class that says how `forward` builds its distribution, and whatever else of this differs from
    grey pixels in [0, 1]; its options are the arguments of its constructor, all with defaults. `CategoricalVAE` takes
    an instance, or the name of a row in `OBSERVATIONS`.

    Attributes:
        natural_per_pixel: natural parameters of each of the D values of a datum.
        data_range: the smallest and the largest value that a datum may have.
        expected: which data these are, in words that follow "Expected data".

    Example:
        >>> natural = torch.zeros(5, 64)  # of a decoder
        >>> BernoulliObservation()(natural).log_prob(torch.ones(5, 64)).shape
        torch.Size([5])
    """

    natural_per_pixel: int = 1
    data_range: tuple[float, float] = (0.0, 1.0)
    expected: str = "in [0, 1]"

    def __init__(self) -> None:
        super().__init__()

    @abstractmethod
    def forward(self, natural: Tensor) -> ExponentialFamily:
        """Builds p(x | z) from natural parameters (..., D * natural_per_pixel), with event shape (D,)."""

    def check(self, x: Tensor, name: str = "data") -> None:
        """Refuses data of any shape to which the family gives no density.

        Args:
            x: data.
            name: what to call them in the sentence.

        Raises:
            ValueError: where a value is NaN or out of the family's range.

        Example:
            >>> CategoricalObservation(num_levels=4).check(torch.tensor([0.5, 3.0]))
            Traceback (most recent call last):
            ValueError: Expected data of whole numbers 0 to 3, but found values from 0.5 to 3. Try to rescale...
        """
        if not bool(self._holds(x)):
            low, high = (bound.item() for bound in x.aminmax())
            raise ValueError(
                f"Expected {name} {self.expected}, but found values from {low:g} to {high:g}. Try to rescale them, or "
                f"another observation than {type(self).__name__}."
            )

    def _holds(self, x: Tensor) -> Tensor:
        """Whether x are data of the family, a truth value of shape ()."""
        low, high = self.data_range
        lowest, highest = x.aminmax()
        return (lowest >= low) & (highest <= high)  # False where there is a NaN

    def from_pixels(self, pixels: Tensor) -> Tensor:
        """Makes data of grey pixels in [0, 1], 0 black and 1 white: they are such data as they stand."""
        return pixels

    def to_pixels(self, x: Tensor) -> Tensor:
        """Shows data, or their means, as grey pixels in [0, 1], of the same shape."""
        return x


@final
class BernoulliObservation(Observation):
    """Black and white pixels in {0, 1}, or grey ones by the customary cross-entropy.

    See :class:`~pyro_gvae.distributions.bernoulli.Bernoulli`.
    """

    def forward(self, natural: Tensor) -> ExponentialFamily:
        """Builds the distribution from log-odds (..., D)."""
        return Bernoulli(natural)


@final
class ContinuousBernoulliObservation(Observation):
    """Grey pixels in [0, 1], by a density.

    See :class:`~pyro_gvae.distributions.bernoulli.ContinuousBernoulli`.
    """

    def forward(self, natural: Tensor) -> ExponentialFamily:
        """Builds the distribution from log-odds (..., D)."""
        return ContinuousBernoulli(natural)


@final
class GaussianObservation(Observation):
    """Real numbers with normal noise of one scale around the decoder's output.

    See :class:`~pyro_gvae.distributions.observations.Gaussian`. Shown as pixels, what lies below 0 is
    black and what lies above 1 is white.

    Args:
        scale: the standard deviation; None learns it, beginning with 1.

    Raises:
        ValueError: if the scale is not a positive number.
    """

    data_range = (-torch.finfo(torch.float32).max, torch.finfo(torch.float32).max)
    expected = "of finite numbers"
    log_scale: Tensor

    def __init__(self, scale: float | None = None) -> None:
        super().__init__()
        if scale is not None and not 0 < scale < math.inf:
            raise ValueError(f"Expected a positive scale, but found {scale}. Try scale=None, which learns one.")
        log_scale = torch.tensor(math.log(scale or 1.0))
        if scale is None:
            self.log_scale = nn.Parameter(log_scale)
        else:
            self.register_buffer("log_scale", log_scale)

    def forward(self, natural: Tensor) -> ExponentialFamily:
        """Builds the distribution from means (..., D)."""
        return Gaussian(natural, self.log_scale.exp())

    def to_pixels(self, x: Tensor) -> Tensor:
        """Shows real numbers as grey pixels, those out of [0, 1] as black or white."""
        return x.clamp(0, 1)


@final
class CategoricalObservation(Observation):
    """Pixels of L levels, whole numbers 0 to L - 1, each level with its own logit.

    See :class:`~pyro_gvae.distributions.observations.CategoricalPixels`. Level 0 is black, level
    L - 1 is white, and those between are equally spaced: a grey pixel takes the nearest level.

    Args:
        num_levels: L.

    Raises:
        ValueError: if there are fewer than two levels.

    Example:
        >>> sixteen = CategoricalObservation(num_levels=16)
        >>> sixteen.from_pixels(torch.tensor([0.0, 0.45, 1.0]))
        tensor([ 0.,  7., 15.])
        >>> sixteen.to_pixels(torch.tensor([0, 3, 15]))
        tensor([0.0000, 0.2000, 1.0000])
    """

    def __init__(self, num_levels: int = 256) -> None:
        super().__init__()
        if num_levels < 2:
            raise ValueError(f"Expected num_levels of at least 2, but found {num_levels}.")
        self.natural_per_pixel = num_levels
        self.data_range = 0.0, num_levels - 1.0
        self.expected = f"of whole numbers 0 to {num_levels - 1}"

    def forward(self, natural: Tensor) -> ExponentialFamily:
        """Builds the distribution from logits (..., D * L), the L logits of a pixel beside each other."""
        return CategoricalPixels(natural, self.natural_per_pixel)

    def _holds(self, x: Tensor) -> Tensor:
        return super()._holds(x) & (x == x.round()).all()

    def from_pixels(self, pixels: Tensor) -> Tensor:
        """Takes the nearest level of each grey pixel, as a floating-point number."""
        return (pixels * (self.natural_per_pixel - 1)).round()

    def to_pixels(self, x: Tensor) -> Tensor:
        """Shows levels, or their means, as grey pixels."""
        return x / (self.natural_per_pixel - 1)


#: name -> family; `config/names.py` lists the names for the command line.
OBSERVATIONS: dict[str, type[Observation]] = {
    "bernoulli": BernoulliObservation,
    "continuous-bernoulli": ContinuousBernoulliObservation,
    "gaussian": GaussianObservation,
    "categorical": CategoricalObservation,
}


def as_observation(observation: str | Observation, **options: Any) -> Observation:
    """Makes an observation that has a name; a module is taken as it is.

    Args:
        observation: one of `OBSERVATIONS`, or a module.
        **options: of any family's constructor. Those of other families may stand at their defaults, so that a caller
            can hold the options of all.

    Raises:
        ValueError: if there is no such name, the observation has no such option, or an option is out of its range.

    Example:
        >>> as_observation("categorical", scale=None, num_levels=16).natural_per_pixel
        16
        >>> as_observation("bernoulli", scale=0.1)
        Traceback (most recent call last):
        ValueError: Expected no scale for the observation 'bernoulli', but found scale=0.1. Try without it.
    """
    known: dict[str, Any] = {}
    for family in OBSERVATIONS.values():
        known |= _defaults(family)
    given = {option: value for option, value in options.items() if option not in known or value != known[option]}
    if isinstance(observation, Observation):
        for option, value in given.items():
            raise ValueError(
                f"Expected the options of a module in its constructor, but found {option}={value} beside it. Try "
                f"{type(observation).__name__}({option}={value})."
            )
        return observation
    if observation not in OBSERVATIONS:
        raise ValueError(f"Expected an observation among {', '.join(OBSERVATIONS)}, but found '{observation}'.")
    own = _defaults(OBSERVATIONS[observation])
    for option in given.keys() - own.keys():
        raise ValueError(
            f"Expected no {option} for the observation '{observation}', but found {option}={given[option]}. Try "
            "without it."
        )
    return OBSERVATIONS[observation](**{option: options[option] for option in options.keys() & own.keys()})


def _defaults(family: type[Observation]) -> dict[str, Any]:
    """A family's options as it has them if not given."""
    return {name: parameter.default for name, parameter in inspect.signature(family).parameters.items()}
