"""Draw joint codes without replacement, digit by digit, and compute their weights.

A joint code is a sequence of digits. For each prefix, the total probability of the codes that begin with it is known.
So is the distribution of the largest perturbed log-probability of these codes: a Gumbel variable. At every digit, the P
prefixes with the largest variables are kept (stochastic beam search). The final codes are P draws without replacement,
in the order of their variables (Kool, van Hoof and Welling 2019, arXiv 1903.06059).
"""

import math
from typing import NamedTuple

import torch
from torch import Size, Tensor

from .parameters import gumbel_like

#: The log-probability of impossible codes. It is finite, so that sums and differences are not NaN.
IMPOSSIBLE = -1e30


class Prefixes(NamedTuple):
    """R distinct prefixes of joint codes, for each of U distributions, in descending order of `perturbed`.

    Attributes:
        log_probs: log of the total probability of the codes that begin with each prefix, in nats: (R, U).
        perturbed: the largest perturbed log-probability of these codes: (R, U).
    """

    log_probs: Tensor
    perturbed: Tensor

    def first(self, count: int) -> "Prefixes":
        """Return the first `count` prefixes."""
        return Prefixes(self.log_probs[:count], self.perturbed[:count])


class Extended(NamedTuple):
    """Prefixes with one more digit.

    Attributes:
        prefixes: the R' extended prefixes.
        parents: which of the R prefixes each extends, (R', U).
        digits: the category that each appends, (R', U).
    """

    prefixes: Prefixes
    parents: Tensor
    digits: Tensor


def no_digits(like: Tensor, num_distributions: int) -> Prefixes:
    """Return the empty prefix, with its noise: (1, U), with the dtype and device of `like`."""
    log_probs = torch.zeros(1, num_distributions, dtype=like.dtype, device=like.device)
    return Prefixes(log_probs, gumbel_like(log_probs, log_probs.shape))


def extend(prefixes: Prefixes, log_probs: Tensor, most: int) -> Extended:
    """Append a digit to prefixes, and keep those with the largest perturbed log-probabilities.

    The noise of the K extensions of a prefix is drawn given that the largest of them is the prefix's own.

    Args:
        prefixes: R prefixes.
        log_probs: log-probabilities of the digit given each prefix, (R or 1, U, K), without a gradient.
        most: the largest number of prefixes to keep.

    Returns:
        The extended prefixes; all are kept if there are not more than `most`.

    Example:
        >>> probs = torch.tensor([[[0.5, 0.5, 0.0]]])
        >>> extend(no_digits(probs, 1), probs.log(), most=2).digits.sort(0).values.tolist()
        [[0], [1]]
    """
    extended = prefixes.log_probs.unsqueeze(-1) + log_probs.clamp_min(IMPOSSIBLE)  # (R, U, K)
    free = extended + gumbel_like(extended, Size(extended.shape))
    largest = prefixes.perturbed.unsqueeze(-1)
    # -log(exp(-largest) - exp(-max free) + exp(-free)), which moves the maximum of `free` to `largest`.
    below = largest - free + (-torch.expm1(free - free.amax(-1, keepdim=True))).log()
    perturbed = largest - below.clamp_min(0) - (-below.abs()).exp().log1p()
    rows, distributions, num_categories = extended.shape
    kept = min(most, rows * num_categories)
    values, chosen = perturbed.transpose(0, 1).reshape(distributions, -1).topk(kept, -1)  # (U, R')
    log_prob = extended.transpose(0, 1).reshape(distributions, -1).gather(-1, chosen)
    return Extended(
        Prefixes(log_prob.T, values.T),
        parents=chosen.T.div(num_categories, rounding_mode="floor"),
        digits=chosen.T % num_categories,
    )


def inclusion_weights(log_probs: Tensor, threshold: Tensor | None) -> Tensor:
    r"""Return weights of codes drawn without replacement, which make weighted sums unbiased.

    .. math:: w_s = \frac{q(s)}{P(\text{its variable} > \kappa)} = \frac{q(s)}{1 - \exp(-\exp(\log q(s) - \kappa))}

    where :math:`\kappa` is the largest variable of the codes that were not drawn. (Kool, van Hoof and Welling 2019,
    arXiv 1903.06059; Vieira 2017.)

    Args:
        log_probs: log q(s) of P codes, (P, U).
        threshold: kappa, (U,); None if all codes were drawn: the weights are then their probabilities.

    Example:
        >>> inclusion_weights(torch.tensor([[0.5], [0.1]]).log(), torch.tensor([-1.0])).squeeze(-1)
        tensor([0.6728, 0.4201])
    """
    if threshold is None:
        return log_probs.exp()
    return (log_probs - log_exceeds(log_probs - threshold)).exp()


class SetWeights(NamedTuple):
    """Weights of the codes in a set, independent of the order in which they were drawn.

    Attributes:
        first: q(s) R(S, s), (P, U), which add to 1: the probability that s was drawn first, given the set.
        second: q(s') R(S, s, s'), (P, P, U), and q(s) for s' = s, which add to 1 for each s: the same for s' in the set
            without s, times 1 - q(s), the probability of a code other than s.
    """

    first: Tensor
    second: Tensor


def set_weights(log_probs: Tensor, *, is_complete: bool = False) -> SetWeights:
    r"""Return the weights of the unordered-set estimator, for a set S of P codes drawn without replacement.

    With the leave-one-out ratios :math:`R(S, s) = p^{D \setminus s}(S \setminus s) / p(S)`, where p(S) is the
    probability of drawing the set, and :math:`p^{D \setminus s}` draws from the codes without s. A set is drawn if all
    its perturbed log-probabilities exceed those of all other codes, so

    .. math:: p(S) = \int \phi(\kappa) \prod_{s \in S} (1 - \exp(-\exp(\log q(s) - \kappa))) \, d\kappa,

    where :math:`\phi` is the density of the largest of the others, a Gumbel variable at the logarithm of their
    probability. The integrand is analytic and falls off exponentially, so that a sum over equidistant points is exact
    to rounding. (Kool, van Hoof and Welling 2020, arXiv 2002.06043.)

    Args:
        log_probs: log q(s), (P, U), P >= 1.
        is_complete: whether the set contains all codes.

    Example:
        >>> weights = set_weights(torch.tensor([[0.5], [0.1]]).log())
        >>> weights.first.squeeze(-1)  # 0.5 0.1 / 0.5 and 0.1 0.5 / 0.9, normalized
        tensor([0.6429, 0.3571])
    """
    precision = torch.finfo(log_probs.dtype)
    probs = log_probs.exp()
    rest = torch.zeros_like(probs[0]) if is_complete else (1 - probs.sum(0)).clamp_min(precision.eps)
    points = _points(len(log_probs)).to(log_probs)
    shifted = log_probs - rest.clamp_min(precision.tiny).log()  # log q(s) minus that of all other codes together
    never = ~is_possible(log_probs)
    # Divide out the order of magnitude, which cancels in the weights, so that the sums are of order 1.
    size = shifted.clamp_max(0).masked_fill(never, 0.0)
    exceeds = log_exceeds(shifted.T.unsqueeze(-1) - points) - size.T.unsqueeze(-1)  # (U, P, points)
    # Impossible codes do not affect the order: they are drawn only when nothing else is left.
    exceeds = exceeds.masked_fill(never.T.unsqueeze(-1), 0.0)
    whole = exceeds.sum(1, keepdim=True) - points - (-points).exp()  # (U, 1, points)
    log_one = (whole - exceeds).logsumexp(-1)  # (U, P), of the sets without one code
    halves = whole / 2 - exceeds
    largest = halves.amax(-1)
    halves = (halves - largest.unsqueeze(-1)).exp()
    log_two = (halves @ halves.mT).log() + largest.unsqueeze(-1) + largest.unsqueeze(-2)  # (U, P, P), without two
    relative = log_probs - size
    second = (relative + (log_two - log_one.unsqueeze(-1)).movedim(0, -1)).exp()
    is_own = torch.eye(len(log_probs), dtype=torch.bool, device=log_probs.device).unsqueeze(-1)
    return SetWeights((relative + (log_one - whole.logsumexp(-1)).T).exp(), torch.where(is_own, probs, second))


def is_possible(log_probs: Tensor) -> Tensor:
    """Return whether codes with these log-probabilities can be drawn."""
    return log_probs > 0.1 * IMPOSSIBLE


def log_exceeds(log_ratio: Tensor) -> Tensor:
    """Return log(1 - exp(-exp(x))), the log-probability that a Gumbel variable exceeds its location minus x."""
    ratio = log_ratio.exp()
    return torch.where(log_ratio < -8, log_ratio - ratio / 2 + ratio.square() / 24, (-torch.expm1(-ratio)).log())


def _points(count: int) -> Tensor:
    """Return equidistant points, relative to the location, where the integrand of P codes exceeds 1e-11 of its maximum.

    At its narrowest, the integrand is the density of the logarithm of a gamma variable of shape P + 1. The error of the
    sum is its Fourier transform at 2 pi / step, which is then below 1e-10.
    """
    return torch.arange(-math.log(25 + 3 * count), 25, 2 * math.pi / (18 + 1.5 * count), dtype=torch.float64)
