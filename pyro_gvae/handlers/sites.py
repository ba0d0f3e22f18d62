"""One form for all discrete distributions: N digits of K categories, whose values are one-hots, bits or integers.

A bit is the second component of a one-hot of two categories; an integer is the position of the one. Counts of at most
n, such as binomial ones, are integers whose values are floating-point numbers.
"""

from collections.abc import Callable
from enum import Enum
from typing import Any, NamedTuple, Self

import torch
from pyro.distributions import (
    Bernoulli,
    Categorical,
    Independent,
    MaskedDistribution,
    OneHotCategorical,
    OneHotCategoricalStraightThrough,
    RelaxedBernoulli,
    RelaxedBernoulliStraightThrough,
    RelaxedOneHotCategoricalStraightThrough,
    TorchDistribution,
)
from torch import Size, Tensor

from ..distributions import surrogates
from ..distributions.bits import FactorizedBernoulli, StraightThroughBernoulli, digit_logits, joint_bits
from ..distributions.concrete import ExpConcrete, RelaxedOneHotCategorical
from ..distributions.counts import BOUNDED, Counts, logits_of_counts
from ..distributions.coupled import AS_CODES, IN_LOGS, CodePrior, Coupled, Form
from ..distributions.joint import joint_one_hot
from ..distributions.one_hot import FactorizedOneHotCategorical
from ..distributions.parameters import at_least_float32, scalar_temperature
from ..distributions.straight_through import StraightThroughOneHotCategorical
from ..runtime.compat.pyro import mask_of

Program = Callable[..., Any]
Messages = Any  # Pyro's messages are dictionaries that handlers edit in place.


class Kind(Enum):
    """The kind of values of a discrete latent."""

    ONE_HOT = "one-hots"
    BIT = "bits"
    INTEGER = "integers"

    def values_of(self, codes: Tensor) -> Tensor:
        """Convert one-hots (..., K) to the values that they stand for; they may be soft, except for integers."""
        if self is Kind.BIT:
            return codes[..., 1]
        return codes if self is Kind.ONE_HOT else codes.argmax(-1)


class Discrete(NamedTuple):
    """The parameters of a discrete distribution of any class."""

    kind: Kind
    natural: Tensor  # logits (*batch_shape, *shape, K), or log-odds of 1 (*batch_shape, *shape) for bits
    num_event_dims: int  # of `shape`, the shape of the N digits
    temperature: Tensor | None  # of a relaxed or straight-through distribution
    mask: bool | Tensor | None
    dtype: torch.dtype  # of its values
    prior: CodePrior | None = None  # the prior that couples its digits, whose logits are then uniform

    @property
    def logits(self) -> Tensor:
        """The logits of the digits, shape (*batch_shape, *shape, K)."""
        return digit_logits(self.natural) if self.kind is Kind.BIT else self.natural

    @property
    def log_probs(self) -> Tensor:
        """log pi (*batch_shape, N, K), at least float32; excluded categories have the lowest finite number."""
        logits = at_least_float32(self.logits).reshape(*self.batch_shape, *self.code_shape)
        return self.normalized(logits).clamp_min(torch.finfo(logits.dtype).min)

    def normalized(self, logits: Tensor) -> Tensor:
        """Return log-probabilities for logits (..., K) of the digits; those of bits are log-probabilities already."""
        return logits if self.kind is Kind.BIT else torch.log_softmax(logits, -1)

    def with_logits(self, logits: Tensor) -> Self:
        """Return the same with other logits (*batch_shape, *shape, K) of the digits, and without a coupling prior."""
        natural = logits[..., 1] - logits[..., 0] if self.kind is Kind.BIT else logits
        return self._replace(natural=natural, prior=None)

    @property
    def num_categories(self) -> int:
        """K."""
        return 2 if self.kind is Kind.BIT else self.natural.shape[-1]

    @property
    def batch_shape(self) -> Size:
        """The sizes of its plates."""
        digits = self._digits()
        return Size(digits[: len(digits) - self.num_event_dims])

    @property
    def shape(self) -> Size:
        """The shape of the N digits."""
        digits = self._digits()
        return Size(digits[len(digits) - self.num_event_dims :])

    @property
    def event_shape(self) -> Size:
        """The event shape of its values."""
        return Size((*self.shape, self.num_categories)) if self.kind is Kind.ONE_HOT else self.shape

    @property
    def code_shape(self) -> tuple[int, int]:
        """The shape (N, K) of a code."""
        return self.shape.numel(), self.num_categories

    def values_of(self, codes: Tensor) -> Tensor:
        """Convert one-hots (..., *shape, K) to values, in the dtype of the program's samples."""
        return self.kind.values_of(codes).to(self.dtype)

    def code_logits(self) -> Tensor:
        """Return log p of each joint code, shape (..., S); 0 where the site is masked, so that all codes are equal."""
        factorized = FactorizedOneHotCategorical(logits=self.logits.reshape(*self.batch_shape, *self.code_shape))
        logits = factorized.log_prob_table().T.reshape(*self.batch_shape, -1)  # (..., S)
        if self.prior is not None:
            logits = logits + self.prior.coupling(self.prior.all_codes())
        if self.mask is None:
            return logits
        return torch.where(torch.as_tensor(self.mask, device=logits.device).unsqueeze(-1), logits, 0.0)

    def joint(self) -> TorchDistribution:
        """Return the distribution of exact values, of a class that Pyro can turn into a posterior over joint codes."""
        logits = self.code_logits()
        if self.kind is Kind.INTEGER:
            return self._integers(logits)
        if self.kind is Kind.BIT:
            is_one_bit = self.num_event_dims == 0
            return Bernoulli(logits=logits.diff().squeeze(-1)) if is_one_bit else joint_bits(self.shape)(logits=logits)
        if self.num_event_dims == 0:
            return OneHotCategorical(logits=logits.to(self.dtype))
        return joint_one_hot(*self.code_shape, self.dtype)(logits=logits)

    def discrete(self) -> TorchDistribution:
        """Return the distribution of exact values; N one-hots or bits are one variable, which can be enumerated."""
        natural = self.natural.to(self.dtype) if self.kind is not Kind.INTEGER else self.natural
        if self.kind is Kind.INTEGER:
            return self._shaped(self._integers(natural))
        if self.kind is Kind.BIT:
            event_dim = self.num_event_dims
            return self._shaped(
                FactorizedBernoulli(logits=natural, event_dim=event_dim) if event_dim else Bernoulli(logits=natural)
            )
        one_site = FactorizedOneHotCategorical if self.num_event_dims else OneHotCategorical
        return self._shaped(one_site(logits=natural))

    def log_relaxed(self, temperature: float | Tensor) -> TorchDistribution:
        """Return the Concrete distribution of the digits, in log space."""
        return self._shaped(ExpConcrete(temperature, logits=self.logits), len(self.shape) + 1, IN_LOGS)

    def relaxed(self, temperature: float | Tensor) -> TorchDistribution:
        """Return the distribution of relaxed one-hots or bits, whose digits are not coupled."""
        if self.kind is Kind.BIT:
            scalar = scalar_temperature(temperature, self.natural)
            return self._shaped(RelaxedBernoulli(scalar, logits=self.natural, validate_args=False))
        independent = self._replace(prior=None)
        return independent._shaped(RelaxedOneHotCategorical(temperature, logits=self.natural, validate_args=False))

    def straight_through(self, kind: surrogates.Kind, temperature: float | Tensor) -> TorchDistribution:
        """Return the distribution of exact one-hots or bits with a surrogate gradient."""
        family = StraightThroughBernoulli if self.kind is Kind.BIT else StraightThroughOneHotCategorical
        return self._shaped(family(temperature, logits=self.natural.to(self.dtype), kind=kind))

    def sample(self, sample_shape: Size) -> Tensor:
        """Draw codes without a gradient, of shape sample_shape + (*batch_shape, N, K)."""
        if self.prior is not None:
            shape = Size((*sample_shape, *self.batch_shape))
            return self.prior.draw(shape.numel()).reshape(*shape, *self.code_shape)
        logits = self.logits.reshape(*self.batch_shape, *self.code_shape)
        return FactorizedOneHotCategorical(logits=logits, validate_args=False).sample(sample_shape)

    def _integers(self, logits: Tensor) -> TorchDistribution:
        return Counts(logits=logits) if self.dtype.is_floating_point else Categorical(logits=logits)

    def _shaped(self, fn: TorchDistribution, event_dim: int | None = None, form: Form = AS_CODES) -> TorchDistribution:
        """Give a distribution the site's event dimensions, coupling prior and mask."""
        event_dim = len(self.event_shape) if event_dim is None else event_dim
        shaped: TorchDistribution = fn.to_event(event_dim - len(fn.event_shape))
        if self.prior is not None:
            shaped = Coupled(shaped, self.prior, form)
        return shaped if self.mask is None else shaped.mask(self.mask)

    def _digits(self) -> tuple[int, ...]:
        return tuple(self.natural.shape if self.kind is Kind.BIT else self.natural.shape[:-1])


_HIDE_THEIR_GRADIENT = (
    OneHotCategoricalStraightThrough,
    RelaxedOneHotCategoricalStraightThrough,
    RelaxedBernoulliStraightThrough,
)
_CLASSES: dict[Kind, tuple[type, ...]] = {
    Kind.ONE_HOT: (
        FactorizedOneHotCategorical,
        StraightThroughOneHotCategorical,
        torch.distributions.RelaxedOneHotCategorical,
        torch.distributions.OneHotCategorical,
    ),
    Kind.BIT: (
        FactorizedBernoulli,
        StraightThroughBernoulli,
        torch.distributions.RelaxedBernoulli,
        torch.distributions.Bernoulli,
    ),
    Kind.INTEGER: (torch.distributions.Categorical, *BOUNDED),
}


def kind_of(fn: Any) -> Kind | None:
    """Return the kind of a discrete distribution, relaxed or not; None for any other.

    Raises:
        ValueError: if it is one of Pyro's straight-through distributions, whose gradient depends on a hidden attribute
            of their samples.
    """
    while isinstance(fn, MaskedDistribution | Independent | Coupled):
        fn = fn.base_dist
    if isinstance(fn, _HIDE_THEIR_GRADIENT):
        plain = "Bernoulli" if isinstance(fn, RelaxedBernoulliStraightThrough) else "OneHotCategorical"
        raise ValueError(
            f"Expected sites that are relaxed or discrete, but found a {type(fn).__name__}, which is both. Try "
            f"{plain}, and straight_through(program)."
        )
    return next((kind for kind, classes in _CLASSES.items() if isinstance(fn, classes)), None)


def discrete(fn: Any) -> Discrete | None:
    """Read a distribution as digits if it is a one-hot, a bit or an integer, relaxed or not; return None for any other.

    Raises:
        ValueError: if it is one of Pyro's straight-through distributions, or if it masks some of its digits.
    """
    kind = kind_of(fn)
    return None if kind is None else _read(fn, kind)


def _read(fn: Any, kind: Kind) -> Discrete:
    if isinstance(fn, MaskedDistribution):
        inner, mask = _read(fn.base_dist, kind), mask_of(fn)
        return inner._replace(mask=mask if inner.mask is None else inner.mask & mask)
    if isinstance(fn, Independent):
        inner = _read(fn.base_dist, kind)
        if isinstance(inner.mask, Tensor) and fn.reinterpreted_batch_ndims:
            raise ValueError(
                f"Expected a mask over data, but found one over the latents of a site of {kind.value}. Try .mask() "
                "after .to_event(1)."
            )
        return inner._replace(num_event_dims=inner.num_event_dims + fn.reinterpreted_batch_ndims)
    if isinstance(fn, Coupled):
        return _read(fn.base_dist, kind)._replace(prior=fn.prior)
    if isinstance(fn, BOUNDED):
        natural = logits_of_counts(fn)
        return Discrete(kind, natural, 0, None, None, natural.dtype)
    own_dims = len(fn.event_shape) - (kind is Kind.ONE_HOT)
    is_long = kind is Kind.INTEGER and not isinstance(fn, Counts)
    dtype = torch.long if is_long else getattr(fn, "sample_dtype", fn.logits.dtype)
    return Discrete(kind, fn.logits, own_dims, getattr(fn, "temperature", None), None, dtype)


def at_temperature(temperature: Tensor) -> Any:
    """Return the settings that give a discrete site its temperature: `pyro.sample("z", .., infer=...)`."""
    return {"temperature": temperature}  # Any: the type of Pyro's settings has no such key


def plates_of(msg: Messages) -> frozenset[str]:
    """Return the names of the vectorized plates around a site."""
    return frozenset(frame.name for frame in msg["cond_indep_stack"] if frame.vectorized)


#: A program with its data bound.
Run = Callable[[], Any]
