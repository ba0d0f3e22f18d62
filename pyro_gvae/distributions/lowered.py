"""Score stock distributions by one matrix product, as our own families do.

A stock family scores each element x of an event under parameters theta by

    log p(x | theta) = sum_j c_j(theta) t_j(x) + a(theta) + h(x).

Where parameters depend on codes and data do not (or the reverse), the sum over an event is a matrix product of c and t,
and no tensor of codes x data x elements is made. Where a mask drops elements, a is multiplied with the mask.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import pyro.distributions as dist
import torch
from pyro.ops.special import log_binomial
from torch import Size, Tensor
from torch.distributions import constraints
from torch.distributions.utils import probs_to_logits
from torch.nn import functional as F

from ..runtime.compat.pyro import mask_of
from ..runtime.compat.torch import parameters_of, validates, without_repeats
from .bernoulli import Bernoulli, ContinuousBernoulli
from .exponential_family import full_precision, score_dtype
from .observations import Gaussian
from .poisson import base_score, centre_of, poisson_scores

#: Parameters by name, each (*batch, D), or (*batch, D, K) for D categoricals.
Parameters = dict[str, Tensor]


class _Statement(NamedTuple):
    """A stock family of D elements per event, without its wrappers and expansions."""

    family: Any
    parameters: Parameters
    counts: Tensor | None  # (*batch, D), the numbers of trials of a binomial: known, like data
    kept: Tensor | None  # (*batch, D): the elements that are not masked
    masks: list[Tensor]  # masks over whole events


class _Terms(NamedTuple):
    """The scores of D elements: coefficients . statistics + offset + base."""

    coefficients: tuple[Tensor, ...]  # (*batch of parameters, D), or (.., D * K) with K for each element
    statistics: tuple[Tensor, ...]  # (*batch of data, D) or (.., D * K)
    offset: Tensor  # (*batch of parameters, D)
    base: Tensor  # (*batch of data, D)


def log_prob(fn: Any, value: Any, *args: Any, **kwargs: Any) -> Tensor:
    """Return `fn.log_prob(value)`, by a matrix product where that avoids a tensor of size parameters x data.

    The product is used for stock exponential families with event dimensions, also if wrapped by `.to_event`, `.mask`
    and `.expand`, whose parameters and data share no batch dimension. It is rounded like those of our own families, see
    :class:`~.observations.Gaussian`. If data lie outside the support, the distribution itself raises its error.

    Args:
        fn: any distribution.
        value: data, whose batch dimensions broadcast with those of `fn`.
        args: other arguments of `fn.log_prob`; if there are any, no product is used.
        kwargs: other keyword arguments, likewise.
    """
    product = None if args or kwargs else _product(fn, value)
    scores: Tensor = fn.log_prob(value, *args, **kwargs) if product is None else product
    return scores


def _product(fn: Any, value: Any) -> Tensor | None:
    statement = _read(fn)
    if (
        statement is None
        or not isinstance(value, Tensor)
        or value.shape[value.dim() - fn.event_dim :] != fn.event_shape
    ):
        return None
    rank, given = len(fn.batch_shape), Size(value.shape[: value.dim() - fn.event_dim])
    known = [tensor.shape[:rank] for tensor in (statement.counts, statement.kept) if tensor is not None]
    try:
        own = dist.util.broadcast_shape(*(parameter.shape[:rank] for parameter in statement.parameters.values()))
        data = dist.util.broadcast_shape(given, *known)
        rows = math.prod(dist.util.broadcast_shape(own, data))
    except ValueError:  # shapes do not match: let the distribution raise its error
        return None
    if rows <= max(math.prod(own), math.prod(data)):  # each datum has its own parameters, or all share the same
        return None
    if validates(statement.family) and not _in_support(statement, value, given):
        return None
    scores = _scores(statement, value.reshape(*given, -1, *statement.family.event_shape))
    scores = scores.expand(dist.util.broadcast_shape(fn.batch_shape, given))
    for mask in statement.masks:
        scores = torch.where(mask, scores, scores.new_zeros(()))
    return scores


def _read(fn: Any) -> _Statement | None:
    """Remove the wrappers of a stock family; return None if there is none, or it has no event dimension."""
    family, num_inside, masks = fn, 0, []
    while type(family) not in _TERMS:
        if type(family) is dist.Independent:
            num_inside += family.reinterpreted_batch_ndims
        elif type(family) is dist.MaskedDistribution and mask_of(family) is not False:
            masks.append((mask_of(family), num_inside))
        else:
            return None
        family = family.base_dist
    if fn.event_dim == 0:
        return None
    rank = len(fn.batch_shape)
    elements = family.batch_shape[rank:]

    def flat(tensor: Tensor, num_elements: int) -> Tensor:
        tensor = without_repeats(tensor, rank)
        batch, inside = tensor.shape[:rank], tensor.shape[rank : rank + num_elements]
        categories = tensor.shape[rank + num_elements :]
        tensor = tensor.reshape(*batch, *inside, *(1,) * (len(elements) - num_elements), *categories)
        return tensor.expand(*batch, *elements, *categories).reshape(*batch, elements.numel(), *categories)

    parameters = {name: flat(parameter, len(elements)) for name, parameter in parameters_of(family).items()}
    inner = [flat(mask, number) for mask, number in masks if isinstance(mask, Tensor) and number]
    return _Statement(
        family=family,
        counts=parameters.pop("total_count", None),
        parameters=parameters,
        kept=torch.stack(torch.broadcast_tensors(*inner)).all(0) if inner else None,
        masks=[mask for mask, number in masks if isinstance(mask, Tensor) and not number],
    )


def _in_support(statement: _Statement, value: Tensor, given: Size) -> bool:
    if statement.counts is None:
        return bool(statement.family.support.check(value).all())
    return bool(constraints.integer_interval(0, statement.counts).check(value.reshape(*given, -1)).all())


def _scores(statement: _Statement, value: Tensor) -> Tensor:
    """Return the scores of data (*batch, D), or (.., D, K) if they are one-hots or multinomial counts."""
    family = type(statement.family)
    dtype = torch.promote_types(score_dtype(next(iter(statement.parameters.values()))), value.dtype)
    parameters = {name: parameter.to(dtype) for name, parameter in statement.parameters.items()}
    counts = None if statement.counts is None else statement.counts.to(dtype)
    x, kept = value.to(dtype), statement.kept
    with full_precision(x):
        if kept is None:
            ours = _OURS[family](parameters, x) if family in _OURS else None
            return _summed(_TERMS[family](parameters, x, counts)).to(dtype) if ours is None else ours
        is_kept = kept.unsqueeze(-1) if statement.family.event_shape else kept
        present = torch.where(is_kept, x, x.new_zeros(()))  # masked elements may be NaN
        return _summed(_without(_TERMS[family](parameters, present, counts), kept)).to(dtype)


def _summed(terms: _Terms) -> Tensor:
    coefficients, statistics = _side_by_side(terms.coefficients), _side_by_side(terms.statistics)
    products = torch.einsum("...m,...m->...", coefficients, statistics)
    return products + terms.offset.sum(-1) + terms.base.sum(-1)


def _side_by_side(parts: tuple[Tensor, ...]) -> Tensor:
    shape = dist.util.broadcast_shape(*(part.shape[:-1] for part in parts))
    return torch.cat([part.expand(*shape, -1) for part in parts], -1) if len(parts) > 1 else parts[0]


def _without(terms: _Terms, kept: Tensor) -> _Terms:
    """Drop masked elements, together with their offsets."""
    num_elements = kept.shape[-1]
    wide = [kept.repeat_interleave(part.shape[-1] // num_elements, -1) for part in terms.statistics]
    present = [torch.where(mask, part, part.new_zeros(())) for mask, part in zip(wide, terms.statistics, strict=True)]
    return _Terms(
        coefficients=(*terms.coefficients, terms.offset),
        statistics=(*present, kept.to(terms.offset.dtype)),
        offset=torch.zeros_like(terms.offset),
        base=torch.where(kept, terms.base, terms.base.new_zeros(())),
    )


# The families. The factors of the product are kept small for parameters and data close to the mean of the data, because
# a score is rounded in proportion to its terms. Terms of the data have few elements, and are computed in float64.


def _centre(x: Tensor) -> Tensor:
    return x.detach().flatten(0, -2).mean(0)  # (D,)


def _logits(parameters: Parameters, *, is_binary: bool = True) -> Tensor:
    logits = parameters["logits"] if "logits" in parameters else probs_to_logits(parameters["probs"], is_binary)
    # The logit of an excluded category is -inf, and 0 times infinity would be NaN.
    return logits if is_binary else logits.clamp_min(torch.finfo(logits.dtype).min)


def _bernoulli(parameters: Parameters, x: Tensor, counts: Tensor | None) -> _Terms:
    logits = _logits(parameters)
    return _Terms((logits,), (x,), -F.softplus(logits), x.new_zeros(x.shape[-1]))


def _continuous_bernoulli(parameters: Parameters, x: Tensor, counts: Tensor | None) -> _Terms:
    logits = _logits(parameters)
    normalizer = ContinuousBernoulli(logits.unsqueeze(-1), validate_args=False).log_normalizer()
    return _Terms((logits,), (x,), -normalizer, x.new_zeros(x.shape[-1]))


def _binomial(parameters: Parameters, x: Tensor, counts: Tensor | None) -> _Terms:
    assert counts is not None
    logits = _logits(parameters)
    with torch.no_grad():
        centre = torch.logit(((_centre(x) + 1) / (_centre(counts) + 2)).clamp(0.001, 0.999))
    normalizer = F.softplus(logits) - F.softplus(centre)
    tolerance = dist.Binomial.approx_log_prob_tol
    base = (
        log_binomial(counts.double(), x.double(), tol=tolerance)
        + x.double() * centre
        - counts.double() * F.softplus(centre)
    )
    if counts.shape[:-1].numel() == 1:
        return _Terms((logits - centre,), (x,), -counts * normalizer, base)
    return _Terms((logits - centre, -normalizer), (x, counts), torch.zeros_like(logits), base)


def _categorical(parameters: Parameters, x: Tensor, counts: Tensor | None) -> _Terms:
    logits = _logits(parameters, is_binary=False)
    one_hot = logits.new_zeros(*x.shape, logits.shape[-1]).scatter(-1, x.long().unsqueeze(-1), 1.0)
    offset, base = logits.new_zeros(logits.shape[:-1]), logits.new_zeros(x.shape[-1])
    return _Terms((logits.flatten(-2),), (one_hot.flatten(-2),), offset, base)


def _one_hot_categorical(parameters: Parameters, x: Tensor, counts: Tensor | None) -> _Terms:
    return _categorical(parameters, x.argmax(-1), counts)


def _multinomial(parameters: Parameters, x: Tensor, counts: Tensor | None) -> _Terms:
    logits = _logits(parameters, is_binary=False)
    base = torch.lgamma(x.double().sum(-1) + 1) - torch.lgamma(x.double() + 1).sum(-1)
    return _Terms((logits.flatten(-2),), (x.flatten(-2),), logits.new_zeros(logits.shape[:-1]), base)


def _exponential(parameters: Parameters, x: Tensor, counts: Tensor | None) -> _Terms:
    rate = parameters["rate"]
    return _Terms((-rate,), (x,), rate.log(), x.new_zeros(x.shape[-1]))


def _poisson(parameters: Parameters, x: Tensor, counts: Tensor | None) -> _Terms:
    rate, centre = parameters["rate"], centre_of(x)
    positive = torch.where(rate > 0, rate, 1.0)  # the derivative of log at 0 is infinite, and times 0 it is NaN
    log_rate = torch.where(rate > 0, positive.log(), torch.finfo(rate.dtype).min)
    return _Terms((log_rate - centre.log(),), (x,), centre - rate, base_score(x, centre))


def _normal(parameters: Parameters, x: Tensor, counts: Tensor | None) -> _Terms:
    # In float64: large squares are subtracted from each other even where data and means are close, see `Gaussian`.
    loc, scale, x = parameters["loc"].double(), parameters["scale"].double(), x.double()
    centre = _centre(x)
    loc, x = loc - centre, x - centre
    loc, precision, log_scale = torch.broadcast_tensors(loc, scale.square().reciprocal(), scale.log())
    offset = -0.5 * precision * loc.square() - log_scale - 0.5 * math.log(2 * math.pi)
    return _Terms((precision * loc, -0.5 * precision), (x, x.square()), offset, x.new_zeros(x.shape[-1]))


_TERMS: dict[type, Callable[[Parameters, Tensor, Tensor | None], _Terms]] = {
    dist.Bernoulli: _bernoulli,
    dist.Binomial: _binomial,
    dist.Categorical: _categorical,
    dist.ContinuousBernoulli: _continuous_bernoulli,
    dist.Exponential: _exponential,
    dist.Multinomial: _multinomial,
    dist.Normal: _normal,
    dist.OneHotCategorical: _one_hot_categorical,
    dist.Poisson: _poisson,
}


def _our_normal(parameters: Parameters, x: Tensor) -> Tensor | None:
    """Return the scores if there is one scale for all codes."""
    scale = parameters["scale"]
    if scale.shape[:-1].numel() > 1:
        return None
    return Gaussian(parameters["loc"], scale.reshape(scale.shape[-1]), validate_args=False).log_prob(x)


def _our_poisson(parameters: Parameters, x: Tensor) -> Tensor | None:
    """Return the scores if codes and data have one batch dimension each."""
    rate = parameters["rate"]
    return poisson_scores(rate.squeeze(-2), x) if x.dim() == 2 and rate.dim() > 1 and rate.shape[-2] == 1 else None


def _our_bernoulli(parameters: Parameters, x: Tensor) -> Tensor:
    return Bernoulli(_logits(parameters), validate_args=False).log_prob(x)


def _our_continuous_bernoulli(parameters: Parameters, x: Tensor) -> Tensor:
    return ContinuousBernoulli(_logits(parameters), validate_args=False).log_prob(x)


#: Scores with a derivative that takes fewer operations; None where the shapes do not allow it.
_OURS: dict[type, Callable[[Parameters, Tensor], Tensor | None]] = {
    dist.Bernoulli: _our_bernoulli,
    dist.ContinuousBernoulli: _our_continuous_bernoulli,
    dist.Normal: _our_normal,
    dist.Poisson: _our_poisson,
}
