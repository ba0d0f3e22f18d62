"""Define observations: modules that build p(x | z) from the decoder's output, one class for each family."""

import inspect
import math
from abc import ABC, abstractmethod
from typing import Any, final

import torch
from torch import Tensor, nn

from ..distributions.bernoulli import Bernoulli, ContinuousBernoulli
from ..distributions.exponential_family import ExponentialFamily
from ..distributions.observations import CategoricalPixels, Gaussian, Multinomial
from ..runtime.arguments import KnowsArguments


class Observation(KnowsArguments, nn.Module, ABC):
    """Abstract base: builds the distribution of a datum, and describes the data.

    To add a family, write a class whose `forward` builds its distribution, and override the other members that differ
    from those for grey pixels in [0, 1]. Its options are the arguments of its constructor, all with defaults.
    `CategoricalVAE` takes an instance, or the name of a row in `OBSERVATIONS`.

    Attributes:
        natural_per_pixel: natural parameters per pixel.
        data_range: the smallest and the largest value that a datum may have.
        is_discrete: whether a datum consists of whole numbers.
        expected: description of the data, for error messages that begin with "Expected data".
        takes_missing: whether a datum may have missing values, NaN, which are integrated out.

    Example:
        >>> natural = torch.zeros(5, 64)  # of a decoder
        >>> BernoulliObservation()(natural).log_prob(torch.ones(5, 64)).shape
        torch.Size([5])
    """

    natural_per_pixel: int = 1
    data_range: tuple[float, float] = (0.0, 1.0)
    is_discrete: bool = False
    expected: str = "in [0, 1]"
    takes_missing: bool = False

    def __init__(self) -> None:
        super().__init__()

    @abstractmethod
    def forward(self, natural: Tensor) -> ExponentialFamily:
        """Build p(x | z) from natural parameters (..., D * natural_per_pixel), with event shape (D,)."""

    def check(self, x: Tensor, name: str = "data") -> None:
        """Refuse data that are outside the family's support.

        Args:
            x: data of any shape.
            name: name of the data in the error message.

        Raises:
            ValueError: if a value is NaN or out of range.

        Example:
            >>> CategoricalObservation(num_levels=4).check(torch.tensor([0.5, 3.0]))
            Traceback (most recent call last):
            ValueError: Expected data of whole numbers 0 to 3, but found values from 0.5 to 3. Try rescaling...
        """
        low, high = self.data_range
        lowest, highest = x.aminmax()
        is_valid = (lowest >= low) & (highest <= high)  # False if there is a NaN
        if self.is_discrete:
            is_valid &= (x == x.round()).all()
        if not bool(is_valid):
            raise ValueError(
                f"Expected {name} {self.expected}, but found values from {lowest.item():g} to {highest.item():g}. Try "
                f"rescaling them, or an observation other than {type(self).__name__}."
            )

    def natural_dim(self, data_dim: int) -> int:
        """Return the number of natural parameters of a datum of D values, which a decoder returns."""
        return data_dim * self.natural_per_pixel

    def input_dim(self, data_dim: int) -> int:
        """Return the number of inputs of an encoder for data of D values."""
        return data_dim

    def inputs(self, x: Tensor) -> Tensor:
        """Convert data (..., D) to the input of encoders. By default they are the same."""
        return x

    def from_pixels(self, pixels: Tensor) -> Tensor:
        """Convert grey pixels in [0, 1] (0 black, 1 white) to data of the family. By default they are the same."""
        return pixels

    def to_pixels(self, x: Tensor) -> Tensor:
        """Convert data, or their means, to grey pixels in [0, 1] of the same shape."""
        return x


@final
class BernoulliObservation(Observation):
    """Black and white pixels in {0, 1}, or grey pixels scored by the usual cross-entropy.

    See :class:`~pyro_gvae.distributions.bernoulli.Bernoulli`.
    """

    def forward(self, natural: Tensor) -> ExponentialFamily:
        """Build the distribution from log-odds (..., D)."""
        return Bernoulli(natural)


@final
class ContinuousBernoulliObservation(Observation):
    """Grey pixels in [0, 1], scored by a normalized density.

    See :class:`~pyro_gvae.distributions.bernoulli.ContinuousBernoulli`.
    """

    def forward(self, natural: Tensor) -> ExponentialFamily:
        """Build the distribution from log-odds (..., D)."""
        return ContinuousBernoulli(natural)


@final
class GaussianObservation(Observation):
    """Real numbers with Gaussian noise of a single scale around the decoder's output.

    See :class:`~pyro_gvae.distributions.observations.Gaussian`. As pixels, values below 0 are black and values above 1
    are white.

    Args:
        scale: the standard deviation; None learns it, starting at 1.

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
        """Build the distribution from means (..., D)."""
        return Gaussian(natural, self.log_scale.exp())

    def to_pixels(self, x: Tensor) -> Tensor:
        """Convert real numbers to grey pixels by clamping them to [0, 1]."""
        return x.clamp(0, 1)


@final
class CategoricalObservation(Observation):
    """Pixels of L levels, whole numbers 0 to L - 1, with one logit per level.

    See :class:`~pyro_gvae.distributions.observations.CategoricalPixels`. Level 0 is black, level L - 1 is white, and
    the levels between are equally spaced. A grey pixel is rounded to the nearest level.

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

    is_discrete = True

    def __init__(self, num_levels: int = 256) -> None:
        super().__init__()
        if num_levels < 2:
            raise ValueError(f"Expected num_levels of at least 2, but found {num_levels}.")
        self.natural_per_pixel = num_levels
        self.data_range = 0.0, num_levels - 1.0
        self.expected = f"of whole numbers 0 to {num_levels - 1}"

    def forward(self, natural: Tensor) -> ExponentialFamily:
        """Build the distribution from logits (..., D * L); the L logits of a pixel are adjacent."""
        return CategoricalPixels(natural, self.natural_per_pixel)

    def from_pixels(self, pixels: Tensor) -> Tensor:
        """Round grey pixels to the nearest level, as floating-point numbers."""
        return (pixels * (self.natural_per_pixel - 1)).round()

    def to_pixels(self, x: Tensor) -> Tensor:
        """Convert levels, or their means, to grey pixels."""
        return x / (self.natural_per_pixel - 1)


@final
class MultinomialObservation(Observation):
    """Counts of D words: bags of words of any length.

    See :class:`~pyro_gvae.distributions.observations.Multinomial`. Grey pixels become counts from 0 to 255. Shown as
    pixels, a datum's most frequent word is white.
    """

    data_range = (0.0, torch.finfo(torch.float32).max)
    is_discrete = True
    expected = "of counts 0, 1, 2, .."

    def forward(self, natural: Tensor) -> ExponentialFamily:
        """Build the distribution from unnormalized log-probabilities of the words (..., D)."""
        return Multinomial(natural)

    def from_pixels(self, pixels: Tensor) -> Tensor:
        """Round grey pixels to counts from 0 to 255."""
        return (255 * pixels).round()

    def to_pixels(self, x: Tensor) -> Tensor:
        """Divide counts, or probabilities of words, by the largest value of each datum."""
        return x / x.amax(-1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny)


#: Name -> family. `config/names.py` lists the names for the command line.
OBSERVATIONS: dict[str, type[Observation]] = {
    "bernoulli": BernoulliObservation,
    "continuous-bernoulli": ContinuousBernoulliObservation,
    "gaussian": GaussianObservation,
    "categorical": CategoricalObservation,
    "multinomial": MultinomialObservation,
}


def takes_missing(program: Any) -> bool:
    """Tell whether a program's data may have missing values, NaN."""
    observation = getattr(program, "observation", None)
    return isinstance(observation, Observation) and observation.takes_missing


def as_observation(observation: str | Observation, **options: Any) -> Observation:
    """Construct the observation with this name, or return a module as it is.

    Args:
        observation: one of `OBSERVATIONS`, or a module.
        **options: options of any family. An option of another family is allowed at its default, so that a caller can
            pass the options of all families.

    Returns:
        The observation.

    Raises:
        ValueError: if the name is unknown, the observation does not have an option, or an option is out of range.

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
                f"Expected a module without options, but found {option}={value}. Try "
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
    """Return a family's options with their default values."""
    return {name: parameter.default for name, parameter in inspect.signature(family).parameters.items()}
