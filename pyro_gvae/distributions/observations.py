"""Gaussian pixels, categorical pixels of L levels, and word counts; import all distributions of pixels from here."""

import copy
import math
from typing import Any, ClassVar, Self, final

import torch
from pyro.distributions.util import broadcast_shape
from torch import Tensor
from torch.distributions import Categorical, constraints
from torch.distributions import Multinomial as TorchMultinomial
from typing_extensions import override

from .bernoulli import Bernoulli, ContinuousBernoulli
from .exponential_family import CanonicalFamily, ExponentialFamily, fixed, score_dtype
from .parameters import no_nan

__all__ = ["Bernoulli", "CategoricalPixels", "ContinuousBernoulli", "Gaussian", "Multinomial"]


@final
class Gaussian(ExponentialFamily):
    """Pixels with independent normal noise around the decoder's output mu = natural.

    log p(x) = x . mu / scale^2 - mu . mu / (2 scale^2) + h(x): T(x) = x, the coefficients are mu / scale^2, and
    h(x) = -x . x / (2 scale^2) - sum(log scale) - D/2 log(2 pi).

    A score depends only on x - mu, so the matrix product is taken of x - c and mu - c, where c is the mean of the data.
    It still subtracts numbers of size (x - c) . (x - c) / scale^2 from each other, even where x and mu are close. In
    float32 that would lose 0.8 nats for 784 pixels in [0, 1] at scale 0.01, so the product is taken in float64, and
    the score is rounded once.

    Args:
        natural: the mean mu, (..., D), in the units of x.
        scale: the standard deviation, positive: a number, a scalar tensor or shape (D,). It may require gradients.
        validate_args: see :class:`ExponentialFamily`, which also lists the errors.

    Example:
        >>> Gaussian(torch.zeros(2, 1, 784), scale=0.1).log_prob(torch.ones(5, 784)).shape
        torch.Size([2, 5])
    """

    arg_constraints: ClassVar[dict[str, Any]] = {
        "natural": no_nan,
        "scale": constraints.positive,
    }
    support = constraints.real_vector
    has_rsample = True
    _domain = "without NaN"

    def __init__(self, natural: Tensor, scale: float | Tensor, validate_args: bool | None = None) -> None:
        self.scale = torch.as_tensor(scale, dtype=score_dtype(natural), device=natural.device)
        super().__init__(natural, 1, validate_args)
        if tuple(map(fixed, self.scale.shape)) not in {(), (1,), tuple(self.event_shape)}:
            expected = f"a scalar or of shape {tuple(self.event_shape)}"
            raise ValueError(f"Expected scale to be {expected}, but found {tuple(self.scale.shape)}.")

    @property
    @override
    def coefficients(self) -> Tensor:
        return self.natural / self.scale.square()

    @override
    def sufficient_statistics(self, x: Tensor) -> Tensor:
        return x.to(self.natural.dtype)

    @override
    def log_normalizer(self) -> Tensor:
        return 0.5 * (self.natural / self.scale).square().sum(-1)

    @override
    def log_base_measure(self, x: Tensor) -> Tensor:
        log_volume = (self.scale.log() + 0.5 * math.log(2 * math.pi)).expand(self.event_shape).sum()
        return -0.5 * (self.sufficient_statistics(x) / self.scale).square().sum(-1) - log_volume

    def _centred(self, x: Tensor) -> tuple[Self, Tensor]:
        x = x.double()
        centre = x.detach().flatten(0, -2).mean(0)  # (D,)
        family = copy.copy(self)
        family.natural, family.scale = self.natural.double() - centre, self.scale.double()
        return family, x - centre

    def _outer_scores(self, x: Tensor) -> Tensor:
        products = self.coefficients @ self.sufficient_statistics(x).mT
        return products - self.log_normalizer().unsqueeze(-1) + self.log_base_measure(x)

    def _paired_log_prob(self, x: Tensor) -> Tensor:
        # A normal score depends only on x - mu, and h(x) is the score under mu = 0.
        return self.log_base_measure(self.sufficient_statistics(x) - self.natural)

    def _pixel_mean(self) -> Tensor:
        return self.natural

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """Draw mu + scale * noise, differentiable in mu and scale: ``sample_shape + batch_shape + (D,)``."""
        noise = torch.randn_like(self.natural.new_empty(self._extended_shape(sample_shape)))
        return self.natural + self.scale * noise


@final
class CategoricalPixels(CanonicalFamily):
    """Pixels with one of L levels, one logit per level: T(x) is one-hot, A is the logsumexp of each pixel, summed.

    This is ``torch.distributions.Categorical(logits=natural.unflatten(-1, (D, L)))``, summed over pixels.

    Args:
        natural: unnormalized log-probabilities, (..., D * L); the L logits of a pixel are adjacent.
        num_levels: L; pixels hold the levels 0 to L - 1, in any dtype.
        validate_args: see :class:`ExponentialFamily`, which also lists the errors.

    Example:
        >>> CategoricalPixels(torch.zeros(784 * 16), num_levels=16).log_prob(torch.full((2, 784), 15)).shape
        torch.Size([2])
    """

    arg_constraints: ClassVar[dict[str, Any]] = {"natural": no_nan}

    def __init__(self, natural: Tensor, num_levels: int, validate_args: bool | None = None) -> None:
        self.num_levels = num_levels
        self._domain = f"of integer levels 0 to {num_levels - 1}"
        super().__init__(natural, num_levels, validate_args)

    @constraints.dependent_property(is_discrete=True, event_dim=1)
    @override
    def support(self) -> Any:
        return constraints.independent(constraints.integer_interval(0, self.num_levels - 1), 1)

    @override
    def sufficient_statistics(self, x: Tensor) -> Tensor:
        one_hot = x.unsqueeze(-1) == torch.arange(self.num_levels, device=x.device)
        return one_hot.to(self.natural.dtype).flatten(-2)  # (..., D * L)

    @override
    def log_normalizer(self) -> Tensor:
        return self._summed_log_normalizer(self.natural)

    def _summed_log_normalizer(self, natural: Tensor) -> Tensor:
        return self._by_pixel(natural).logsumexp(-1).sum(-1)

    def _mean_statistics(self, natural: Tensor) -> Tensor:
        return self._by_pixel(natural).softmax(-1).flatten(-2)

    def _by_pixel(self, natural: Tensor) -> Tensor:
        logits: Tensor = natural.unflatten(-1, (*self.event_shape, self.num_levels))
        return logits  # (..., D, L)

    def _paired_log_prob(self, x: Tensor) -> Tensor:
        # Gather the logits of the observed levels: T(x) would be L times as large as x.
        logits = self._by_pixel(self.natural)
        shape = broadcast_shape(logits.shape[:-1], x.shape)
        index = x.long().expand(shape).unsqueeze(-1)
        chosen = logits.expand(*shape, -1).gather(-1, index).squeeze(-1)
        return (chosen - logits.logsumexp(-1)).sum(-1)

    def _pixel_mean(self) -> Tensor:
        levels = torch.arange(self.num_levels, dtype=self.natural.dtype, device=self.natural.device)
        return (self._by_pixel(self.natural).softmax(-1) * levels).sum(-1)

    @torch.no_grad()
    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Draw levels as int64, of shape ``sample_shape + batch_shape + (D,)``."""
        logits = self._by_pixel(self.natural).expand(*self._extended_shape(sample_shape), -1)
        levels: Tensor = Categorical(logits=logits, validate_args=False).sample()
        return levels


@final
class Multinomial(ExponentialFamily):
    """Counts x of the D words of a vocabulary, where each word is drawn from softmax(natural): a bag of words.

    log p(x) = x . log softmax(natural) + log(n!) - sum_d log(x_d!), where the length n = sum(x) of the document is
    given. So T(x) = x, the coefficients are log softmax(natural), and A = 0.

    This is ``torch.distributions.Multinomial(n, logits=natural)``, with a length n for each datum.

    Args:
        natural: unnormalized log-probabilities of the words, (..., D).
        total_count: n of sampled documents; scores use the length of each datum.
        validate_args: see :class:`ExponentialFamily`, which also lists the errors.

    Example:
        >>> Multinomial(torch.zeros(2, 1, 50)).log_prob(torch.ones(5, 50)).shape
        torch.Size([2, 5])
    """

    arg_constraints: ClassVar[dict[str, Any]] = {"natural": no_nan}
    support = constraints.independent(constraints.nonnegative_integer, 1)
    _domain = "of counts 0, 1, 2, .."

    def __init__(self, natural: Tensor, total_count: int = 1, validate_args: bool | None = None) -> None:
        self.total_count = total_count
        super().__init__(natural, 1, validate_args)

    @property
    @override
    def coefficients(self) -> Tensor:
        return self.natural.log_softmax(-1)

    @override
    def sufficient_statistics(self, x: Tensor) -> Tensor:
        return x.to(self.natural.dtype)

    @override
    def log_normalizer(self) -> Tensor:
        return self.natural.new_zeros(self.natural.shape[:-1])

    @override
    def log_base_measure(self, x: Tensor) -> Tensor:
        x = x.to(self.natural.dtype)
        return (x.sum(-1) + 1).lgamma() - (x + 1).lgamma().sum(-1)

    def _outer_scores(self, x: Tensor) -> Tensor:
        return self.coefficients @ self.sufficient_statistics(x).mT + self.log_base_measure(x)

    def _paired_log_prob(self, x: Tensor) -> Tensor:
        return (self.coefficients * self.sufficient_statistics(x)).sum(-1) + self.log_base_measure(x)

    def _pixel_mean(self) -> Tensor:
        return self.total_count * self.natural.softmax(-1)

    @torch.no_grad()
    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Draw counts of `total_count` words, of shape ``sample_shape + batch_shape + (D,)``."""
        logits = self.natural.expand(self._extended_shape(sample_shape))
        counts: Tensor = TorchMultinomial(self.total_count, logits=logits, validate_args=False).sample()
        return counts
