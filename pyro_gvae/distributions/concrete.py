"""The Concrete (Gumbel-Softmax) distribution, on the simplex and in log space."""

import math
from typing import Any, ClassVar, Self

import torch
import torch.nn.functional as F
from pyro.distributions import RelaxedOneHotCategorical as PyroRelaxedOneHotCategorical
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import TransformedDistribution, biject_to, constraints, register_kl, transform_to
from torch.distributions.transforms import ExpTransform, Transform
from typing_extensions import override

from .parameters import at_least_float32, categorical_kl, check_temperature, gumbel_like, logits_of, scalar_temperature


class LogSimplex(constraints.Constraint):
    """Constrain y to sum_k exp(y_k) = 1, up to rounding, which grows as 1/t."""

    event_dim = 1

    def check(self, value: Tensor) -> Tensor:
        """Return whether y (..., K) is normalized; shape (...)."""
        return value.logsumexp(-1).abs() < 1e-2


class LogRatioTransform(Transform):
    """Map u (..., K - 1) to log_softmax([u, 0]) (..., K).

    The density of :class:`ExpConcrete` is taken with respect to these coordinates u.
    """

    domain = constraints.real_vector
    codomain = LogSimplex()
    bijective = True

    def __eq__(self, other: object) -> bool:
        return isinstance(other, LogRatioTransform)

    def _call(self, x: Tensor) -> Tensor:
        return F.log_softmax(F.pad(x, (0, 1)), -1)

    def _inverse(self, y: Tensor) -> Tensor:
        return y[..., :-1] - y[..., -1:]

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """Return 0, shape (...): the density of y is already taken with respect to u."""
        return x.new_zeros(x.shape[:-1])

    @override
    def forward_shape(self, shape: torch.Size) -> torch.Size:
        return torch.Size((*shape[:-1], shape[-1] + 1))

    @override
    def inverse_shape(self, shape: torch.Size) -> torch.Size:
        return torch.Size((*shape[:-1], shape[-1] - 1))


@biject_to.register(LogSimplex)
@transform_to.register(LogSimplex)
def _log_simplex(constraint: LogSimplex) -> LogRatioTransform:
    return LogRatioTransform()


class ExpConcrete(TorchDistribution):
    r"""The Concrete distribution in log space: the distribution of y = log z for a relaxed one-hot z.

    .. math::

        y &= \mathrm{log\_softmax}((\mathrm{logits} + g) / t), \qquad g_k \sim \mathrm{Gumbel} \\
        \log p(y) &= \log \Gamma(K) + (K - 1) \log t
            + \sum_k (\mathrm{logits}_k - t y_k) - K \log \sum_k \exp(\mathrm{logits}_k - t y_k)

    (Maddison, Mnih, Teh, *The Concrete Distribution*, 2017, arXiv 1611.00712, eq. 22.) The density is taken with
    respect to the log-ratios y_k - y_K, k < K, the coordinates that autoguides and MCMC use. At low temperature z
    underflows to zero and its density is lost. y does not underflow, so score y and not z (Pyro issue 3304).

    Args:
        temperature: t > 0, one number for the whole batch.
        probs: category probabilities, shape (..., K). Give either probs or logits.
        logits: unnormalized log-probabilities, shape (..., K).

    Raises:
        ValueError: if the temperature is not one positive number or, with validation, if a logit is -inf.

    Example:
        >>> y = ExpConcrete(0.1, logits=torch.zeros(5, 3)).rsample()
        >>> torch.allclose(y.exp().sum(-1), torch.ones(5))
        True
    """

    arg_constraints: ClassVar = {"logits": constraints.real_vector, "temperature": constraints.positive}
    support = LogSimplex()
    has_rsample = True

    def __init__(
        self,
        temperature: float | Tensor,
        probs: Tensor | None = None,
        logits: Tensor | None = None,
        validate_args: bool | None = None,
    ) -> None:
        if self._validate_args if validate_args is None else validate_args:
            check_temperature(temperature)
        given = logits_of(probs, logits)
        self.sample_dtype = given.dtype
        self.logits = at_least_float32(given)  # (..., K)
        self.temperature = scalar_temperature(temperature, self.logits)  # ()
        super().__init__(self.logits.shape[:-1], self.logits.shape[-1:], validate_args=validate_args)
        if self._validate_args and bool((self.logits == -math.inf).any()):
            raise ValueError(
                "Expected finite logits, but found -inf: a relaxed sample cannot exclude a category. Try a large "
                "negative logit, or discretize() instead of relax()."
            )

    @property
    def probs(self) -> Tensor:
        """Category probabilities, shape (..., K)."""
        return F.softmax(self.logits, -1)

    @override
    def expand(self, batch_shape: Any, _instance: Self | None = None) -> "ExpConcrete":
        shape = torch.Size(batch_shape)
        new = self._get_checked_instance(ExpConcrete, _instance)
        new.logits = self.logits.expand(shape + self.event_shape)
        new.temperature, new.sample_dtype = self.temperature, self.sample_dtype
        TorchDistribution.__init__(new, shape, self.event_shape, validate_args=False)
        new._validate_args = self._validate_args
        return new

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """Draw y = log z, differentiable in logits and temperature; shape sample_shape + (..., K)."""
        shape = self._extended_shape(torch.Size(sample_shape))
        return F.log_softmax((self.logits + gumbel_like(self.logits, shape)) / self.temperature, -1)

    def log_prob(self, value: Tensor) -> Tensor:
        """Return log p(y) for y (..., K), with respect to the log-ratio coordinates, in nats; shape (...)."""
        if self._validate_args:
            self._validate_sample(value)
        num_categories = self.logits.shape[-1]
        scale = math.lgamma(num_categories) + (num_categories - 1) * self.temperature.log()
        return F.log_softmax(self.logits - self.temperature * value, -1).sum(-1) + scale


class RelaxedOneHotCategorical(PyroRelaxedOneHotCategorical):
    r"""A relaxed one-hot z on the simplex: z = softmax((logits + g) / t), the Concrete or Gumbel-Softmax distribution.

    log p(z) = log p(y) - sum_k y_k with y = log z and :class:`ExpConcrete`'s log p(y) (Maddison et al. 2017, arXiv
    1611.00712, eq. 10; Jang et al. 2017, arXiv 1611.01144). It replaces Pyro's class of the same name, checks its
    temperature, and has an analytic `kl_divergence`, that of the categoricals. :func:`pyro_gvae.relax` samples and
    scores a site with this distribution in log space, where nothing underflows at any temperature. If you score z
    directly, components below the smallest normal number count as that number.

    Args:
        temperature: t > 0, one number for the whole batch; the posterior's and the prior's may differ.
        probs: category probabilities, shape (..., K). Give either probs or logits.
        logits: unnormalized log-probabilities, shape (..., K).

    Raises:
        ValueError: if the temperature is not one positive number or, with validation, if a logit is -inf.

    Example:
        >>> z = RelaxedOneHotCategorical(0.5, logits=torch.zeros(5, 3)).rsample()
        >>> tuple(z.shape), bool((z > 0).all())
        ((5, 3), True)
    """

    base_dist: ExpConcrete

    def __init__(
        self,
        temperature: float | Tensor,
        probs: Tensor | None = None,
        logits: Tensor | None = None,
        validate_args: bool | None = None,
    ) -> None:
        base = ExpConcrete(temperature, probs, logits, validate_args=validate_args)
        TransformedDistribution.__init__(self, base, ExpTransform(), validate_args=validate_args)

    @override
    def expand(self, batch_shape: Any, _instance: Self | None = None) -> "RelaxedOneHotCategorical":
        new = self._get_checked_instance(RelaxedOneHotCategorical, _instance)
        return TransformedDistribution.expand(self, batch_shape, _instance=new)

    @property
    def sample_dtype(self) -> torch.dtype:
        """The dtype of z, which is that of the given logits; log z and its density are at least float32."""
        return self.base_dist.sample_dtype

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """Draw z, differentiable in logits and temperature; shape sample_shape + (..., K)."""
        return self.base_dist.rsample(sample_shape).exp().to(self.sample_dtype)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Draw z without a gradient; shape sample_shape + (..., K)."""
        with torch.no_grad():
            return self.rsample(sample_shape)

    def log_prob(self, value: Tensor) -> Tensor:
        """Return log p(z) for z (..., K) on the simplex, in nats; shape (...)."""
        if self._validate_args:
            self._validate_sample(value)
        value = value.to(self.logits)
        y = value.clamp_min(torch.finfo(value.dtype).tiny).log()  # (..., K)
        return self.base_dist.log_prob(y) - y.sum(-1)


@register_kl(ExpConcrete, ExpConcrete)
def _kl_concrete(q: ExpConcrete, p: ExpConcrete) -> Tensor:
    """Return the KL of the categoricals (Jang et al. 2017): that of the discrete model, *not* of the densities."""
    return categorical_kl(q.logits, p.logits)


@register_kl(RelaxedOneHotCategorical, RelaxedOneHotCategorical)
def _kl_relaxed(q: RelaxedOneHotCategorical, p: RelaxedOneHotCategorical) -> Tensor:
    return categorical_kl(q.logits, p.logits)
