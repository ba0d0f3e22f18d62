"""Counts of at most n, such as binomial latents, as n + 1 categories whose values are floating-point numbers."""

from typing import Any, TypeAlias, final

import torch
from pyro.distributions import BetaBinomial, Categorical
from torch import Tensor
from torch.distributions import Binomial
from typing_extensions import override

Bounded: TypeAlias = Binomial | BetaBinomial
#: Families of counts that have a largest value.
BOUNDED = (Binomial, BetaBinomial)


def logits_of_counts(fn: Bounded) -> Tensor:
    """Return the log-probabilities of the counts 0 to n, (*batch_shape, n + 1).

    If data have different n, the largest is used, and counts above a datum's own n have the log-probability -inf.

    Example:
        >>> logits_of_counts(Binomial(torch.tensor([1.0, 2.0]), torch.tensor(0.5))).exp()
        tensor([[0.5000, 0.5000, 0.0000],
                [0.2500, 0.5000, 0.2500]])
    """
    trials = fn.total_count
    counts = torch.arange(int(trials.max()) + 1, dtype=trials.dtype, device=trials.device)
    counts = counts.reshape(-1, *(1,) * len(fn.batch_shape))
    log_probs = fn.log_prob(torch.minimum(counts, trials))
    return torch.where(counts <= trials, log_probs, -torch.inf).movedim(0, -1)


@final
class Counts(Categorical):
    """A categorical distribution of the numbers 0 to K - 1 as floating-point numbers, as binomial samples are.

    Example:
        >>> Counts(logits=torch.zeros(3)).enumerate_support()
        tensor([0., 1., 2.])
    """

    @override
    def sample(self, *args: Any, **kwargs: Any) -> Tensor:
        return self._number(super().sample(*args, **kwargs))

    @override
    def enumerate_support(self, expand: bool = True) -> Tensor:
        return self._number(super().enumerate_support(expand))

    def _number(self, value: Tensor) -> Tensor:
        return value.to(self.logits.dtype)
