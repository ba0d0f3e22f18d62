"""One-hot categoricals with exact draws and a surrogate gradient."""

from typing import Any, ClassVar, Self, final

import torch
import torch.nn.functional as F
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import OneHotCategorical, constraints, register_kl
from typing_extensions import override

from .parameters import at_least_float32, categorical_kl, check_temperature, logits_of, scalar_temperature
from .surrogates import Kind, find_kind, largest_one_hot

#: Log-probability of an excluded category. Its exponential is 0 in every precision; being finite, it keeps gradients
#: with respect to codes finite.
LEAST = -1e4


@final
class StraightThroughOneHotCategorical(TorchDistribution):
    r"""A one-hot categorical whose draws are exact and have a straight-through surrogate gradient.

    Draws are scored by the plain categorical: log p(z) = sum_k z_k log pi_k with pi = softmax(logits). This is linear
    in z, so gradients flow through z. Samples are ordinary tensors. Those of Pyro's straight-through distributions
    carry a hidden attribute, which is lost in `clone()`, indexing or a decoder.

    Args:
        temperature: t > 0 of the surrogate, one number for the whole batch; values and scores do not depend on it.
        probs: category probabilities, shape (..., K). Give either probs or logits.
        logits: unnormalized log-probabilities, shape (..., K).
        kind: a name in `KINDS`, or a function (logits (..., K), temperature ()) -> z (..., K).

    Raises:
        ValueError: if `kind` is unknown, or the temperature is not one positive number.

    Example:
        >>> logits = torch.zeros(3, requires_grad=True)
        >>> z = StraightThroughOneHotCategorical(1.3, logits=logits, kind="reinmax").rsample()
        >>> sorted(z.tolist()), bool(torch.autograd.grad(z @ torch.arange(3.0), logits)[0].any())
        ([0.0, 0.0, 1.0], True)
    """

    arg_constraints: ClassVar = {"logits": constraints.real_vector, "temperature": constraints.positive}
    support = constraints.one_hot
    has_rsample = True

    def __init__(
        self,
        temperature: float | Tensor,
        probs: Tensor | None = None,
        logits: Tensor | None = None,
        kind: str | Kind = "st-gumbel-softmax",
        validate_args: bool | None = None,
    ) -> None:
        if self._validate_args if validate_args is None else validate_args:
            check_temperature(temperature)
        given = logits_of(probs, logits)
        self.kind = find_kind(kind)
        self.sample_dtype = given.dtype
        self.logits = at_least_float32(given)  # (..., K)
        self.temperature = scalar_temperature(temperature, self.logits)  # ()
        super().__init__(self.logits.shape[:-1], self.logits.shape[-1:], validate_args=validate_args)

    @override
    def expand(self, batch_shape: Any, _instance: Self | None = None) -> "StraightThroughOneHotCategorical":
        shape = torch.Size(batch_shape)
        new = self._get_checked_instance(StraightThroughOneHotCategorical, _instance)
        new.logits = self.logits.expand(shape + self.event_shape)
        new.temperature, new.kind, new.sample_dtype = self.temperature, self.kind, self.sample_dtype
        TorchDistribution.__init__(new, shape, self.event_shape, validate_args=False)
        new._validate_args = self._validate_args
        return new

    @property
    def log_probs(self) -> Tensor:
        """log pi, shape (..., K); excluded categories have LEAST, not -inf, so that 0 log 0 = 0."""
        return F.log_softmax(self.logits, -1).clamp_min(LEAST)

    @property
    def probs(self) -> Tensor:
        """pi, shape (..., K)."""
        return F.softmax(self.logits, -1)

    @property
    def mean(self) -> Tensor:
        """E[z] = pi, shape (..., K)."""
        return self.probs

    @property
    def variance(self) -> Tensor:
        """Var[z_k] = pi_k (1 - pi_k), shape (..., K)."""
        return self.probs * (1 - self.probs)

    @property
    def mode(self) -> Tensor:
        """The most probable one-hot, shape (..., K)."""
        return largest_one_hot(self.logits).to(self.sample_dtype)

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """Draw one-hots with the surrogate gradient with respect to logits; shape sample_shape + (..., K)."""
        shape = self._extended_shape(torch.Size(sample_shape))
        return self.kind(self.logits.expand(shape), self.temperature).to(self.sample_dtype)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Draw one-hots without a gradient; shape sample_shape + (..., K)."""
        with torch.no_grad():
            return self.rsample(sample_shape)

    def log_prob(self, value: Tensor) -> Tensor:
        """Return log p(z) for z (..., K) in nats, differentiable in z; shape (...)."""
        if self._validate_args:
            self._validate_sample(value)
        return (value.to(self.logits) * self.log_probs).sum(-1)

    def entropy(self) -> Tensor:
        """Return the entropy -sum_k pi_k log pi_k in nats, shape (...)."""
        return -(self.probs * self.log_probs).sum(-1)


@register_kl(StraightThroughOneHotCategorical, StraightThroughOneHotCategorical)
@register_kl(StraightThroughOneHotCategorical, OneHotCategorical)
def _kl_straight_through(q: StraightThroughOneHotCategorical, p: Any) -> Tensor:
    return categorical_kl(q.logits, p.logits)
