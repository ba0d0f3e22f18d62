"""Compute statistics of codes: use, information and activity of each latent, from q(z|x) of some data."""

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple, overload

import torch
from torch import Tensor

from ..exact.plan import PerLatent, per_latent
from ..programs.batches import Batch
from ..programs.factors import add
from ..programs.pair import HasPair
from .guides import closed_log_probs, read_guide

#: A latent is active if the mean of its posterior varies over data by more than this (Burda et al. 2016).
ACTIVE_VARIANCE = 0.01
#: The mutual information is not computed if the table of joint codes and data has more entries than this.
MOST_ENTRIES = 10**9
#: Number of entries of that table to keep in memory at a time.
ENTRIES_AT_A_TIME = 10**7


class Measured(NamedTuple):
    """A number, and its standard error over data if it has one.

    Attributes:
        value: the number.
        standard_error: of the number, as a mean over data; None if there is a single datum.
    """

    value: float
    standard_error: float | None = None


def mean_over_data(values: Tensor) -> Measured:
    """Compute the mean and the standard error, s.d. / sqrt(B), of one number per datum (B,).

    Example:
        >>> mean_over_data(torch.tensor([-3.0, -5.0]))
        Measured(value=-4.0, standard_error=1.0)
    """
    values = values.double()
    error = values.std().item() / math.sqrt(len(values)) if len(values) > 1 else None
    return Measured(values.mean().item(), error)


class LatentStatistics(NamedTuple):
    """Statistics of each latent, all (N,); :func:`latent_statistics` has the formulas.

    Attributes:
        variance: of the posterior mean over data.
        perplexity: the effective number of used categories, from 1 to K.
        mutual_information: between the latent and the data, in nats.
        entropy: of the posterior, a mean over data, in nats.
    """

    variance: Tensor
    perplexity: Tensor
    mutual_information: Tensor
    entropy: Tensor

    @property
    def active(self) -> Tensor:
        """Whether each latent is active, (N,)."""
        return self.variance > ACTIVE_VARIANCE


def guide_log_probs(pair: HasPair, x: Batch, *, is_summed: bool = True, num_particles: int = 1000) -> PerLatent:
    """Return the guide's log-probabilities log q(z_n = k | x) of the categories.

    These are the guide's own probabilities if a latent depends on no other latent in the guide. Otherwise they are
    marginal: the other latents are summed over, or drawn if they are continuous or if there are too many codes.

    Args:
        pair: model and guide.
        x: data (B, ...), or a tuple or dictionary of all arguments of the programs.
        is_summed: whether the codes are few enough to sum over.
        num_particles: P, the number of draws for each datum.

    Returns:
        Log-probabilities (B, N, K); for several discrete latents, by name.

    Example:
        >>> from pyro_gvae import CategoricalVAE
        >>> vae, x = CategoricalVAE(data_dim=6, num_latents=2, num_categories=3, hidden=(5,)), torch.ones(4, 6)
        >>> guide_log_probs(vae, x).exp().sum(-1).shape
        torch.Size([4, 2])
    """
    found = closed_log_probs(pair, x)
    if found is None:
        found = read_guide(pair, x, is_summed=is_summed, num_particles=num_particles).log_probs
    return per_latent(found)


def latent_statistics(log_q: Tensor) -> LatentStatistics:
    r"""Compute the use and information of each latent from the posteriors of some data.

    With the aggregated posterior :math:`\bar q_n(k) = \frac{1}{B} \sum_b q(z_n = k | x_b)`:

    - variance: :math:`\sum_k \mathrm{Var}_b[q(z_n = k | x_b)]`, the trace of the covariance over data of the posterior
      mean of the one-hot z_n. A latent is *active* if it exceeds 0.01: the definition of Burda et al. 2016 (arXiv
      1509.00519, section 5.2) with a one-hot in place of a real latent.
    - perplexity: :math:`\exp \mathrm{H}(\bar q_n)`, the effective number of used categories, from 1 to K.
    - entropy: :math:`\frac{1}{B} \sum_b \mathrm{H}(q(z_n | x_b))`.
    - mutual information: :math:`\mathrm{I}(x; z_n) = \mathrm{H}(\bar q_n) - \frac{1}{B} \sum_b \mathrm{H}(q(z_n|x_b))`
      under the guide and these data (Hoffman and Johnson 2016, *ELBO surgery*), at most log K.

    Args:
        log_q: log q(z_n = k | x_b), shape (B, N, K).

    Returns:
        The statistics, each (N,).

    Example:
        >>> sure = torch.tensor([[0.0, -80.0], [-80.0, 0.0]]).unsqueeze(1)  # one latent distinguishes two data
        >>> found = latent_statistics(sure)
        >>> round(found.perplexity.item(), 4), round(found.mutual_information.item(), 4), found.active.item()
        (2.0, 0.6931, True)
    """
    q, log_q = log_q.double().exp(), log_q.double()
    aggregate = q.mean(0)  # (N, K)
    entropy = _entropy(q, log_q).mean(0)
    used = -torch.xlogy(aggregate, aggregate).sum(-1)
    variance = (q - aggregate).square().mean(0).sum(-1)
    return LatentStatistics(variance, used.exp(), (used - entropy).clamp_min(0), entropy)


def mean_perplexity(log_q: Tensor) -> Measured:
    """Average the perplexity of :func:`latent_statistics` over latents, with a delta-method standard error.

    Args:
        log_q: log q(z_n = k | x_b), shape (B, N, K).

    Returns:
        The effective number of used categories, from 1 to K.

    Example:
        >>> mean_perplexity(torch.tensor([[[0.0, -torch.inf]], [[-torch.inf, 0.0]]])).value  # both are used equally
        2.0
    """
    q = log_q.double().exp()
    aggregate = q.mean(0).clamp_min(torch.finfo(q.dtype).tiny)  # (N, K); means may underflow to 0
    surprise = -torch.xlogy(q, aggregate).sum(-1)  # (B, N): its mean is the entropy of the aggregated posterior
    perplexity = surprise.mean(0).exp()
    influence = (perplexity * surprise).mean(-1)  # (B,)
    return Measured(perplexity.mean().item(), mean_over_data(influence).standard_error)


def joint_mutual_information(log_q: PerLatent) -> Measured | None:
    r"""Compute I(x; z) of the whole code under guide and data, in nats; None if there are too many codes.

    .. math:: \frac{1}{B} \sum_b \mathrm{KL}(q(z|x_b) \,\|\, \bar q(z)), \quad \bar q(z) = \frac{1}{B} \sum_b q(z|x_b)

    (Hoffman and Johnson 2016, *ELBO surgery*.) It is at most log B, and at most the sum over latents of I(x; z_n).

    Args:
        log_q: log q(z_n = k | x_b) of independent latents, shape (B, N, K); for several sites, by name.

    Returns:
        The mean over data with its standard error, or None.

    Example:
        >>> sure = torch.tensor([[0.0, -80.0], [-80.0, 0.0]]).unsqueeze(1)  # one latent distinguishes two data
        >>> round(joint_mutual_information(sure).value, 4)
        0.6931
    """
    found = information_of_each(log_q)
    return None if found is None else mean_over_data(found)


def information_of_each(log_q: PerLatent) -> Tensor | None:
    """Compute the information of each datum, KL(q(z|x_b) || aggregated posterior), (B,); None for too many codes.

    Args:
        log_q: log q(z_n = k | x_b) of independent latents, shape (B, N, K); for several sites, by name.

    Returns:
        The information of each datum in nats, (B,), or None.
    """
    named = log_q if isinstance(log_q, dict) else {"": log_q}
    digits = [digit for own in named.values() for digit in own.double().unbind(1)]  # (B, K) each
    sizes, num_data = [digit.shape[1] for digit in digits], len(digits[0])
    if math.prod(sizes) * num_data > MOST_ENTRIES:
        return None
    # q of a joint code is q of its first digits times q of the others, so that sums over codes are matrix products.
    middle = min(range(1, len(sizes) + 1), key=lambda n: math.prod(sizes[:n]) + math.prod(sizes[n:]))
    at_a_time = max(1, ENTRIES_AT_A_TIME // (math.prod(sizes[:middle]) + math.prod(sizes[middle:])))
    rows = [slice(start, start + at_a_time) for start in range(0, num_data, at_a_time)]

    def halves() -> Iterator[tuple[Tensor, Tensor]]:
        for some in rows:
            whole = digits[0].new_ones(len(digits[0][some]), 1)
            yield _together(whole, digits[:middle], some), _together(whole, digits[middle:], some)

    aggregate = add(first.T @ second for first, second in halves()) / num_data
    surprise = aggregate.clamp_min(torch.finfo(aggregate.dtype).tiny).log()  # finite even for codes that no datum has
    cross = torch.cat([((first @ surprise) * second).sum(1) for first, second in halves()])
    entropy = add(_entropy(digit.exp(), digit) for digit in digits)
    return -entropy - cross


def _together(whole: Tensor, digits: list[Tensor], rows: slice) -> Tensor:
    """Return q of all codes of some digits, (B, S), from log q (B, K) of each."""
    for digit in digits:
        whole = (whole.unsqueeze(-1) * digit[rows].exp().unsqueeze(1)).flatten(1)
    return whole


def table_mutual_information(log_q: Tensor) -> Measured:
    """Compute I(x; z) of latents that may depend on each other, from log q(z | x_b) of all joint codes, (S, B)."""
    return mean_over_data(table_of_each(log_q))


@overload
def table_of_each(log_q: None) -> None: ...
@overload
def table_of_each(log_q: Tensor) -> Tensor: ...
def table_of_each(log_q: Tensor | None) -> Tensor | None:
    """Compute the information of each datum, (B,), from log q(z | x_b) of all joint codes; None without a table."""
    if log_q is None:
        return None
    log_q = log_q.double()
    q = log_q.exp()
    return torch.xlogy(q, q).sum(0) - _cross_entropy(lambda rows: log_q[rows], len(log_q), log_q)


def _cross_entropy(table: Callable[[Tensor], Tensor], num_codes: int, like: Tensor) -> Tensor:
    """Return E_q[log of the aggregated posterior] of each datum, (B,), from log q of codes by number, (s, B)."""
    size = like.shape[1]
    cross = like.new_zeros(size)
    at_a_time = max(1, ENTRIES_AT_A_TIME // size)
    for start in range(0, num_codes, at_a_time):
        rows = table(torch.arange(start, min(start + at_a_time, num_codes), device=like.device))
        aggregate = (rows.logsumexp(1) - math.log(size)).clamp_min(torch.finfo(rows.dtype).min)
        cross += aggregate @ rows.exp()
    return cross


def _entropy(q: Tensor, log_q: Tensor) -> Tensor:
    """Return the entropy of each latent for each datum, (B, N)."""
    return -(q * log_q).sum(-1)
