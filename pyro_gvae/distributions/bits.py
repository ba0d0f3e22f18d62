"""Bits, built from one-hots of two categories: N bits as one variable, or bits with surrogate gradients."""

import functools
from collections.abc import Callable
from typing import Any, ClassVar, Self, final

import torch
import torch.nn.functional as F
from pyro.distributions import Bernoulli, TorchDistribution
from torch import Size, Tensor
from torch.distributions import constraints, kl_divergence, register_kl
from typing_extensions import override

from .joint import joint_one_hot
from .one_hot import FactorizedOneHotCategorical
from .parameters import at_least_float32, categorical_kl
from .straight_through import StraightThroughOneHotCategorical
from .surrogates import Kind


def digit_logits(log_odds: Tensor) -> Tensor:
    """Return the log-probabilities of 0 and 1, shape (..., 2), in at least float32, for bits with log-odds (...).

    Log-odds of minus or plus infinity exclude a value, as a logit of minus infinity excludes a category.

    Example:
        >>> digit_logits(torch.tensor([0.0, float("inf")])).exp().tolist()
        [[0.5, 0.5], [0.0, 1.0]]
    """
    log_odds = at_least_float32(log_odds)
    return torch.stack([F.logsigmoid(-log_odds), F.logsigmoid(log_odds)], -1)


class Bits(TorchDistribution):
    """Abstract base: bits as the second components of one-hot codes, whose distribution does all the work.

    Args:
        codes: the distribution of codes, of event shape (2,) or (N, 2).
        event_shape: the event shape of the bits, with 1 or N elements.
        dtype: the dtype of the bits.
    """

    arg_constraints: ClassVar = {}

    def __init__(self, codes: TorchDistribution, event_shape: Size, dtype: torch.dtype) -> None:
        self.codes = codes
        self.sample_dtype = dtype
        super().__init__(codes.batch_shape, event_shape, validate_args=False)  # the codes validate

    @override
    def expand(self, batch_shape: Any, _instance: Self | None = None) -> Self:
        new = self._get_checked_instance(type(self), _instance)
        new.codes, new.sample_dtype = self.codes.expand(Size(batch_shape)), self.sample_dtype
        TorchDistribution.__init__(new, Size(batch_shape), self.event_shape, validate_args=False)
        return new

    @constraints.dependent_property(is_discrete=True)
    def support(self) -> Any:
        """Zeros and ones of the event shape."""
        return constraints.independent(constraints.boolean, len(self.event_shape))

    @property
    def mean(self) -> Tensor:
        """The probability that each bit is 1, shape (..., event_shape)."""
        return self._bits(self.codes.mean)

    @property
    def variance(self) -> Tensor:
        """The variance of each bit, shape (..., event_shape)."""
        return self.mean * (1 - self.mean)

    @property
    def mode(self) -> Tensor:
        """The most probable bits, shape (..., event_shape)."""
        return self._bits(self.codes.mode).to(self.sample_dtype)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Draw bits without a gradient, shape sample_shape + (..., event_shape)."""
        with torch.no_grad():
            return self._bits(self.codes.sample(Size(sample_shape))).to(self.sample_dtype)

    def log_prob(self, value: Tensor) -> Tensor:
        """Return log p in nats, shape (...), differentiable in the bits (..., event_shape) if the codes' log p is."""
        own = value.reshape(value.shape[: value.dim() - len(self.event_shape)] + self.codes.event_shape[:-1])
        log_prob: Tensor = self.codes.log_prob(torch.stack([1 - own, own], -1))
        return log_prob

    def entropy(self) -> Tensor:
        """Return the entropy in nats, shape (...)."""
        entropy: Tensor = self.codes.entropy()
        return entropy

    def enumerate_support(self, expand: bool = True) -> Tensor:
        """Return all S joint values, shape (S, ..., event_shape); batch dimensions are 1 if `expand` is False."""
        return self._bits(self.codes.enumerate_support(expand)).to(self.sample_dtype)

    def _bits(self, codes: Tensor) -> Tensor:
        ones = codes[..., 1]
        return ones.reshape(ones.shape[: ones.dim() - len(self.codes.event_shape) + 1] + self.event_shape)


@final
class FactorizedBernoulli(Bits):
    r"""N independent bits as *one* random variable, whose support is all 2^N joint values.

    No ELBO can enumerate `Bernoulli(...).to_event(n)`: `TraceEnum_ELBO` silently samples it. Use this distribution
    instead, as you would use :class:`FactorizedOneHotCategorical` for one-hots.

    Args:
        probs: probabilities of 1, shape (..., event_shape). Give either probs or logits.
        logits: log-odds of 1, shape (..., event_shape).
        event_dim: number of event dimensions, at least 1; N is the product of their sizes.

    Example:
        >>> q = FactorizedBernoulli(logits=torch.zeros(5, 2))
        >>> tuple(q.sample().shape), q.enumerate_support(expand=False).squeeze(1).tolist()
        ((5, 2), [[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]])
    """

    has_enumerate_support = True

    def __init__(
        self,
        probs: Tensor | None = None,
        logits: Tensor | None = None,
        *,
        event_dim: int = 1,
        validate_args: bool | None = None,
    ) -> None:
        log_odds = Bernoulli(probs, logits, validate_args=validate_args).logits
        batch_shape, event_shape = log_odds.shape[:-event_dim], log_odds.shape[-event_dim:]
        flat = digit_logits(log_odds).reshape(*batch_shape, -1, 2)  # (..., N, 2)
        codes = FactorizedOneHotCategorical(logits=flat, validate_args=validate_args)
        super().__init__(codes, Size(event_shape), log_odds.dtype)

    @property
    def logits(self) -> Tensor:
        """The log-odds of 1, shape (..., event_shape)."""
        return _log_odds(self.codes).reshape(self.batch_shape + self.event_shape)


@final
class StraightThroughBernoulli(Bits):
    r"""A bit whose draws are exact and have a straight-through surrogate gradient.

    The surrogate acts on a one-hot of two categories, whose second component is the bit; see
    :class:`StraightThroughOneHotCategorical`. log p is that of the Bernoulli, and is linear in the bit.

    Args:
        temperature: t > 0 of the surrogate, one number for the whole batch.
        probs: probabilities of 1, shape (...). Give either probs or logits.
        logits: log-odds of 1, shape (...).
        kind: a name in `KINDS`, or a function (logits (..., 2), temperature ()) -> one-hots (..., 2).

    Example:
        >>> logits = torch.zeros(3, requires_grad=True)
        >>> bits = StraightThroughBernoulli(1.3, logits=logits, kind="reinmax").rsample()
        >>> set(bits.tolist()) <= {0.0, 1.0}, bool(torch.autograd.grad(bits.sum(), logits)[0].all())
        (True, True)
    """

    has_rsample = True
    codes: StraightThroughOneHotCategorical

    def __init__(
        self,
        temperature: float | Tensor,
        probs: Tensor | None = None,
        logits: Tensor | None = None,
        kind: str | Kind = "st-gumbel-softmax",
        validate_args: bool | None = None,
    ) -> None:
        log_odds = Bernoulli(probs, logits, validate_args=validate_args).logits
        codes = StraightThroughOneHotCategorical(
            temperature, logits=digit_logits(log_odds), kind=kind, validate_args=validate_args
        )
        super().__init__(codes, Size(), log_odds.dtype)

    @property
    def logits(self) -> Tensor:
        """The log-odds of 1, shape (...)."""
        return _log_odds(self.codes)

    @property
    def temperature(self) -> Tensor:
        """The temperature of the surrogate, shape ()."""
        return self.codes.temperature

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """Draw bits with the surrogate gradient with respect to logits; shape sample_shape + (...)."""
        return self._bits(self.codes.rsample(Size(sample_shape))).to(self.sample_dtype)


def _log_odds(codes: Any) -> Tensor:
    logits: Tensor = codes.logits
    return logits[..., 1] - logits[..., 0]


@functools.cache
def joint_bits(event_shape: Size, dtype: torch.dtype = torch.float32) -> Callable[..., Bits]:
    """Return the class of distributions over all joint values of bits, with a probability for each.

    As for :func:`joint_one_hot`, stock Pyro builds a posterior by `type(prior)(logits=...)`.

    Example:
        >>> joint_bits(torch.Size([2]))(probs=torch.eye(4)[1]).mode.tolist()
        [0.0, 1.0]
    """

    @final
    class JointBits(Bits):
        has_enumerate_support = True

        def __init__(
            self, probs: Tensor | None = None, logits: Tensor | None = None, validate_args: bool | None = None
        ) -> None:
            of_codes = joint_one_hot(Size(event_shape).numel(), 2, dtype)
            super().__init__(of_codes(probs, logits, validate_args=validate_args), event_shape, dtype)

        @override
        def __reduce__(self) -> tuple[Any, ...]:
            return _rebuild, (event_shape, dtype, self.codes)

    return JointBits


def _rebuild(event_shape: Size, dtype: torch.dtype, codes: Any) -> Bits:
    return joint_bits(event_shape, dtype)(logits=codes.logits)


@register_kl(Bits, Bits)
def _kl_bits(q: Bits, p: Bits) -> Tensor:
    return kl_divergence(q.codes, p.codes)


@register_kl(StraightThroughBernoulli, torch.distributions.Bernoulli)
def _kl_straight_through(q: StraightThroughBernoulli, p: Any) -> Tensor:
    return categorical_kl(q.codes.logits, digit_logits(p.logits))
