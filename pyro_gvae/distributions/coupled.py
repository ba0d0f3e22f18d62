"""N one-hots of K categories with any prior over their joint codes, whose digits may depend on each other."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple, Self, final

import torch
import torch.nn.functional as F
from pyro.distributions import TorchDistribution
from pyro.distributions.util import broadcast_shape
from torch import Size, Tensor, nn
from torch.distributions import Independent, kl_divergence, register_kl
from typing_extensions import override

from ..runtime.arguments import KnowsArguments
from .codes import Left, joint_codes, num_codes
from .one_hot import FactorizedOneHotCategorical
from .parameters import gumbel_like

#: The largest number of joint codes to sum over, where an expectation has no other closed form.
MOST_SUMMED = 2**16
#: The largest number of elements that such a sum holds in memory at a time.
NUMBERS_AT_A_TIME = 10**7


class CodePrior(KnowsArguments, nn.Module, ABC):
    r"""Abstract base: a distribution p(z) over the joint codes of N one-hots of K categories.

    A subclass computes log p(z), also for soft codes, in at least float32, and draws codes. For a prior of more than
    65,536 codes, :math:`\mathrm{E}_q[\log p(z)]` is available only if the subclass computes it.

    Args:
        num_latents: N.
        num_categories: K.
    """

    uniform: Tensor

    def __init__(self, num_latents: int, num_categories: int) -> None:
        super().__init__()
        self.num_latents = num_latents
        self.num_categories = num_categories
        self.register_buffer("uniform", torch.zeros(num_latents, num_categories), persistent=False)

    @property
    def num_codes(self) -> int:
        """S = K^N, the number of joint codes."""
        return num_codes(self.num_latents, self.num_categories)

    @property
    def has_mean(self) -> bool:
        """Whether :meth:`mean_log_prob` can be computed."""
        return self.num_codes <= MOST_SUMMED

    @abstractmethod
    def log_prob(self, codes: Tensor) -> Tensor:
        """Return log p(z) in nats, (..., N, K) -> (...): normalized over one-hot codes, and defined for soft ones."""

    @abstractmethod
    def draw(self, count: int) -> Tensor:
        """Draw `count` one-hot codes without a gradient, shape (count, N, K)."""

    def mean_log_prob(self, probs: Tensor) -> Tensor:
        r"""Return :math:`\mathrm{E}_q[\log p(z)]` in nats under independent digits with these probabilities.

        Args:
            probs: q(z_n = k), shape (..., N, K).

        Returns:
            Shape (...).

        Raises:
            ValueError: if there is no closed form, and there are too many codes to sum over.
        """
        if not self.has_mean:
            raise ValueError(
                f"Expected a prior whose mean log-probability under the guide has a closed form, or at most "
                f"{MOST_SUMMED:,} joint codes to sum over, but found a {type(self).__name__} of "
                f"{self.num_categories}^{self.num_latents} codes, so that its KL has to be sampled. Try "
                "straight-through[kl=sampled], gumbel-softmax[kl=relaxed], an estimator that scores or sums codes, or "
                "the prior 'tree'."
            )
        return mean_over_codes(self.log_prob(self.all_codes()), probs)

    def split(self, digit: int, source: int, to: int) -> None:
        """Split a category of a digit in two, for all values of the other digits; the prior is changed in place.

        Codes with `to` get the same probability as those with `source`: at least half of what the latter had. No other
        code becomes less probable. The old probability of codes with `to` is lost.

        Args:
            digit: n.
            source: the category that is split.
            to: the category that gets half of it.

        Raises:
            ValueError: if the prior does not override this method.
        """
        raise ValueError(
            f"Expected a prior that can split one of its categories in two, but found a {type(self).__name__}, "
            "which has no split method. Try adding one, or revive=None."
        )

    @final
    @torch.no_grad()
    def keep(self, left: Left) -> None:
        """Make it the prior of a code given that this is one of those left, in place: parameters stay the same objects.

        Args:
            left: latents and categories of the smaller prior.

        Raises:
            ValueError: if the conditional prior is not of this kind.
        """
        self.condition(left)
        self.uniform = left.of_each(self.uniform)
        self.num_latents, self.num_categories = left.categories.shape
        if self.arguments is not None:
            self.arguments |= {"num_latents": self.num_latents, "num_categories": self.num_categories}

    def condition(self, left: Left) -> None:
        """Give parameters and buffers the values of the prior given the codes left; sizes are still those before.

        Raises:
            ValueError: if the conditional prior is not of this kind.
        """
        raise ValueError(
            f"Expected a prior that says what it is given that the code is one of some, but found a "
            f"{type(self).__name__}, of which nothing is known but the log-probabilities of codes. Try a condition "
            "method, or prune=None."
        )

    def all_codes(self) -> Tensor:
        """Return all S joint codes in lexicographic order, shape (S, N, K)."""
        like = self.uniform
        return joint_codes(self.num_latents, self.num_categories, dtype=like.dtype, device=like.device)

    @final
    def coupling(self, codes: Tensor) -> Tensor:
        """Return log p(z) - log u(z), where u is uniform over the joint codes; (..., N, K) -> (...)."""
        return self.log_prob(codes) + self.num_latents * math.log(self.num_categories)

    @final
    def mean_coupling(self, probs: Tensor) -> Tensor:
        """Return the mean of :meth:`coupling` under independent digits with these probabilities (..., N, K)."""
        return self.mean_log_prob(probs) + self.num_latents * math.log(self.num_categories)


def mean_over_codes(table: Tensor, probs: Tensor) -> Tensor:
    """Return the mean of a table of all joint codes (S,) under independent digits of probabilities (..., N, K): (...).

    Digits are summed out one after another, so B data take B S operations and memory for B S / K numbers.

    Example:
        >>> mean_over_codes(torch.tensor([0.0, 1.0, 2.0, 3.0]), torch.full((5, 2, 2), 0.5)).tolist()
        [1.5, 1.5, 1.5, 1.5, 1.5]
    """
    num_latents, num_categories = probs.shape[-2:]
    rows = probs.reshape(-1, num_latents, num_categories)
    found = []
    for part in rows.split(max(1, NUMBERS_AT_A_TIME * num_categories // len(table))):
        values = part[:, 0] @ table.reshape(num_categories, -1)  # (b, S / K)
        for n in range(1, num_latents):
            values = (part[:, n].unsqueeze(1) @ values.reshape(len(part), num_categories, -1)).squeeze(1)
        found.append(values.squeeze(-1))
    return torch.cat(found).reshape(probs.shape[:-2])


class Form(NamedTuple):
    """How the values of a site represent codes.

    Attributes:
        codes_of: maps values to codes, possibly soft, (..., N, K) -> (..., N, K).
        drawn: maps the distribution of independent digits and drawn codes to values that represent these codes.
    """

    codes_of: Callable[[Tensor], Tensor]
    drawn: Callable[[Any, Tensor], Tensor]


@torch.no_grad()
def _relaxed_given(digits: Any, codes: Tensor) -> Tensor:
    """Draw log z of Concrete variables, given that their largest components are those of the codes."""
    logits, temperature = digits.base_dist.logits, digits.base_dist.temperature
    # With E ~ Exp(1)^K, perturbed logits given the largest one D are -log E_D at D, -log(E_k / pi_k + E_D) elsewhere.
    exponential = (-gumbel_like(logits, codes.shape)).exp()
    of_largest = (exponential * codes).sum(-1, keepdim=True)
    others = exponential / logits.softmax(-1) + of_largest
    return F.log_softmax(-torch.where(codes > 0, of_largest, others).log() / temperature, -1)


AS_CODES = Form(lambda value: value, lambda digits, codes: codes.to(getattr(digits, "sample_dtype", codes.dtype)))
IN_LOGS = Form(torch.exp, _relaxed_given)


@final
class Coupled(TorchDistribution):
    r"""Digits coupled by a prior, scored in two parts: independent uniform digits, and what the prior adds.

    .. math:: \log p(z) = \log u(z) + (\log p(z) - \log u(z))

    For one-hots, this is log p(z) of the prior. For relaxed digits, the first term is their density. The second is the
    prior's value at soft codes, a weight, so the sum is not a normalized log-density. Samples are drawn from the prior;
    relaxed samples are Concrete, given that their largest components are those of a code drawn from the prior.

    Args:
        base_dist: the uniform digits, of event shape (N, K).
        prior: the prior that couples them.
        form: how values represent codes.

    Example:
        >>> from pyro_gvae.models.priors import MixturePrior
        >>> prior = MixturePrior(2, 3)
        >>> z = coupled(prior).sample((5,))
        >>> torch.allclose(coupled(prior).log_prob(z), prior.log_prob(z), atol=1e-6)
        True
    """

    arg_constraints: ClassVar = {}

    def __init__(self, base_dist: Any, prior: CodePrior, form: Form = AS_CODES) -> None:
        self.base_dist = base_dist
        self.prior = prior
        self.form = form
        self.has_enumerate_support = base_dist.has_enumerate_support
        super().__init__(base_dist.batch_shape, base_dist.event_shape, validate_args=False)

    @override
    def expand(self, batch_shape: Any, _instance: Self | None = None) -> "Coupled":
        return Coupled(self.base_dist.expand(Size(batch_shape)), self.prior, self.form)

    @property
    def support(self) -> Any:
        """The support of the digits."""
        return self.base_dist.support

    def enumerate_support(self, expand: bool = True) -> Tensor:
        """Return all S = K^N joint codes, shape (S, ..., N, K)."""
        codes: Tensor = self.base_dist.enumerate_support(expand=expand)
        return codes

    def log_prob(self, value: Tensor) -> Tensor:
        """Return log p of values (..., N, K), shape (...)."""
        log_prob: Tensor = self.base_dist.log_prob(value)
        return log_prob + self.coupling(value)

    def coupling(self, value: Tensor) -> Tensor:
        """Return what the prior adds to log p of independent digits, in the batch shape: (..., N, K) -> (...)."""
        added = self.prior.coupling(self.form.codes_of(value))
        return added.expand(broadcast_shape(added.shape, self.batch_shape))

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Draw values without a gradient, of shape sample_shape + (..., N, K)."""
        shape = self._extended_shape(Size(sample_shape))
        with torch.no_grad():
            return self.form.drawn(self.base_dist, self.prior.draw(shape[:-2].numel()).reshape(shape))


def coupled(prior: CodePrior) -> Coupled:
    """Return a prior as the distribution of one site of one-hots, of event shape (N, K).

    Example:
        >>> from pyro_gvae.models.priors import PRIORS
        >>> coupled(PRIORS["markov"](3, 4)).event_shape
        torch.Size([3, 4])
    """
    return Coupled(FactorizedOneHotCategorical(logits=prior.uniform), prior)


@register_kl(FactorizedOneHotCategorical, Coupled)
def _kl_factorized(q: FactorizedOneHotCategorical, p: Coupled) -> Tensor:
    return kl_divergence(q, p.base_dist) - p.prior.mean_coupling(q.probs)


@register_kl(Independent, Coupled)
def _kl_digits(q: Any, p: Coupled) -> Tensor:
    """Return the KL of the categoricals, which is also used for relaxed digits (Jang et al. 2017)."""
    return kl_divergence(q, p.base_dist) - p.prior.mean_coupling(q.base_dist.logits.softmax(-1))
