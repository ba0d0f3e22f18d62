"""Joint codes drawn without replacement, digit by digit, and what each of them weighs.

A joint code is a sequence of digits. Of each prefix the sum of the probabilities of all codes that begin with it is
known, and so is the distribution of the largest perturbed log-probability of these codes: a Gumbel variable. The P
prefixes whose variables are largest are kept at every digit (stochastic beam search). The codes at the end are P draws
without replacement, in the order of their variables (Kool, van Hoof and Welling 2019, arXiv 1903.06059).
"""

import math
from typing import NamedTuple

import torch
from torch import Size, Tensor

from .parameters import gumbel_like

#: Stands for the log-probability of what cannot be, but is finite, so that sums and differences are no NaN.
IMPOSSIBLE = -1e30


class Prefixes(NamedTuple):
    """R different prefixes of joint codes, for each of several distributions, the largest perturbed ones first.

    Attributes:
        log_probs: of the codes that begin so, together, in nats: (R, U).
        perturbed: the largest perturbed log-probability of these codes: (R, U).
    """

    log_probs: Tensor
    perturbed: Tensor

    def first(self, count: int) -> "Prefixes":
        """Keep as many."""
        return Prefixes(self.log_probs[:count], self.perturbed[:count])


class Extended(NamedTuple):
    """Prefixes with one more digit.

    Attributes:
        prefixes: R' of them.
        parents: which of the R prefixes each extends, (R', U).
        digits: the category that each adds, (R', U).
    """

    prefixes: Prefixes
    parents: Tensor
    digits: Tensor


def no_digits(like: Tensor, num_distributions: int) -> Prefixes:
    """Return the one prefix of all codes, with its noise: (1, U), of the dtype and on the device of `like`."""
    log_probs = torch.zeros(1, num_distributions, dtype=like.dtype, device=like.device)
    return Prefixes(log_probs, gumbel_like(log_probs, log_probs.shape))


def extend(prefixes: Prefixes, log_probs: Tensor, most: int) -> Extended:
    """Add a digit to prefixes, and keep those that are largest.

    The noise of the K extensions of a prefix is drawn given that the largest of them is the prefix's own.

    Args:
        prefixes: R of them.
        log_probs: of the digit given each prefix, (R or 1, U, K), without a gradient.
        most: the largest number that is kept.

    Returns:
        The extended prefixes, as many as there are and not more than `most`.

    Example:
        >>> probs = torch.tensor([[[0.5, 0.5, 0.0]]])
        >>> extend(no_digits(probs, 1), probs.log(), most=2).digits.sort(0).values.tolist()
        [[0], [1]]
    """
    extended = prefixes.log_probs.unsqueeze(-1) + log_probs.clamp_min(IMPOSSIBLE)  # (R, U, K)
    free = extended + gumbel_like(extended, Size(extended.shape))
    largest = prefixes.perturbed.unsqueeze(-1)
    # -log(exp(-largest) - exp(-max free) + exp(-free)), which moves the maximum of the free ones to the largest.
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
    r"""Return what each code weighs that was drawn without replacement, so that weighted sums are unbiased.

    .. math:: w_s = \frac{q(s)}{P(\text{its variable} > \kappa)} = \frac{q(s)}{1 - \exp(-\exp(\log q(s) - \kappa))}

    where :math:`\kappa` is the largest variable of the codes that were not drawn. (Kool, van Hoof and Welling 2019,
    arXiv 1903.06059; Vieira 2017.)

    Args:
        log_probs: log q(s) of P codes, (P, U).
        threshold: kappa, (U,); None if all codes were drawn, so that each weighs its probability.

    Example:
        >>> inclusion_weights(torch.tensor([[0.5], [0.1]]).log(), torch.tensor([-1.0])).squeeze(-1)
        tensor([0.6728, 0.4201])
    """
    if threshold is None:
        return log_probs.exp()
    return (log_probs - log_exceeds(log_probs - threshold)).exp()


class SetWeights(NamedTuple):
    """What the codes of a set weigh, whatever the order in which they were drawn.

    Attributes:
        first: q(s) R(S, s), (P, U), which add to 1: the probability that s was drawn first, given the set.
        second: q(s') R(S, s, s'), (P, P, U), and q(s) for s' = s, which add to 1 for each s: the same of s' in the set
            without s, times the probability 1 - q(s) of another code than s.
    """

    first: Tensor
    second: Tensor


def set_weights(log_probs: Tensor, *, is_complete: bool = False) -> SetWeights:
    r"""Return the weights of the unordered-set estimator, for a set S of P codes drawn without replacement.

    With the leave-one-out ratios :math:`R(S, s) = p^{D \setminus s}(S \setminus s) / p(S)`, where p(S) is the
    probability of drawing the set, and :math:`p^{D \setminus s}` draws from the codes without s. Each such probability
    is that all perturbed log-probabilities of the set exceed those of all other codes,

    .. math:: p(S) = \int \phi(\kappa) \prod_{s \in S} (1 - \exp(-\exp(\log q(s) - \kappa))) \, d\kappa,

    where :math:`\phi` is the density of the largest of the others, a Gumbel variable at the logarithm of their
    probability. The integrand is analytic and falls off exponentially, so that a sum over equidistant points is exact
    to rounding. (Kool, van Hoof and Welling 2020, arXiv 2002.06043.)

    Args:
        log_probs: log q(s), (P, U), P >= 1.
        is_complete: whether these are all codes that there are.

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
    # Without their size, which drops out of the weights, these sum to numbers of the size of 1.
    size = shifted.clamp_max(0).masked_fill(never, 0.0)
    exceeds = log_exceeds(shifted.T.unsqueeze(-1) - points) - size.T.unsqueeze(-1)  # (U, P, points)
    # What cannot be has no place in the order: where it was drawn, nothing else was left.
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
    """Return whether codes of these log-probabilities can be drawn."""
    return log_probs > 0.1 * IMPOSSIBLE


def log_exceeds(log_ratio: Tensor) -> Tensor:
    """Return log(1 - exp(-exp(x))): that a Gumbel variable exceeds a threshold which lies x below its location."""
    ratio = log_ratio.exp()
    return torch.where(log_ratio < -8, log_ratio - ratio / 2 + ratio.square() / 24, (-torch.expm1(-ratio)).log())


def _points(count: int) -> Tensor:
    """Return where the integrand of P codes is not below 1e-11 of its largest value, counted from its location.

    The integrand is at its narrowest the density of the logarithm of a gamma variable of shape P + 1. The sum is off by
    its Fourier transform at 2 pi / step, which is then below 1e-10.
    """
    return torch.arange(-math.log(25 + 3 * count), 25, 2 * math.pi / (18 + 1.5 * count), dtype=torch.float64)
