"""Sum over latents that have an axis each, one latent after another: chains, and latents of the model alone.

Latents of the model alone are summed inside the logarithm, inner plates first. Latents of the guide are averaged over,
from the last one drawn to the first: E_q[f] = E[.. E[f | all but the last] ..]. Both take time and memory linear in the
number of statements of a chain.
"""

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Size, Tensor

from ..distributions.parameters import impossible_as_infinite
from ..programs.axes import Axis, Term, aligned
from ..programs.chains import Chains
from ..programs.runs import Runs
from ..programs.shared import common_scale_along, scale_along
from ..programs.terms import Reading, Site
from ..runtime.compat.torch import is_transformed

#: A function that sums an axis out of all terms that have it, and returns the resulting terms.
Step = Callable[[Axis, list[Term]], list[Term]]
#: A sum of log-probabilities over one dimension.
LogSum = Callable[[Tensor, int], Tensor]


def eliminated(terms: Iterable[Term], order: Sequence[Axis], step: Step) -> list[Term]:
    """Remove axes in the given order: a step takes all terms that have the axis, and returns terms without it."""
    rank = {axis: i for i, axis in enumerate(order)}
    waiting: list[list[Term]] = [[] for _ in order]
    rest: list[Term] = []

    def put(term: Term) -> None:
        first = min((rank[axis] for axis in term.axes if axis in rank), default=None)
        (rest if first is None else waiting[first]).append(term)

    for term in terms:
        put(term)
    for axis, found in zip(order, waiting, strict=True):
        if found:
            for term in step(axis, found):
                put(term)
            found.clear()
    return rest


def elbo(runs: Runs, chains: Chains) -> Tensor:
    """Return the ELBO of each cell of the plates that all discrete latents share; differentiable."""
    return elbo_of(*chains.read(runs), chains)


def elbo_of(q: Reading, p: Reading, chains: Chains) -> Tensor:
    """Return the ELBO from the terms of guide and model; differentiable."""
    alone = [site for name, site in p.sites.items() if name not in q.sites]
    costs = [site.masked for name, site in p.sites.items() if name in q.sites]
    costs = log_summed([*costs, *p.others.values()], alone, chains)
    guide = [site.masked for site in q.sites.values()] + list(q.others.values())
    costs += [negative(term) for term in guide]
    return impossible_as_infinite(collected(averaged(costs, log_probs_of(q), chains), chains))


def log_probs_of(q: Reading) -> dict[Axis, Term]:
    """Return the log-probabilities of a guide's latents given those before them, starting with the last one drawn."""
    sites = {site.variable: site.log_probs for site in q.sites.values()}
    return {axis: sites[axis] for axis in sorted(sites, reverse=True)}


def averaged(costs: Iterable[Term], log_probs: Mapping[Axis, Term], chains: Chains) -> list[Term]:
    """Average costs over latents.

    Args:
        costs: terms whose sum is averaged.
        log_probs: log-probabilities of each latent given latents that come later in this mapping; its order is the
            order in which the latents are averaged over.
        chains: the layout.
    """

    def average(axis: Axis, terms: list[Term]) -> list[Term]:
        return _averages(axis, terms, log_probs[axis], chains)

    return eliminated([cost.weighed() for cost in costs], list(log_probs), average)


def log_evidence(runs: Runs, chains: Chains) -> Tensor:
    """Return log p(x) of each cell of the plates that all discrete latents share; differentiable."""
    return evidence_of(chains.of_model().read(runs).p, chains)


def evidence_of(p: Reading, chains: Chains, added: Iterable[Term] = ()) -> Tensor:
    """Return log p(x) from the terms of a model and further terms added to them; differentiable.

    The derivatives with respect to the added terms are the posterior probabilities of their values.
    """
    left = log_summed([*p.others.values(), *added], p.sites.values(), chains)
    return impossible_as_infinite(collected([term.weighed() for term in left], chains))


def log_summed(
    terms: Iterable[Term], sites: Iterable[Site], chains: Chains, log_sum: LogSum | None = None
) -> list[Term]:
    """Sum the product of terms and priors over the latents of these sites, from the innermost plates to the outermost.

    Args:
        terms: log-probabilities, masked; terms that do not depend on the latents are returned unchanged.
        sites: the latents.
        chains: the layout.
        log_sum: the function that sums probabilities; its derivatives determine what derivatives of the result mean.
    """
    priors = {site.variable: site.log_probs for site in sites}

    def step(axis: Axis, found: list[Term]) -> list[Term]:
        return [_sum(_product(axis, found, priors[axis].plates, chains), axis, log_sum or log_sum_exp)]

    return eliminated([*terms, *priors.values()], _inner_first(priors), step)


def conditionals(terms: Iterable[Term], sites: Iterable[Site], chains: Chains) -> dict[Axis, Term]:
    """Return the posterior of latents as log p(z | latents summed after it, data), in the order of the sums.

    Args:
        terms: log-probabilities, masked.
        sites: the latents.
        chains: the layout.
    """
    priors = {site.variable: site.log_probs for site in sites}
    found: dict[Axis, Term] = {}

    def step(axis: Axis, own: list[Term]) -> list[Term]:
        product = _product(axis, own, priors[axis].plates, chains)
        total = _sum(product, axis, log_sum_exp)
        values = product.values - total.values.unsqueeze(product.axes.index(axis))
        found[axis] = product._replace(values=values, scale=1.0)
        return [total]

    eliminated([*terms, *priors.values()], _inner_first(priors), step)
    return found


def _inner_first(priors: Mapping[Axis, Term]) -> list[Axis]:
    """Return the order in which latents are summed: inner plates first, and in each plate the last latent first."""
    return sorted(priors, key=lambda axis: (-len(priors[axis].plates), -axis.place))


def _product(axis: Axis, terms: list[Term], own: frozenset[Axis], chains: Chains) -> Term:
    """Multiply the factors that have a latent's axis, also over the cells of plates inside which the latent is not."""
    return joined([_within(term, own, axis, chains) for term in terms])._replace(plates=own)


def _sum(term: Term, axis: Axis, log_sum: LogSum) -> Term:
    dim = term.axes.index(axis)
    axes = term.axes[:dim] + term.axes[dim + 1 :]
    return term._replace(values=log_sum(term.values, dim), axes=axes, scale=scale_along(term, axes))


def log_sum_exp(values: Tensor, dim: int) -> Tensor:
    """Sum probabilities; if all of them are 0, the result is the lowest finite number, with derivative 0."""
    if is_transformed():
        return values.clamp_min(torch.finfo(values.dtype).min).logsumexp(dim)
    return cast(Tensor, _LogSumExp.apply(values, dim))


class _LogSumExp(torch.autograd.Function):
    """The same sum, which saves the values only once: logsumexp of clamped values would also save the clamped ones."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, dim: int) -> Tensor:
        lowest = torch.finfo(values.dtype).min
        highest = values.amax(dim, keepdim=True).clamp_min(lowest)
        total = (values - highest).exp_().sum(dim).log_().add_(highest.squeeze(dim)).clamp_min_(lowest)
        ctx.dim = dim
        ctx.save_for_backward(values, total)
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        values, total = ctx.saved_tensors
        return (values - total.unsqueeze(ctx.dim)).exp() * grad.unsqueeze(ctx.dim), None


def _within(term: Term, own: frozenset[Axis], axis: Axis, chains: Chains) -> Term:
    """Multiply a factor over the cells of plates inside which a latent is not."""
    extra = term.plates - own
    if not extra:
        return term
    for other in term.axes:
        if not other.is_plate and other != axis and (inside := chains.plates[other.name]) and extra & set(inside):
            names = sorted(plate.name for plate in extra & set(inside))
            raise ValueError(
                f"Expected latents that can be summed one after another, but found '{axis.name}' outside of the "
                f"plate(s) {names} in one term with '{other.name}' inside of them, which is not summed before it: the "
                f"sum would be over the values of '{other.name}' of all data at once. Try '{axis.name}' in the guide "
                "as well."
            )
    return over(term, extra, chains.sizes)


def over(term: Term, plates: frozenset[Axis], sizes: Mapping[Axis, int]) -> Term:
    """Add up the log-probabilities over all cells of some plates."""
    if not plates:
        return term
    dims = [i for i, axis in enumerate(term.axes) if axis in plates]
    times = Size(sizes[plate] for plate in plates if plate not in term.axes).numel()
    values = term.values.sum(dims) if dims else term.values
    axes = tuple(axis for axis in term.axes if axis not in plates)
    values, scale = values if times == 1 else values * times, scale_along(term, axes)
    return term._replace(values=values, axes=axes, plates=term.plates - plates, scale=scale)


def joined(terms: Sequence[Term]) -> Term:
    """Add terms by broadcasting; the result has the axes of all of them."""
    if len(terms) == 1:
        return terms[0]
    axes = tuple(sorted(frozenset().union(*(term.axes for term in terms))))
    values = functools.reduce(torch.add, (aligned(term, axes) for term in terms))
    plates = frozenset().union(*(term.plates for term in terms))
    return Term(values, axes, plates, common_scale_along(terms, axes))


def _averages(axis: Axis, terms: list[Term], log_probs: Term, chains: Chains) -> list[Term]:
    """Average costs over a latent, given the latents that it depends on; group costs by the plates that they are in."""
    groups: dict[frozenset[Axis], list[Term]] = {}
    for term in terms:
        latents = (chains.plates[other.name] for other in term.axes if not other.is_plate)
        cost = over(term, term.plates.difference(*latents), chains.sizes)
        groups.setdefault(cost.plates, []).append(cost)
    return [_average(axis, joined(group), log_probs) for group in groups.values()]


def _average(axis: Axis, costs: Term, log_probs: Term) -> Term:
    """Average costs over a latent. A value of probability 0 adds 0, also to gradients, even if its cost is infinite."""
    axes = tuple(sorted({*costs.axes, *log_probs.axes}))
    lowest = torch.finfo(costs.values.dtype).min
    weights = aligned(log_probs, axes).exp()
    # The derivative by a weight is a cost. Costs of codes without weight may be the lowest number, whose sums overflow.
    weighted = torch.where(weights > 0, weights * aligned(costs, axes).clamp(lowest, -lowest), 0.0)
    dim = axes.index(axis)
    return Term(weighted.sum(dim), axes[:dim] + axes[dim + 1 :], costs.plates)


def negative(term: Term) -> Term:
    """Return minus a term. An impossible value costs the largest finite number, which its probability 0 turns to 0."""
    return term._replace(values=-term.values.clamp_min(torch.finfo(term.values.dtype).min))


def collected(terms: Sequence[Term], chains: Chains) -> Tensor:
    """Add up terms for each cell of the shared plates; a term that several cells share is divided evenly among them."""
    shared = frozenset(chains.shared)
    parts = []
    for term in terms:
        own = over(term, term.plates - shared, chains.sizes)
        times = Size(chains.sizes[plate] for plate in shared - term.plates).numel()
        sizes = dict(zip(own.axes, own.values.shape, strict=True))
        values = own.values.reshape([sizes.get(plate, 1) for plate in chains.shared])
        parts.append(values if times == 1 else values / times)
    return functools.reduce(torch.add, parts).expand(chains.result_shape)
