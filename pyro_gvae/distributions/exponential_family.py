"""Exponential families over pixels: one matrix product scores every code under every datum.

Over D independent pixels an exponential family scores a datum x under natural parameters eta by

    log p(x | eta) = coefficients(eta) . T(x) - A(eta) + h(x),

with sufficient statistics T, log-normalizer A and log base measure h. The only term that depends on both a code s and a
datum b is a dot product, so the table over all S codes and B data is

    coefficients @ T(x).T - A[:, None] + h[None, :]    # (S, B)

The decoder runs once per code, not once per (code, datum), and no tensor of size S x B x D is made.
"""

import copy
from abc import abstractmethod
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Self

import torch
from pyro.distributions import TorchDistribution
from pyro.distributions.util import broadcast_shape
from pyro.ops.provenance import ProvenanceTensor, extract_provenance, track_provenance
from pyro.util import ignore_jit_warnings
from torch import Size, Tensor
from typing_extensions import override

Function = Callable[[Tensor], Tensor]


class ExponentialFamily(TorchDistribution):
    """Abstract base: an exponential family over D independent pixels, with event shape (D,).

    ``log_prob`` is a matrix product where natural parameters and data share no batch dimension, e.g. natural (S, 1, D)
    and x (B, D). It is computed elementwise where each datum has its own parameters, e.g. (B, D) and (B, D). ``expand``
    is lazy: it changes only the batch shape and leaves ``natural`` as it is, so the matrix product remains one inside a
    Pyro plate, which expands its distributions.

    Natural parameters in half precision are converted to float32. Data are converted to the dtype of the parameters.

    Args:
        natural: the decoder's output, (..., D * natural_per_pixel).
        natural_per_pixel: number of natural parameters per pixel.
        validate_args: whether to check parameters and data; by default torch's and Pyro's setting.

    Raises:
        ValueError: if natural has the wrong shape or, with validation, contains a NaN. ``log_prob`` raises it if the
            data have the wrong shape or, with validation, lie outside the support.
    """

    _domain: str

    def __init__(self, natural: Tensor, natural_per_pixel: int, validate_args: bool | None = None) -> None:
        if natural.dim() == 0 or natural_per_pixel < 1 or natural.shape[-1] % natural_per_pixel:
            last = "D" if natural_per_pixel == 1 else f"D * {natural_per_pixel}"
            raise ValueError(
                f"Expected natural of shape (..., {last}), but found {tuple(natural.shape)}. "
                f"Try a decoder with {natural_per_pixel} output(s) for each of the D pixels."
            )
        self.natural = natural.to(score_dtype(natural))
        event_shape = Size([fixed(natural.shape[-1]) // natural_per_pixel])
        super().__init__(natural.shape[:-1], event_shape, validate_args=validate_args)

    @property
    @abstractmethod
    def coefficients(self) -> Tensor:
        """The coefficients of T(x), with the shape of ``natural``."""

    @abstractmethod
    def sufficient_statistics(self, x: Tensor) -> Tensor:
        """Return T(x), of shape (..., D * natural_per_pixel), for x (..., D)."""

    @abstractmethod
    def log_normalizer(self) -> Tensor:
        """Return A(eta) summed over pixels, of shape ``natural.shape[:-1]``, not expanded to the batch shape."""

    @abstractmethod
    def log_base_measure(self, x: Tensor) -> Tensor:
        """Return h(x) summed over pixels, of shape ``x.shape[:-1]``."""

    @abstractmethod
    def _outer_scores(self, x: Tensor) -> Tensor:
        """Return coefficients . T - A + h for every row of x (B, D): ``natural.shape[:-1] + (B,)``."""

    @abstractmethod
    def _paired_log_prob(self, x: Tensor) -> Tensor:
        """Return the score where each datum has its own parameters: rounded pixel by pixel, then summed."""

    @abstractmethod
    def _pixel_mean(self) -> Tensor:
        """Return E[x], of shape ``natural.shape[:-1] + (D,)``, not expanded to the batch shape."""

    @property
    def mean(self) -> Tensor:
        """The expected pixels E[x], of shape ``batch_shape + (D,)``."""
        return self._pixel_mean().expand(self.batch_shape + self.event_shape)

    def expand(self, batch_shape: Any, _instance: Any = None) -> Self:
        """Return the same distribution with a larger batch shape. This takes no memory, here or in ``log_prob``.

        Raises:
            ValueError: if the current batch shape does not expand to the new one.
        """
        batch_shape = Size(batch_shape)
        if _broadcast(self.batch_shape, batch_shape) != batch_shape:
            raise ValueError(
                f"Expected a batch shape that {tuple(self.batch_shape)} expands to, but found {tuple(batch_shape)}."
            )
        new = copy.copy(self)
        new._batch_shape = batch_shape
        return new

    def log_prob(self, value: Tensor) -> Tensor:
        """Return log p(value | natural), summed over pixels.

        Args:
            value: (..., D); its batch dimensions broadcast with ``batch_shape``.

        Returns:
            Log-probabilities in nats; their shape is that to which ``batch_shape`` and ``value.shape[:-1]`` broadcast.

        Raises:
            ValueError: if value has the wrong shape or, with validation, lies outside the support.
        """
        self._validate_sample(value)
        own, given = Size(self.natural.shape[:-1]), Size(value.shape[:-1])  # the shape of Pyro's wrapper is a tuple
        shape, rows = _broadcast(self.batch_shape, given), _broadcast(own, given)
        if rows.numel() <= max(own.numel(), given.numel()):
            log_prob = self._paired_log_prob(value)
        elif value.dim() == 2 and own[-1] == 1:
            log_prob = self._outer_log_prob(value).squeeze(-2)
        else:
            # In einsum, a batch dimension that only one operand has becomes rows or columns of a matrix product, and
            # one that both have becomes its batch.
            family, value = self._centred(value)
            with full_precision(value):
                products = torch.einsum("...d,...d->...", family.coefficients, family.sufficient_statistics(value))
            log_prob = products - family.log_normalizer() + family.log_base_measure(value)
        return log_prob.to(self.natural.dtype).expand(shape)

    def outer_log_prob(self, x: Tensor) -> Tensor:
        """Return log p(x_b | natural_s) of every datum under every code, by one matrix product.

        Args:
            x: (B, D).

        Returns:
            Log-probabilities in nats, (S, B) for natural (S, D); in general ``natural.shape[:-1] + (B,)``.

        Raises:
            ValueError: if x has the wrong shape or, with validation, lies outside the support.

        Example:
            >>> from pyro_gvae.distributions.bernoulli import Bernoulli
            >>> codes = Bernoulli(torch.zeros(4096, 784))
            >>> codes.outer_log_prob(torch.ones(100, 784)).shape
            torch.Size([4096, 100])
        """
        self._validate_sample(x)
        if x.dim() != 2:
            raise ValueError(f"Expected x of shape (B, {self.event_shape[0]}), but found {tuple(x.shape)}.")
        return self._outer_log_prob(x)

    def _outer_log_prob(self, x: Tensor) -> Tensor:
        family, x = self._centred(x)
        with full_precision(x):
            return family._outer_scores(x).to(self.natural.dtype)

    def _centred(self, x: Tensor) -> tuple[Self, Tensor]:
        """Return the family and data to multiply: both shifted by the same amount, in the precision needed."""
        return self, x

    def _validate_sample(self, x: Tensor) -> None:
        if not isinstance(x, Tensor):
            raise ValueError(f"Expected x to be a tensor, but found {type(x)}. Try torch.as_tensor(x).")
        if x.shape[-1:] != self.event_shape:
            raise ValueError(f"Expected x of shape (..., {self.event_shape[0]}), but found {tuple(x.shape)}.")
        if self._validate_args and not self._supports(x):
            raise ValueError(f"Expected x {self._domain}, but found values from {x.min():g} to {x.max():g}.")

    def _supports(self, x: Tensor) -> bool:
        """Return whether all data lie in the support. Each slice of a sum asks this of all of its data."""
        support: Any = self.support
        return bool(support.check(x).all())


class CanonicalFamily(ExponentialFamily):
    """Abstract base: the natural parameters are the coefficients, so that dA/d eta = E[T(x)]; h = 0."""

    @abstractmethod
    def _summed_log_normalizer(self, natural: Tensor) -> Tensor:
        """Return A(eta) summed over pixels, of shape ``natural.shape[:-1]``. It need not be differentiable."""

    @abstractmethod
    def _mean_statistics(self, natural: Tensor) -> Tensor:
        """Return E[T(x)], the derivative of A, as a new tensor of natural's shape."""

    @property
    @override
    def coefficients(self) -> Tensor:
        return self.natural

    @override
    def log_base_measure(self, x: Tensor) -> Tensor:
        return self.natural.new_zeros(x.shape[:-1])

    def _outer_scores(self, x: Tensor) -> Tensor:  # h = 0 is not added to what is the largest tensor of a sum
        rows = self.natural.flatten(0, -2) if self.natural.dim() > 1 else self.natural.unsqueeze(0)  # (S, M)
        statistics = self.sufficient_statistics(x)
        scores = applied(_CanonicalScores, rows, statistics, self._summed_log_normalizer, self._mean_statistics)
        return scores.reshape(*self.natural.shape[:-1], -1)  # (..., B)


def fixed(size: Any) -> int:
    """Return a size as a Python number.

    Under `torch.jit.trace`, which stock Jit ELBOs use, sizes are tensors, and custom derivatives cannot take them. A
    trace is valid for one shape of the arguments only.
    """
    with ignore_jit_warnings():
        return int(size)


def applied(function: type[torch.autograd.Function], *args: Any) -> Tensor:
    """Call `function.apply(*args)` so that it also works under `TraceGraph_ELBO`.

    That ELBO wraps each sample, and everything computed from it, in a tensor class that tracks the sites it comes from.
    The class silently drops the derivative of a custom autograd function, and with it the gradient of the likelihood.
    So unwrap the arguments and wrap the result.
    """
    if any(isinstance(arg, ProvenanceTensor) for arg in args):
        plain: Any
        plain, provenance = extract_provenance(args)
        tracked: Tensor = track_provenance(function.apply(*plain), provenance)
        return tracked
    found: Tensor = function.apply(*args)
    return found


class _CanonicalScores(torch.autograd.Function):
    """Compute natural @ T.T - A(natural); its derivative is T - E[T], one matrix product added in place to the mean.

    These are the largest tensors of a sum over codes. Autograd would make three more of them and take longer.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(natural: Tensor, statistics: Tensor, log_normalizer: Function, mean: Function) -> Tensor:
        return (natural @ statistics.mT).sub_(log_normalizer(natural).unsqueeze(-1))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        natural, statistics, _, ctx.mean = inputs
        ctx.save_for_backward(natural, statistics)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        natural, statistics = ctx.saved_tensors
        weight = -grad.sum(-1, keepdim=True)  # (S, 1)
        for_natural = for_statistics = None
        if ctx.needs_input_grad[0] and torch.is_grad_enabled():  # for a second derivative
            for_natural = torch.addmm(ctx.mean(natural) * weight, grad, statistics)
        elif ctx.needs_input_grad[0]:
            for_natural = ctx.mean(natural).mul_(weight).addmm_(grad, statistics)
        if ctx.needs_input_grad[1]:
            for_statistics = grad.mT @ natural
        return for_natural, for_statistics, None, None


def full_precision(x: Tensor) -> AbstractContextManager[Any]:
    """Disable autocast, which would round the terms of a score to half precision."""
    return torch.autocast(x.device.type, enabled=False)


def score_dtype(natural: Tensor) -> torch.dtype:
    """Return the dtype of scores: at least float32, because half precision is off by whole nats on an image."""
    return torch.promote_types(natural.dtype, torch.float32)


def _broadcast(own: Size, other: Size) -> Size:
    try:
        return own if own == other else Size(broadcast_shape(own, other))
    except ValueError:
        raise ValueError(
            f"Expected a batch shape that broadcasts with {tuple(own)}, but found {tuple(other)}."
        ) from None
