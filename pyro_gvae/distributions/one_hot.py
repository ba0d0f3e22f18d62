"""N one-hots of K categories as one random variable, whose support is all K^N joint codes."""

from collections.abc import Iterator
from typing import Any, ClassVar, Self

import torch
import torch.nn.functional as F
from pyro.distributions import OneHotCategorical, TorchDistribution
from torch import Tensor
from torch.distributions import constraints, register_kl
from typing_extensions import override

from .codes import joint_codes, num_codes
from .parameters import at_least_float32, categorical_kl, logits_of


class FactorizedOneHotCategorical(TorchDistribution):
    r"""N independent one-hot categoricals as *one* random variable z of event shape (N, K).

    log p(z) = sum_n sum_k z_nk log pi_nk with pi_n = softmax(logits_n). No ELBO can enumerate
    `OneHotCategorical(...).to_event(1)`: `TraceEnum_ELBO` silently samples it. This distribution enumerates its
    Cartesian support, all S = K^N joint codes, so the sum is exact even for a decoder that mixes the latents.

    Args:
        probs: category probabilities, shape (..., N, K). Give either probs or logits.
        logits: unnormalized log-probabilities, shape (..., N, K).

    Raises:
        ValueError: if both or neither of probs and logits are given, or if they have fewer than two dimensions.

    Example:
        >>> q = FactorizedOneHotCategorical(logits=torch.zeros(5, 2, 3))
        >>> tuple(q.sample().shape), tuple(q.enumerate_support(expand=False).shape)
        ((5, 2, 3), (9, 1, 2, 3))
        >>> tuple(q.log_prob_table().shape)
        (9, 5)
    """

    arg_constraints: ClassVar = {"logits": constraints.independent(constraints.real_vector, 1)}
    support = constraints.independent(constraints.one_hot, 1)
    has_enumerate_support = True

    def __init__(
        self, probs: Tensor | None = None, logits: Tensor | None = None, validate_args: bool | None = None
    ) -> None:
        given = logits_of(probs, logits)
        self.sample_dtype = given.dtype
        self.logits = at_least_float32(given)  # (..., N, K)
        if self.logits.dim() < 2:
            raise ValueError(
                f"Expected logits of shape (..., N, K), but found {tuple(self.logits.shape)}. "
                "Try logits.unsqueeze(-2) for a single latent."
            )
        super().__init__(self.logits.shape[:-2], self.logits.shape[-2:], validate_args=validate_args)

    @override
    def expand(self, batch_shape: Any, _instance: Self | None = None) -> "FactorizedOneHotCategorical":
        new = self._get_checked_instance(FactorizedOneHotCategorical, _instance)
        new.logits = self.logits.expand(torch.Size(batch_shape) + self.event_shape)
        new.sample_dtype = self.sample_dtype
        TorchDistribution.__init__(new, torch.Size(batch_shape), self.event_shape, validate_args=False)
        new._validate_args = self._validate_args
        return new

    @property
    def num_latents(self) -> int:
        """N, the number of latents."""
        return self.event_shape[0]

    @property
    def num_categories(self) -> int:
        """K, the number of categories."""
        return self.event_shape[1]

    @property
    def num_codes(self) -> int:
        """S = K^N, the number of joint codes."""
        return num_codes(*self.event_shape)

    @property
    def log_probs(self) -> Tensor:
        """log pi, shape (..., N, K). Excluded categories have the lowest finite number, so that 0 log 0 = 0."""
        log_probs = F.log_softmax(self.logits, -1)
        return log_probs.clamp_min(torch.finfo(log_probs.dtype).min)

    @property
    def probs(self) -> Tensor:
        """pi, shape (..., N, K)."""
        return F.softmax(self.logits, -1)

    @property
    def mean(self) -> Tensor:
        """E[z] = pi, shape (..., N, K)."""
        return self.probs

    @property
    def variance(self) -> Tensor:
        """Var[z_nk] = pi_nk (1 - pi_nk), shape (..., N, K)."""
        return self.probs * (1 - self.probs)

    @property
    def mode(self) -> Tensor:
        """The most probable code, shape (..., N, K)."""
        return F.one_hot(self.logits.argmax(-1), self.num_categories).to(self.sample_dtype)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Draw one-hot codes without a gradient, of shape sample_shape + (..., N, K)."""
        with torch.no_grad():
            if self.num_categories == 2:  # two to four times as fast as a multinomial
                ones = self.logits.diff(dim=-1).squeeze(-1).sigmoid()
                second = torch.bernoulli(ones.expand(*sample_shape, *ones.shape)).to(self.sample_dtype)
                return torch.stack([1 - second, second], -1)
            found = OneHotCategorical(logits=self.logits, validate_args=False).sample(torch.Size(sample_shape))
            return found.to(self.sample_dtype)

    def log_prob(self, value: Tensor) -> Tensor:
        """Return log p(z) in nats, shape (...). Codes (S, 1, N, K) under logits (B, N, K) take one matrix product."""
        if self._validate_args:
            self._validate_sample(value)
        # In einsum, a batch dimension that only one operand has becomes rows or columns of a matrix product.
        return torch.einsum("...m,...m->...", value.flatten(-2).to(self.logits), self.log_probs.flatten(-2))

    def log_prob_table(self, start: int = 0, stop: int | None = None) -> Tensor:
        """Return log p of codes `start` to `stop` - 1 under each datum of a batch (B,), in nats: (stop - start, B)."""
        codes = joint_codes(
            self.num_latents,
            self.num_categories,
            start,
            stop,
            dtype=self.logits.dtype,
            device=self.logits.device,
        )
        return codes.flatten(-2) @ self.log_probs.reshape(-1, self.num_latents * self.num_categories).T

    def entropy(self) -> Tensor:
        """Return the entropy -sum_nk pi_nk log pi_nk in nats, shape (...)."""
        return -(self.probs * self.log_probs).sum((-2, -1))

    def enumerate_support(self, expand: bool = True) -> Tensor:
        """Return all S = K^N joint codes, shape (S, ..., N, K); batch dimensions have size 1 if `expand` is False."""
        codes = joint_codes(
            self.num_latents, self.num_categories, dtype=self.sample_dtype, device=self.logits.device
        )  # (S, N, K)
        codes = codes.reshape((-1,) + (1,) * len(self.batch_shape) + self.event_shape)
        return codes.expand((-1, *self.batch_shape, *self.event_shape)) if expand else codes

    def code_slices(self, size: int) -> Iterator[Tensor]:
        """Yield the joint codes in slices (s, N, K) of s <= `size` codes, each created on demand.

        Raises:
            ValueError: if `size` is below 1.
        """
        if size < 1:
            raise ValueError(f"Expected a slice size of at least one code, but found {size}.")
        for start in range(0, self.num_codes, size):
            yield joint_codes(
                self.num_latents,
                self.num_categories,
                start,
                min(start + size, self.num_codes),
                dtype=self.sample_dtype,
                device=self.logits.device,
            )


@register_kl(FactorizedOneHotCategorical, FactorizedOneHotCategorical)
def _kl_factorized(q: FactorizedOneHotCategorical, p: FactorizedOneHotCategorical) -> Tensor:
    """Return sum_n KL(q_n || p_n) in nats, shape (...)."""
    return categorical_kl(q.logits, p.logits).sum(-1)
