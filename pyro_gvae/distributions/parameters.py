"""Checks and formulas that distributions share: parameters, logits, temperatures, Gumbel noise, the KL."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributions import constraints
from torch.distributions.utils import probs_to_logits


class _NoNaN(constraints.Constraint):
    """Check for NaN by one sum: cheaper than `constraints.real_vector` on the parameters of all codes."""

    event_dim = 1

    def check(self, value: Tensor) -> Tensor:
        total = value.sum()
        # A sum is NaN if one of its terms is, but also if it adds inf and -inf.
        return (value == value).all(-1) if total.isnan() else total == total


no_nan = _NoNaN()


def gumbel_like(logits: Tensor, shape: torch.Size) -> Tensor:
    """Draw standard Gumbel noise g = -log E with E ~ Exp(1), always finite, of the given shape and `logits`' dtype."""
    # From uniform numbers, as in torch: on a CPU these take a fifth of the time of exponential_().
    uniform = torch.rand(shape, dtype=logits.dtype, device=logits.device)
    return -(-uniform.clamp_min(torch.finfo(logits.dtype).tiny).log()).log()


def scalar_temperature(temperature: float | Tensor, like: Tensor) -> Tensor:
    """Return the temperature as a tensor of shape (), with the dtype and device of `like`.

    A temperature with a shape of its own would broadcast against the batch and turn a log-density of shape (B,) into
    one of shape (B, B) (PyTorch issue 37162), so only a single number is accepted.

    Raises:
        ValueError: if the temperature is not one positive number.
    """
    if isinstance(temperature, Tensor):
        if temperature.numel() != 1:
            raise ValueError(
                f"Expected one temperature for all sites of the batch, but found a tensor of shape "
                f"{tuple(temperature.shape)}, which would broadcast against the batch. Try a float."
            )
        return temperature.reshape(()).to(like)
    try:
        value = float(temperature)
    except (TypeError, ValueError):
        value = math.nan
    if not value > 0 or math.isinf(value):
        raise ValueError(
            f"Expected a positive temperature, but found {temperature!r}. Try 1.0, or 0.5 for harder samples."
        )
    return torch.tensor(value, dtype=like.dtype, device=like.device)


def check_temperature(temperature: float | Tensor) -> None:
    """Check the temperature's value, even if it is a tensor.

    Reading a tensor's value would break a recording and slow a training loop, so call this only outside of both.

    Raises:
        ValueError: if the temperature is not one positive number.
    """
    scalar = scalar_temperature(temperature, torch.zeros(()))
    scalar_temperature(scalar.item(), scalar)


def categorical_kl(posterior_logits: Tensor, prior_logits: Tensor) -> Tensor:
    """Compute KL(q || p) = sum_k q_k (log q_k - log p_k) of categoricals with logits (..., K), in nats: shape (...)."""
    log_q = F.log_softmax(posterior_logits, -1)  # (..., K)
    log_p = F.log_softmax(prior_logits, -1)  # (..., K)
    q = log_q.exp()
    # 0 log 0 = 0: a category that the posterior excludes (logit -inf) adds nothing. Mask the difference and not the
    # product: the product's derivative would contain -inf - -inf.
    return (q * (log_q - log_p).masked_fill(q == 0, 0.0)).sum(-1)


def logits_of(probs: Tensor | None, logits: Tensor | None) -> Tensor:
    """Return the logits if they are given, or else the logarithms of the probabilities.

    Raises:
        ValueError: if both or neither are given, or they are a scalar.
    """
    if (probs is None) == (logits is None):
        raise ValueError("Expected either probs or logits, but found both or neither. Try logits=encoder(x).")
    found = logits if probs is None else probs_to_logits(probs)
    assert found is not None
    if found.dim() < 1:
        raise ValueError(
            "Expected logits of shape (..., K), but found a scalar. Try logits with one entry for each category."
        )
    return found


def halve(logits: Tensor, source: int, to: int) -> None:
    """Divide the probability of category `source` equally between `source` and `to`, in place; logits (..., K).

    Example:
        >>> logits = torch.tensor([0.8, 0.2, 0.0]).log()
        >>> halve(logits, 0, 2)
        >>> [round(p, 2) for p in logits.softmax(-1).tolist()]
        [0.4, 0.2, 0.4]
    """
    logits[..., source] -= math.log(2)
    logits[..., to] = logits[..., source]


def at_least_float32(logits: Tensor) -> Tensor:
    """Convert half precision to float32: noise and log-probabilities in half precision are off by whole nats."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def impossible_as_infinite(log_probs: Tensor) -> Tensor:
    """Set values to -inf that are so low that an impossible code must be part of them, without a gradient.

    In sums, an impossible code has the lowest finite number as its log-probability, which times a probability of 0 is 0
    and not NaN. Times any other probability in these sums, at least 1e-18, it is below all log-probabilities of data.
    """
    return log_probs.masked_fill(log_probs < 1e-18 * torch.finfo(log_probs.dtype).min, -math.inf)
