"""N one-hots of K categories that may depend on each other, with a probability for each of the K^N joint codes."""

import functools
from typing import Any, ClassVar, Self, final

import torch
import torch.nn.functional as F
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import constraints
from typing_extensions import override

from .codes import code_numbers, joint_codes, num_codes, numbered_codes
from .parameters import at_least_float32, logits_of


class JointOneHotCategorical(TorchDistribution):
    r"""Abstract base: any distribution over the S = K^N joint codes z of event shape (N, K), such as p(z | x).

    N, K and the dtype of samples are attributes of the class, and :func:`joint_one_hot` makes a class for each
    combination. The reason is that stock Pyro builds a posterior by `type(prior)(logits=...)`, with one logit for each
    enumerated value.

    Args:
        probs: probabilities of the codes in lexicographic order, shape (..., S). Give either probs or logits.
        logits: unnormalized log-probabilities, shape (..., S).

    Raises:
        ValueError: if both or neither are given, or if there are not S entries.

    Example:
        >>> p = joint_one_hot(2, 3)(probs=torch.eye(9)[5])  # all mass on one of nine codes
        >>> p.mode.argmax(-1).tolist(), p.mean.argmax(-1).tolist()
        ([1, 2], [1, 2])
    """

    num_latents: ClassVar[int]
    num_categories: ClassVar[int]
    sample_dtype: ClassVar[torch.dtype]

    arg_constraints: ClassVar = {"logits": constraints.real_vector}
    support = constraints.independent(constraints.one_hot, 1)
    has_enumerate_support = True

    def __init__(
        self, probs: Tensor | None = None, logits: Tensor | None = None, validate_args: bool | None = None
    ) -> None:
        given = at_least_float32(logits_of(probs, logits))
        if given.shape[-1] != self.num_codes:
            raise ValueError(
                f"Expected one entry for each of the {self.num_categories}^{self.num_latents} = {self.num_codes:,} "
                f"joint codes, but found shape {tuple(given.shape)}."
            )
        self.logits = F.log_softmax(given, -1)  # (..., S)
        event_shape = torch.Size((self.num_latents, self.num_categories))
        super().__init__(given.shape[:-1], event_shape, validate_args=validate_args)

    @override
    def expand(self, batch_shape: Any, _instance: Self | None = None) -> Self:
        new = self._get_checked_instance(type(self), _instance)
        new.logits = self.logits.expand(torch.Size(batch_shape) + self.logits.shape[-1:])
        TorchDistribution.__init__(new, torch.Size(batch_shape), self.event_shape, validate_args=False)
        new._validate_args = self._validate_args
        return new

    @override
    def __reduce__(self) -> tuple[Any, ...]:
        shape = self.num_latents, self.num_categories, self.sample_dtype
        return _rebuild, (*shape, self.logits, self._validate_args)

    @property
    def num_codes(self) -> int:
        """S = K^N, the number of joint codes."""
        return num_codes(self.num_latents, self.num_categories)

    @property
    def probs(self) -> Tensor:
        """The probability of each joint code, shape (..., S)."""
        return self.logits.exp()

    @property
    def mean(self) -> Tensor:
        """E[z], the marginal probabilities p(z_n = k), shape (..., N, K)."""
        codes = self.enumerate_support(expand=False).to(self.logits).reshape(self.num_codes, -1)  # (S, NK)
        return (self.probs @ codes).unflatten(-1, self.event_shape)

    @property
    def variance(self) -> Tensor:
        """Var[z_nk], shape (..., N, K)."""
        return self.mean * (1 - self.mean)

    @property
    def mode(self) -> Tensor:
        """The most probable joint code, shape (..., N, K)."""
        return self._codes(self.logits.argmax(-1))

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Draw one-hot codes without a gradient, of shape sample_shape + (..., N, K)."""
        shape = self._extended_shape(torch.Size(sample_shape))[:-2]
        with torch.no_grad():
            number = torch.multinomial(self.probs.reshape(-1, self.num_codes), shape.numel() // self._rows, True)
            return self._codes(number.T.reshape(shape))

    def log_prob(self, value: Tensor) -> Tensor:
        """Return log p(z) in nats, shape (...). Codes (S, 1, N, K) under probabilities (B, S) give (S, B)."""
        if self._validate_args:
            self._validate_sample(value)
        # Use one index into all entries: the backward pass of gathering from expanded logits would take S^2 B memory.
        row = torch.arange(self._rows, device=value.device).reshape(self.batch_shape)
        return self.logits.reshape(-1)[row * self.num_codes + code_numbers(value)]

    def entropy(self) -> Tensor:
        """Return the entropy -sum_z p(z) log p(z) in nats, shape (...)."""
        return -(self.probs * self.logits.clamp_min(torch.finfo(self.logits.dtype).min)).sum(-1)  # 0 log 0 = 0

    def enumerate_support(self, expand: bool = True) -> Tensor:
        """Return all S = K^N joint codes, shape (S, ..., N, K); batch dimensions have size 1 if `expand` is False."""
        codes = joint_codes(*self.event_shape, dtype=self.sample_dtype, device=self.logits.device)  # (S, N, K)
        codes = codes.reshape((-1,) + (1,) * len(self.batch_shape) + self.event_shape)
        return codes.expand((-1, *self.batch_shape, *self.event_shape)) if expand else codes

    @property
    def _rows(self) -> int:
        return self.batch_shape.numel()

    def _codes(self, number: Tensor) -> Tensor:
        return numbered_codes(number, *self.event_shape, dtype=self.sample_dtype)


@functools.cache
def joint_one_hot(
    num_latents: int, num_categories: int, dtype: torch.dtype = torch.float32
) -> type[JointOneHotCategorical]:
    """Return the class of distributions over codes of shape (N, K) whose samples have this dtype.

    Example:
        >>> joint_one_hot(2, 3)(logits=torch.zeros(9)).sample().shape  # one logit for each of the 3^2 codes
        torch.Size([2, 3])
    """

    @final
    class JointOneHots(JointOneHotCategorical):
        pass

    JointOneHots.num_latents, JointOneHots.num_categories = num_latents, num_categories
    JointOneHots.sample_dtype = dtype
    return JointOneHots


def _rebuild(
    num_latents: int, num_categories: int, dtype: torch.dtype, logits: Tensor, validate_args: bool
) -> JointOneHotCategorical:
    return joint_one_hot(num_latents, num_categories, dtype)(logits=logits, validate_args=validate_args)
