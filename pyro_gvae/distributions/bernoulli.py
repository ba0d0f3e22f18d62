"""Bernoulli and continuous Bernoulli distributions of pixels in [0, 1], with log-odds as natural parameters."""

import math
from abc import abstractmethod
from typing import Any, ClassVar, final

import torch
from torch import Tensor
from torch.distributions import constraints
from torch.nn import functional as F

from ..runtime.tuning import tuning
from .exponential_family import CanonicalFamily, Function, applied, fixed
from .parameters import no_nan


class _UnitInterval(CanonicalFamily):
    """Abstract base: pixels in [0, 1] with sufficient statistics T(x) = x. A subclass adds the log-normalizer."""

    arg_constraints: ClassVar[dict[str, Any]] = {"natural": no_nan}
    support = constraints.independent(constraints.unit_interval, 1)
    _domain = "in [0, 1] (for 8-bit pixels try x / 255)"

    def __init__(self, natural: Tensor, validate_args: bool | None = None) -> None:
        super().__init__(natural, 1, validate_args)

    @abstractmethod
    def _summed_remainder(self, natural: Tensor) -> Tensor:
        """Return A(eta) - relu(eta), which is small and even in eta, summed over pixels: ``natural.shape[:-1]``."""

    def sufficient_statistics(self, x: Tensor) -> Tensor:
        return x.to(self.natural.dtype)

    def log_normalizer(self) -> Tensor:
        return applied(_LogNormalizer, self.natural, self._summed_log_normalizer, self._mean_statistics)

    def _summed_log_normalizer(self, natural: Tensor) -> Tensor:
        at_once = tuning(natural.device).normalized_elements // fixed(natural.shape[-1])
        rows = natural.reshape(-1, natural.shape[-1]).split(max(1, at_once))
        sums = [F.relu(block).sum(-1) + self._summed_remainder(block) for block in rows]
        return torch.cat(sums).reshape(natural.shape[:-1])

    def _paired_log_prob(self, x: Tensor) -> Tensor:
        statistics = self.sufficient_statistics(x)
        return applied(_PairedScores, self.natural, statistics, self._summed_remainder, self._mean_statistics)

    def _pixel_mean(self) -> Tensor:
        return self._mean_statistics(self.natural)

    def _supports(self, x: Tensor) -> bool:
        if x.numel() == 0:
            return True
        lowest, highest = x.aminmax()  # one pass, where a check of each pixel takes four
        return bool((lowest >= 0) & (highest <= 1))  # False if there is a NaN


class _LogNormalizer(torch.autograd.Function):
    """Compute A(eta) summed over pixels; its derivative is the mean.

    Autograd's derivative of the Bernoulli's formula takes three times as long. For the continuous Bernoulli, autograd
    subtracts two numbers near 1 / eta, which leaves only rounding noise near 0, and it keeps half a dozen tensors of
    the size of natural.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(eta: Tensor, log_normalizer: Function, mean: Function) -> Tensor:
        return log_normalizer(eta)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        eta, _, ctx.mean = inputs
        ctx.save_for_backward(eta)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (eta,) = ctx.saved_tensors
        return grad.unsqueeze(-1) * ctx.mean(eta), None, None


class _PairedScores(torch.autograd.Function):
    """Compute T . eta - A(eta) where each datum has its own parameters; its derivative is T - E[T].

    A good score is a small difference T eta - relu(eta) of large numbers, so each pixel's difference is rounded before
    the sum.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(eta: Tensor, statistics: Tensor, remainder: Function, mean: Function) -> Tensor:
        return torch.addcmul(F.relu(eta), statistics, eta, value=-1).sum(-1).add(remainder(eta)).neg()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        eta, statistics, _, ctx.mean = inputs
        ctx.save_for_backward(eta, statistics)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        eta, statistics = ctx.saved_tensors
        grad = grad.unsqueeze(-1)
        for_eta = None
        if ctx.needs_input_grad[0] and (torch.is_grad_enabled() or eta.numel() < statistics.numel()):
            for_eta = ((statistics - ctx.mean(eta)) * grad).sum_to_size(eta.shape)
        elif ctx.needs_input_grad[0]:  # in place: these tensors are the largest where each code has its own parameters
            for_eta = ctx.mean(eta).sub_(statistics).mul_(-grad)
        for_statistics = (eta * grad).sum_to_size(statistics.shape) if ctx.needs_input_grad[1] else None
        return for_eta, for_statistics, None, None


@final
class Bernoulli(_UnitInterval):
    """Independent pixels that are 1 with probability sigmoid(natural): A(eta) = log(1 + e^eta).

    For x in {0, 1} this is ``torch.distributions.Bernoulli(logits=natural)``. For grey x it is the usual cross-entropy
    x log p + (1 - x) log(1 - p), which most published VAE results use. That is not a density on [0, 1], and it
    overstates likelihoods (Loaiza-Ganem and Cunningham 2019, arXiv 1907.06845), so compare it only with itself.
    :class:`ContinuousBernoulli` is the normalized version.

    Args:
        natural: log-odds, (..., D).
        validate_args: see :class:`ExponentialFamily`, which also lists the errors.

    Example:
        >>> Bernoulli(torch.zeros(2, 1, 784)).log_prob(torch.ones(5, 784)).shape
        torch.Size([2, 5])
    """

    def _summed_remainder(self, natural: Tensor) -> Tensor:
        # log(1 + e^-|eta|) = -log(sigmoid(|eta|)); a sum of these is the logarithm of a product of factors above 1/2.
        # A CPU multiplies in a tenth of the time that a logarithm takes, so take one logarithm of up to 8 factors.
        factors = natural.abs().sigmoid_()
        together = math.gcd(fixed(natural.shape[-1]), 8)
        return factors.unflatten(-1, (together, -1)).prod(-2).log().sum(-1).neg()

    def _mean_statistics(self, natural: Tensor) -> Tensor:
        return natural.sigmoid()

    @torch.no_grad()
    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Draw pixels in {0, 1}, of shape ``sample_shape + batch_shape + (D,)``."""
        return torch.bernoulli(self.mean.expand(self._extended_shape(sample_shape)))


@final
class ContinuousBernoulli(_UnitInterval):
    """Grey pixels with density proportional to e^(eta x) on [0, 1]: A(eta) = log((e^eta - 1) / eta).

    The Bernoulli of grey pixels, normalized (Loaiza-Ganem and Cunningham, *The continuous Bernoulli: fixing a pervasive
    error in variational autoencoders*, 2019, arXiv 1907.06845). It is
    ``torch.distributions.ContinuousBernoulli(logits=natural)``, but its values and gradients are finite and accurate
    for every natural parameter. Scores are log-densities, so they may be positive.

    Args:
        natural: log-odds, (..., D); 0 is the uniform distribution.
        validate_args: see :class:`ExponentialFamily`, which also lists the errors.

    Example:
        >>> ContinuousBernoulli(torch.zeros(3)).log_prob(torch.rand(3)).abs().item()
        0.0
    """

    def _summed_remainder(self, natural: Tensor) -> Tensor:
        magnitude = natural.abs().clamp(min=torch.finfo(natural.dtype).tiny)
        return torch.expm1(-magnitude).div_(magnitude).neg_().log_().sum(-1)

    def _mean_statistics(self, natural: Tensor) -> Tensor:
        return _continuous_bernoulli_mean(natural)

    @torch.no_grad()
    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Draw pixels in [0, 1] by inverting the distribution function: ``sample_shape + batch_shape + (D,)``."""
        uniform = self.natural.new_empty(self._extended_shape(sample_shape)).uniform_()
        # Draw for a negative parameter, where nothing overflows, and mirror the draw for a positive one. Below the
        # rounding unit the distribution is uniform up to rounding; the clamp avoids 0 / 0.
        rate = -self.natural.abs().clamp(min=torch.finfo(uniform.dtype).eps)
        draw = (torch.log1p(uniform * torch.expm1(rate)) / rate).clamp(0, 1)
        return torch.where(self.natural > 0, 1 - draw, draw)


# The coefficients B_2k / (2k)! of the series below, with Bernoulli numbers B_2k. Its terms fall as (eta / 2 pi)^2k.
_MEAN_SERIES = (1 / 12, -1 / 720, 1 / 30240, -1 / 1209600, 1 / 47900160, -691 / 1307674368000)


def _continuous_bernoulli_mean(eta: Tensor) -> Tensor:
    """Compute E[x] = 1 / (1 - e^-eta) - 1 / eta, by a Taylor series about 1/2 near 0, where the difference cancels."""
    near = eta.abs() < 0.4
    square = eta.clamp(-0.4, 0.4).square()
    series = torch.full_like(eta, _MEAN_SERIES[-1])
    for coefficient in reversed(_MEAN_SERIES[:-1]):
        series = series * square + coefficient
    far = eta + near  # away from 0: an infinite value in the branch not taken would make the derivative NaN
    return 0.5 + torch.where(near, eta * series, 0.5 / torch.tanh(far / 2) - 1 / far)
