"""Sums over latents that have an axis each, one latent after another: chains, and latents of the model alone.

Latents of the model alone are summed in the logarithm, inner plates first. Latents of the guide are averaged over, from
the last one drawn to the first: E_q[f] = E[.. E[f | all but the last] ..]. Both take time and memory linear in the
number of statements of a chain.
"""

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Size, Tensor

from ..distributions.parameters import impossible_as_infinite
from ..programs.axes import Axis, Term
from ..programs.chains import Chains
from ..programs.enumerator import Site
from ..programs.factors import common_scale
from ..programs.runs import Runs
from ..runtime.compat.torch import is_transformed

#: What is left of all terms that have an axis, without it.
Step = Callable[[Axis, list[Term]], list[Term]]
#: A sum of log-probabilities over one dimension.
LogSum = Callable[[Tensor, int], Tensor]


def eliminated(terms: Iterable[Term], order: Sequence[Axis], step: Step) -> list[Term]:
    """Remove axes in their order: a step takes all terms that have the axis, and returns some that have not."""
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
    q, p = chains.read(runs)
    alone = [site for name, site in p.sites.items() if name not in q.sites]
    costs = [site.masked for name, site in p.sites.items() if name in q.sites]
    costs = log_summed([*costs, *p.others.values()], alone, chains)
    guide = [site.masked for site in q.sites.values()] + list(q.others.values())
    costs += [_negative(term) for term in guide]
    sites = {site.variable: site for site in q.sites.values()}

    def average(axis: Axis, terms: list[Term]) -> list[Term]:
        return _averages(axis, terms, sites[axis].log_probs, chains)

    left = eliminated([cost.weighed() for cost in costs], sorted(sites, reverse=True), average)
    return impossible_as_infinite(collected(left, chains))


def log_evidence(runs: Runs, chains: Chains) -> Tensor:
    """Return log p(x) of each cell of the plates that all discrete latents share; differentiable."""
    p = chains.of_model().read(runs).p
    left = log_summed(p.others.values(), p.sites.values(), chains)
    return impossible_as_infinite(collected([term.weighed() for term in left], chains))


def log_summed(
    terms: Iterable[Term], sites: Iterable[Site], chains: Chains, log_sum: LogSum | None = None
) -> list[Term]:
    """Sum the product of terms and priors over the latents of these sites, from the innermost plates to the outermost.

    Args:
        terms: log-probabilities, masked; others than those that depend on the latents are left as they are.
        sites: the latents.
        chains: the layout.
        log_sum: the sum; another one gives other marginals as derivatives.
    """
    plates = {site.variable: site.log_probs.plates for site in sites}
    priors = [site.log_probs for site in sites]
    order = sorted(plates, key=lambda axis: (-len(plates[axis]), -axis.place))

    def step(axis: Axis, found: list[Term]) -> list[Term]:
        own = plates[axis]
        joined = _joined([_within(term, own, axis, chains) for term in found])
        dim = joined.axes.index(axis)
        values = (log_sum or log_sum_exp)(joined.values, dim)
        return [Term(values, joined.axes[:dim] + joined.axes[dim + 1 :], own, joined.scale)]

    return eliminated([*terms, *priors], order, step)


def log_sum_exp(values: Tensor, dim: int) -> Tensor:
    """Sum probabilities; where all of them are 0, the result is the lowest finite number, whose derivative is 0."""
    if is_transformed():
        return values.clamp_min(torch.finfo(values.dtype).min).logsumexp(dim)
    return cast(Tensor, _LogSumExp.apply(values, dim))


class _LogSumExp(torch.autograd.Function):
    """Save the values once, and not once more without those that are infinite."""

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
    """Multiply a term over the plates that a latent is outside of."""
    extra = term.plates - own
    if not extra:
        return term
    for other in term.axes:
        if not other.is_plate and other != axis and (inside := chains.plates[other.name]) and extra & set(inside):
            names = sorted(plate.name for plate in extra & set(inside))
            raise ValueError(
                f"Expected latents that can be summed one after another, but found '{axis.name}', outside of the "
                f"plate(s) {names}, beside '{other.name}' inside of them, which is not summed before it: the sum would "
                f"be over the values of '{other.name}' of all data at once. Try '{axis.name}' in the guide as well."
            )
    return _over(term, extra, chains.sizes)


def _over(term: Term, plates: frozenset[Axis], sizes: Mapping[Axis, int]) -> Term:
    """Add the log-probabilities of all cells of some plates."""
    if not plates:
        return term
    dims = [i for i, axis in enumerate(term.axes) if axis in plates]
    times = Size(sizes[plate] for plate in plates if plate not in term.axes).numel()
    values = term.values.sum(dims) if dims else term.values
    axes = tuple(axis for axis in term.axes if axis not in plates)
    return term._replace(values=values if times == 1 else values * times, axes=axes, plates=term.plates - plates)


def _joined(terms: list[Term]) -> Term:
    """Add terms, with the axes of all of them."""
    if len(terms) == 1:
        return terms[0]
    axes = tuple(sorted(frozenset().union(*(term.axes for term in terms))))
    values = functools.reduce(torch.add, (_aligned(term, axes) for term in terms))
    plates = frozenset().union(*(term.plates for term in terms))
    scales = [term.scale for term in terms]
    same = all(scale is scales[0] for scale in scales)
    return Term(values, axes, plates, scales[0] if same else common_scale(scales))


def _aligned(term: Term, axes: tuple[Axis, ...]) -> Tensor:
    """Return values that broadcast with others of these axes."""
    if term.axes == axes[len(axes) - len(term.axes) :]:
        return term.values
    sizes = dict(zip(term.axes, term.values.shape, strict=True))
    return term.values.reshape([sizes.get(axis, 1) for axis in axes])


def _averages(axis: Axis, terms: list[Term], log_probs: Term, chains: Chains) -> list[Term]:
    """Average costs over a latent, given those that it depends on: one for each set of plates that costs are in."""
    groups: dict[frozenset[Axis], list[Term]] = {}
    for term in terms:
        latents = (chains.plates[other.name] for other in term.axes if not other.is_plate)
        cost = _over(term, term.plates.difference(*latents), chains.sizes)
        groups.setdefault(cost.plates, []).append(cost)
    return [_average(axis, _joined(group), log_probs) for group in groups.values()]


def _average(axis: Axis, costs: Term, log_probs: Term) -> Term:
    """Average costs over a latent. A value that has no probability costs nothing."""
    axes = tuple(sorted({*costs.axes, *log_probs.axes}))
    lowest = torch.finfo(costs.values.dtype).min
    weighted = _aligned(log_probs, axes).exp() * _aligned(costs, axes).clamp_min(lowest)
    dim = axes.index(axis)
    return Term(weighted.sum(dim), axes[:dim] + axes[dim + 1 :], costs.plates)


def _negative(term: Term) -> Term:
    return term._replace(values=-term.values)


def collected(terms: Sequence[Term], chains: Chains) -> Tensor:
    """Add terms for each cell of the shared plates; what several cells share is divided among them."""
    shared = frozenset(chains.shared)
    parts = []
    for term in terms:
        own = _over(term, term.plates - shared, chains.sizes)
        times = Size(chains.sizes[plate] for plate in shared - term.plates).numel()
        sizes = dict(zip(own.axes, own.values.shape, strict=True))
        values = own.values.reshape([sizes.get(plate, 1) for plate in chains.shared])
        parts.append(values if times == 1 else values / times)
    return functools.reduce(torch.add, parts).expand(chains.result_shape)
