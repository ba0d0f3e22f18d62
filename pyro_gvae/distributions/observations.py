"""What a decoder's natural parameters say about pixels: Bernoulli, continuous Bernoulli, Gaussian, categorical."""

import math
from abc import abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar, final

import torch
from torch import Size, Tensor
from torch.distributions import Categorical, constraints
from torch.nn import functional as F

from .exponential_family import CanonicalFamily, ExponentialFamily, Function, no_nan, score_dtype

#: Pixels whose log-normalizers stay in the processor's cache until they are summed.
_BLOCK = 2**19


class _UnitInterval(CanonicalFamily):
    """Abstract: pixels in [0, 1] with T(x) = x; what is left to say is the log-normalizer."""

    arg_constraints: ClassVar[dict[str, Any]] = {"natural": no_nan}
    support = constraints.independent(constraints.unit_interval, 1)
    _domain = "in [0, 1] (for 8-bit pixels try x / 255)"

    def __init__(self, natural: Tensor, validate_args: bool | None = None) -> None:
        super().__init__(natural, 1, validate_args)

    @abstractmethod
    def _pixel_log_normalizer(self, natural: Tensor) -> Tensor:
        """A(eta) of each pixel, a new tensor of natural's shape; it needs no derivative."""

    def sufficient_statistics(self, x: Tensor) -> Tensor:
        return x.to(self.natural.dtype)

    def log_normalizer(self) -> Tensor:
        return self._log_normalizers().sum(-1)

    def _log_normalizers(self) -> Tensor:
        found: Tensor = _LogNormalizer.apply(self.natural, self._pixel_log_normalizer, self._mean_statistics)
        return found

    def _summed_log_normalizer(self, natural: Tensor) -> Tensor:
        rows = max(1, _BLOCK // natural.shape[-1])
        return torch.cat([self._pixel_log_normalizer(block).sum(-1) for block in natural.split(rows)])

    def _paired_log_prob(self, x: Tensor) -> Tensor:
        statistics = self.sufficient_statistics(x)
        return -torch.addcmul(self._log_normalizers(), statistics, self.natural, value=-1).sum(-1)

    def _pixel_mean(self) -> Tensor:
        return self._mean_statistics(self.natural)


class _LogNormalizer(torch.autograd.Function):
    """A(eta) of each pixel, whose derivative is the mean.

    Autograd's derivative of softplus takes three times as long; that of the continuous Bernoulli's formula subtracts
    two numbers near 1 / eta, which near 0 leaves noise, and keeps half a dozen tensors of natural's size.
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
        return grad * ctx.mean(eta), None, None


@final
class Bernoulli(_UnitInterval):
    """Pixels that are on with probability sigmoid(natural): A(eta) = log(1 + e^eta).

    For x in {0, 1} this is ``torch.distributions.Bernoulli(logits=natural)``. For grey x it is the customary
    cross-entropy x log p + (1 - x) log(1 - p), in which most VAE figures are published; it is no density on
    [0, 1] and inflates likelihoods (Loaiza-Ganem and Cunningham 2019, arXiv 1907.06845), so compare it only
    with itself. :class:`ContinuousBernoulli` is its normalized relative.

    Args:
        natural: log-odds, (..., D).
        validate_args: see :class:`ExponentialFamily`, also for what is raised.

    Example:
        >>> Bernoulli(torch.zeros(2, 1, 784)).log_prob(torch.ones(5, 784)).shape
        torch.Size([2, 5])
    """

    def _pixel_log_normalizer(self, natural: Tensor) -> Tensor:
        # softplus is the identity above its threshold, which at the default, 20, is wrong by 2e-9.
        return F.softplus(natural, threshold=40.0)

    def _mean_statistics(self, natural: Tensor) -> Tensor:
        return natural.sigmoid()

    @torch.no_grad()
    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Pixels in {0, 1}: ``sample_shape + batch_shape + (D,)``."""
        return torch.bernoulli(self.mean.expand(self._extended_shape(sample_shape)))


@final
class ContinuousBernoulli(_UnitInterval):
    """Grey pixels with density proportional to e^(eta x) on [0, 1]: A(eta) = log((e^eta - 1) / eta).

    The Bernoulli of grey targets, normalized (Loaiza-Ganem and Cunningham, *The continuous Bernoulli: fixing
    a pervasive error in variational autoencoders*, 2019, arXiv 1907.06845). It is
    ``torch.distributions.ContinuousBernoulli(logits=natural)``, but finite and accurate, with its gradient,
    for any natural parameter. Scores are log-densities and may be positive.

    Args:
        natural: log-odds, (..., D); 0 is the uniform distribution.
        validate_args: see :class:`ExponentialFamily`, also for what is raised.

    Example:
        >>> ContinuousBernoulli(torch.zeros(3)).log_prob(torch.rand(3)).abs().item()
        0.0
    """

    def _pixel_log_normalizer(self, natural: Tensor) -> Tensor:
        magnitude = natural.abs().clamp(min=torch.finfo(natural.dtype).tiny)
        return torch.expm1(-magnitude).div_(magnitude).neg_().log_().add_(F.relu(natural))

    def _mean_statistics(self, natural: Tensor) -> Tensor:
        return _continuous_bernoulli_mean(natural)

    @torch.no_grad()
    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Pixels in [0, 1], the distribution function inverted: ``sample_shape + batch_shape + (D,)``."""
        uniform = self.natural.new_empty(self._extended_shape(sample_shape)).uniform_()
        # Drawn for a negative parameter, where nothing overflows, and mirrored for a positive one. One below
        # the rounding unit is as good as uniform, and must not divide 0 by 0.
        rate = -self.natural.abs().clamp(min=torch.finfo(uniform.dtype).eps)
        draw = (torch.log1p(uniform * torch.expm1(rate)) / rate).clamp(0, 1)
        return torch.where(self.natural > 0, 1 - draw, draw)


# B_2k / (2k)!, B_2k the Bernoulli numbers: the terms of the series below fall as (eta / 2 pi)^2k.
_MEAN_SERIES = (1 / 12, -1 / 720, 1 / 30240, -1 / 1209600, 1 / 47900160, -691 / 1307674368000)


def _continuous_bernoulli_mean(eta: Tensor) -> Tensor:
    """E[x] = 1 / (1 - e^-eta) - 1 / eta; near 0, where that cancels, its Taylor series about 1/2."""
    near = eta.abs() < 0.4
    square = eta.clamp(-0.4, 0.4).square()
    series = torch.full_like(eta, _MEAN_SERIES[-1])
    for coefficient in reversed(_MEAN_SERIES[:-1]):
        series = series * square + coefficient
    far = eta + near  # away from 0: the branch not taken must be finite too, or its derivative is NaN
    return 0.5 + torch.where(near, eta * series, 0.5 / torch.tanh(far / 2) - 1 / far)


@final
class Gaussian(ExponentialFamily):
    """Pixels with independent normal noise around the decoder's output mu = natural.

    log p(x) = x . mu / scale^2 - |mu|^2 / (2 scale^2) + h(x): T(x) = x, the coefficients are mu / scale^2, and
    h(x) = -|x|^2 / (2 scale^2) - sum(log scale) - D/2 log(2 pi).

    The matrix product subtracts numbers of size |x|^2 / scale^2, which float32 rounds: for 784 pixels in
    [0, 1] the error is 0.01 nats at scale 0.1 and 0.8 at scale 0.01. The elementwise form, which scores
    x - mu, has no such limit.

    Args:
        natural: the mean mu, (..., D), in the units of x.
        scale: the standard deviation, positive: a number, a scalar tensor or (D,). Gradients flow to it.
        validate_args: see :class:`ExponentialFamily`, also for what is raised.

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
        if self.scale.shape not in {Size([]), Size([1]), self.event_shape}:
            expected = f"a scalar or of shape {tuple(self.event_shape)}"
            raise ValueError(f"Expected scale to be {expected}, but found {tuple(self.scale.shape)}.")

    @property
    def coefficients(self) -> Tensor:
        return self.natural / self.scale.square()

    def sufficient_statistics(self, x: Tensor) -> Tensor:
        return x.to(self.natural.dtype)

    def log_normalizer(self) -> Tensor:
        return 0.5 * (self.natural / self.scale).square().sum(-1)

    def log_base_measure(self, x: Tensor) -> Tensor:
        log_volume = (self.scale.log() + 0.5 * math.log(2 * math.pi)).expand(self.event_shape).sum()
        return -0.5 * (self.sufficient_statistics(x) / self.scale).square().sum(-1) - log_volume

    def _outer_scores(self, statistics: Tensor) -> Tensor:
        return self.coefficients @ statistics.mT - self.log_normalizer().unsqueeze(-1)

    def _paired_log_prob(self, x: Tensor) -> Tensor:
        # A normal score depends on x - mu alone, and h(x) is the score under mu = 0.
        return self.log_base_measure(self.sufficient_statistics(x) - self.natural)

    def _pixel_mean(self) -> Tensor:
        return self.natural

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """mu + scale * noise, differentiable in both: ``sample_shape + batch_shape + (D,)``."""
        noise = torch.randn_like(self.natural.new_empty(self._extended_shape(sample_shape)))
        return self.natural + self.scale * noise


@final
class CategoricalPixels(CanonicalFamily):
    """Pixels with one of L levels, each with its own logit: T(x) is one-hot, A the sum of pixels' logsumexp.

    It is ``torch.distributions.Categorical(logits=natural.unflatten(-1, (D, L)))``, summed over pixels.

    Args:
        natural: unnormalized logits, (..., D * L); the L logits of a pixel are adjacent.
        num_levels: L; pixels hold the levels 0 to L - 1, in any dtype.
        validate_args: see :class:`ExponentialFamily`, also for what is raised.

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
    def support(self) -> Any:
        return constraints.independent(constraints.integer_interval(0, self.num_levels - 1), 1)

    def sufficient_statistics(self, x: Tensor) -> Tensor:
        one_hot = x.unsqueeze(-1) == torch.arange(self.num_levels, device=x.device)
        return one_hot.to(self.natural.dtype).flatten(-2)  # (..., D * L)

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
        # Gathered: T(x) is L times larger than x.
        logits = self._by_pixel(self.natural)
        shape = torch.broadcast_shapes(logits.shape[:-1], x.shape)
        index = x.long().expand(shape).unsqueeze(-1)
        chosen = logits.expand(*shape, -1).gather(-1, index).squeeze(-1)
        return (chosen - logits.logsumexp(-1)).sum(-1)

    def _pixel_mean(self) -> Tensor:
        levels = torch.arange(self.num_levels, dtype=self.natural.dtype, device=self.natural.device)
        return (self._by_pixel(self.natural).softmax(-1) * levels).sum(-1)

    @torch.no_grad()
    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Levels as int64: ``sample_shape + batch_shape + (D,)``."""
        logits = self._by_pixel(self.natural).expand(*self._extended_shape(sample_shape), -1)
        levels: Tensor = Categorical(logits=logits, validate_args=False).sample()
        return levels


OBSERVATIONS: dict[str, Callable[..., ExponentialFamily]] = {
    "bernoulli": Bernoulli,
    "continuous-bernoulli": ContinuousBernoulli,
    "gaussian": Gaussian,
    "categorical": CategoricalPixels,
}
