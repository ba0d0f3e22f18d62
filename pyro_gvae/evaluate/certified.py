"""Compute an interval that always contains log p(x), from a sum over some codes, without sampling."""

import math
from typing import Any, NamedTuple

import torch
from pyro import distributions as dist
from pyro.distributions import MaskedDistribution
from torch import Tensor

from ..distributions.observations import Bernoulli, Gaussian
from ..handlers.one_hot_messenger import innermost
from ..programs.batches import Batch
from ..programs.factors import Factor
from ..programs.joint import joint_scores
from ..programs.look import is_continuous
from ..programs.modes import judging, without_trace
from ..programs.noise import independent
from ..programs.pair import HasPair
from ..programs.shared import unscaled
from ..programs.statements import read
from ..programs.target import Target
from ..programs.top_codes import TopCodes
from .importance import targets

#: Digits of a code are compared as one integer as long as they have at most this many joint values.
_MOST_VALUES = 2**62
#: The approximate number of rounds in which codes are added: more rounds would be greedier, and take longer.
_MOST_ROUNDS = 16


class Certified(NamedTuple):
    """Bounds on log p(x) of each datum, in nats. Both always hold, up to rounding of log p(x, z).

    Attributes:
        lower: log of the sum of p(x, z) over a set of codes, (B,).
        upper: log of that sum plus the most that all other codes can add, (B,); None if codes are left and no upper
            limit is known for the density of the data.
        num_codes: C, the number of codes that were scored for each datum.
        is_complete: whether these are all codes, so that both bounds equal log p(x).
    """

    lower: Tensor
    upper: Tensor | None
    num_codes: int
    is_complete: bool


@judging
@torch.no_grad()
def certified_bounds(pair: HasPair, x: Batch, num_codes: int = 1000, *, max_memory: float | None = None) -> Certified:
    r"""Compute a lower and an upper bound on log p(x) of each datum that always hold, unlike sampled bounds.

    For a set T of codes, and m the largest log p(x | z) that any parameters can give,

    .. math::

        \log \sum_{z \in T} p(x, z) \;\le\; \log p(x) \;\le\;
        \log \Big( \sum_{z \in T} p(x, z) + e^m \big(1 - \sum_{z \in T} p(z)\big) \Big).

    The importance-weighted bound is below log p(x) only on average, and the samples do not tell by how much. Here T
    contains the C / 2 codes that are most probable under the guide, and the rest are found greedily: of the codes in T
    whose neighbours were not added yet, take those with the largest p(x, z), and add all codes that differ from them in
    one digit. The lower bound is close to log p(x) if few codes explain the data. The upper bound is loose until T
    contains almost all of the prior: for binary images m is 0, and log p(x | z) is far below it even for the best code.

    For Bernoulli pixels, m is the sum of x log x + (1 - x) log(1 - x), which is 0 if x is 0 or 1. It is 0 for all other
    discrete data. For Gaussian pixels it is the log-density at the mean, with the scale of the model.

    Args:
        pair: a `CategoricalVAE`, or a `Pair` of programs whose latents are all discrete; they may depend on each other.
        x: data (B, D), or a tuple or dictionary of all arguments of the programs.
        num_codes: C, the number of codes that are scored for each datum.
        max_memory: bytes that scoring may use; 4 GB if None.

    Returns:
        Both bounds, each (B,), with the programs' scale and mask applied.

    Raises:
        ValueError: if `num_codes` is below 1, a latent is continuous, data share a latent, or sites are scaled
            differently.

    Example:
        >>> from pyro_gvae import CategoricalVAE, exact
        >>> vae, x = CategoricalVAE(data_dim=6, num_latents=2, num_categories=3, hidden=(5,)), torch.ones(4, 6)
        >>> found, log_evidence = certified_bounds(vae, x, num_codes=5), exact.log_evidence(vae, x)
        >>> bool((found.lower <= log_evidence).all() and (log_evidence <= found.upper).all())
        True
    """
    if num_codes < 1:
        raise ValueError(f"Expected at least one code, but found num_codes={num_codes}.")
    parts = [_bounds(target, num_codes, size) for target, size in targets(pair, x, num_codes, max_memory)]
    uppers = [part.upper for part in parts if part.upper is not None]
    return parts[0]._replace(
        lower=torch.cat([part.lower for part in parts]), upper=torch.cat(uppers) if uppers else None
    )


class _Scored(NamedTuple):
    """Codes of each datum and their scores; a code that appears twice has probability 0 the second time."""

    digits: Tensor  # (c, B, n)
    joint: Tensor  # (c, B): log p(x, z), not scaled
    prior: Tensor  # (c, B): log p(z)
    scale: float | Tensor


def _bounds(target: Target, num_codes: int, size: int) -> Certified:
    layout = target.layout
    with without_trace():  # this draw changes no random states or buffers
        top = TopCodes(target.runs, layout, target.drawn(1, independent))
    for name in top.base.values.keys() - top.base.codes.keys():
        raise is_continuous(name)
    for name in sorted(top.kept & top.base.codes.keys()):
        raise ValueError(
            f"Expected every discrete latent to be in the plate(s) {sorted(layout.plates)}, but found '{name}', which "
            "several data share, so a datum has no code of its own. Try exact.log_evidence or importance_weighted."
        )
    num_codes = min(num_codes, layout.space.num_codes)
    is_complete = num_codes == layout.space.num_codes
    scored = _scored(target, top, num_codes, size)
    lower = scored.joint.logsumexp(0)
    if is_complete:
        return Certified(scored.scale * lower, scored.scale * lower, num_codes, is_complete)
    largest = _largest(target, top, scored)
    upper = None if largest is None else scored.scale * _upper(scored, lower, largest, torch.finfo(layout.dtype).eps)
    return Certified(scored.scale * lower, upper, num_codes, is_complete)


def _scored(target: Target, top: TopCodes, num_codes: int, size: int) -> _Scored:
    """Score all codes; or the guide's most probable ones, half of the number, and neighbours of the best so far."""
    is_complete = num_codes == target.layout.space.num_codes
    scored = _score(target, top, top.most_probable(num_codes if is_complete else -(-num_codes // 2)).digits, size)
    expanded = torch.zeros_like(scored.joint, dtype=torch.bool)
    at_once = max(1, num_codes // (_MOST_ROUNDS * max(1, sum(top.num_categories) - len(top.num_categories))))
    while len(scored.digits) < num_codes:
        left = torch.where(expanded, -torch.inf, scored.joint)
        best = left.topk(min(at_once, len(left)), 0).indices  # (m, B)
        expanded = expanded.scatter(0, best, True)
        codes = scored.digits.gather(0, best.unsqueeze(-1).expand(-1, -1, scored.digits.shape[-1]))
        new = _neighbours(codes, top.num_categories)[: num_codes - len(scored.digits)]
        is_known = _is_known(new, scored.digits, top.num_categories)
        found = _score(target, top, new, size)
        scored = _Scored(
            torch.cat([scored.digits, new]),
            torch.cat([scored.joint, found.joint.masked_fill(is_known, -torch.inf)]),
            torch.cat([scored.prior, found.prior.masked_fill(is_known, -torch.inf)]),
            scored.scale,
        )
        expanded = torch.cat([expanded, is_known])
    return scored


def _upper(scored: _Scored, lower: Tensor, largest: Tensor, eps: float) -> Tensor:
    """Return the upper bound (B,), not scaled: all other codes have the rest of the prior, and the largest density.

    Args:
        scored: the codes of the lower bound.
        lower: the lower bound (B,), not scaled.
        largest: the largest possible log p(x | z) of each datum, (B,).
        eps: the rounding error of a number near 1.
    """
    probs = scored.prior.double().exp()
    terms = probs * (1 + torch.where(probs > 0, scored.prior.abs(), 0.0))
    rounding = eps * scored.digits.shape[-1] * terms.sum(0)  # of a sum of n digits' logs
    outside = (1 - probs.sum(0)).clamp_min(0.0) + rounding
    return torch.logaddexp(lower.double(), outside.log() + largest).to(lower.dtype)


def _score(target: Target, top: TopCodes, digits: Tensor, size: int) -> _Scored:
    """Score codes (c, B, n), `size` at a time."""
    parts = [joint_scores(target.runs.model, target.layout, top.codes(part)) for part in digits.split(size)]
    joint = torch.cat([part.joint for part in parts])
    prior = torch.cat([part.prior.expand(part.joint.shape) for part in parts])
    return _Scored(digits, joint, prior, parts[0].scale)


def _neighbours(codes: Tensor, num_categories: list[int]) -> Tensor:
    """Return all codes that differ in one digit from one of m codes of each datum, (m, B, n)."""
    rows = []
    for n, number in enumerate(num_categories):
        for further in range(1, number):
            changed = (codes[..., n] + further) % number  # (m, B)
            rows.append(codes.index_copy(-1, codes.new_tensor([n]), changed.unsqueeze(-1)))
    return torch.cat(rows)


def _is_known(new: Tensor, others: Tensor, num_categories: list[int]) -> Tensor:
    """Return which new codes of a datum (c, B, n) are among the others, or among earlier new codes: (c, B)."""
    numbers = _numbers(torch.cat([others, new]), num_categories)
    found = torch.ones(len(new), len(numbers[0]), new.shape[1], dtype=torch.bool, device=new.device)
    for number in numbers:
        found &= number[len(others) :].unsqueeze(1) == number
    places = torch.arange(len(numbers[0]), device=new.device)
    is_before = places < places[len(others) :].unsqueeze(-1)  # (c, all)
    return (found & is_before.unsqueeze(-1)).any(1)


def _numbers(digits: Tensor, num_categories: list[int]) -> list[Tensor]:
    """Return codes (c, B, n) as integers (c, B); several for each code if one cannot represent all digits."""
    numbers, values = [torch.zeros_like(digits[..., 0])], 1
    for n, number in enumerate(num_categories):
        if values * number > _MOST_VALUES:
            numbers.append(torch.zeros_like(numbers[0]))
            values = 1
        numbers[-1] = numbers[-1] * number + digits[..., n]
        values *= number
    return numbers


def _largest(target: Target, top: TopCodes, scored: _Scored) -> Tensor | None:
    """Return the largest possible log p(x | z) of each datum, (B,), not scaled; None if no limit is known."""
    layout = target.layout
    p = read(target.runs.model, layout, top.codes(scored.digits[:1]), {})
    factors = p.others().values()
    found = [_largest_of(factor) for factor in factors]
    known = [one for one in found if one is not None]
    if len(known) < len(found):
        return None
    weighed = [factor.weigh(one) for factor, one in zip(factors, known, strict=True)]
    total = sum(weighed, torch.zeros(1, dtype=layout.dtype, device=layout.device))
    return unscaled(total.reshape(-1).expand(layout.batch_size), scored.scale)


def _largest_of(factor: Factor) -> Tensor | None:
    """Return the largest log-probability that a family can give a value with any parameters; None if not known."""
    family, value = innermost(factor.fn), factor.value.to(factor.log_prob.dtype)
    if isinstance(family, Bernoulli | dist.Bernoulli):
        each = torch.xlogy(value, value) + torch.xlogy(1 - value, 1 - value)
    elif _is_discrete(family):
        each = torch.zeros_like(value)
    elif isinstance(family, Gaussian):
        each = -(family.scale.log() + 0.5 * math.log(2 * math.pi)).expand(value.shape)
    else:
        return None
    found = each.sum(tuple(range(-factor.fn.event_dim, 0))) if factor.fn.event_dim else each
    return found.clamp_min(0.0) if _is_masked(factor.fn) else found  # masked values add 0


def _is_discrete(family: Any) -> bool:
    try:
        found: bool = family.support.is_discrete
    except NotImplementedError:  # a distribution of the user's, which needs no support to be scored
        return False
    return found


def _is_masked(fn: Any) -> bool:
    return isinstance(fn, MaskedDistribution) or (hasattr(fn, "base_dist") and _is_masked(fn.base_dist))
