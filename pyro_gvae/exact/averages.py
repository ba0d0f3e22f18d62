r"""Compute a guide's marginals, entropies and KLs, for latents that have an axis each, as derivatives of averages.

A latent that the guide lacks is summed exactly, as if the guide had its exact posterior given the latents that it has:

.. math:: q(z, c) = q(c | x) \, p(z | c, x)

The derivative of an average with respect to a number added to the cost of a value is the probability of that value; the
derivative with respect to the weight of a cost is the average of that cost. So one average and its derivatives give the
numbers of all latents, in time linear in the length of a chain.
"""

from collections.abc import Iterable, Mapping
from typing import NamedTuple, Self

import torch
from torch import Tensor

from ..programs.axes import Axis, Term, aligned
from ..programs.chains import Chains
from ..programs.enumerator import Both
from ..programs.kls import LatentKL
from ..programs.runs import Runs
from ..programs.shared import scale_along
from .backwards import in_digits, in_plates
from .elimination import averaged, collected, conditionals, joined, log_probs_of, negative


class Averages(NamedTuple):
    """The distribution that averages are taken over, and the terms of both programs.

    Attributes:
        both: the terms of guide and model.
        chains: the layout.
        log_probs: log-probabilities of each discrete latent given latents that come later in this dictionary, not
            masked.
    """

    both: Both
    chains: Chains
    log_probs: dict[Axis, Term]

    @classmethod
    def read(cls, runs: Runs, chains: Chains) -> Self:
        """Run both programs, and compute the posterior of the latents that the guide lacks."""
        both = chains.read(runs)
        q, p = both
        shared = [site.masked for name, site in p.sites.items() if name in q.sites]
        alone = [site for name, site in p.sites.items() if name not in q.sites]
        return cls(both, chains, conditionals([*shared, *p.others.values()], alone, chains) | log_probs_of(q))

    @property
    def is_factorized(self) -> bool:
        """Whether the discrete latents are independent of each other."""
        return all(sum(not axis.is_plate for axis in term.axes) == 1 for term in self.log_probs.values())

    def marginals(self) -> dict[str, Tensor]:
        """Compute q(z_n = k | x) of each latent, (*plates, N, K) by its name."""
        like = next(iter(self.log_probs.values())).values
        changes = {}
        for axis, term in self.log_probs.items():
            plates = self._wide(self.chains.plates[axis.name])
            sizes = [term.values.shape[term.axes.index(axis)], *(self.chains.sizes[plate] for plate in plates)]
            changes[axis] = Term(like.new_zeros(sizes).requires_grad_(), (axis, *plates), term.plates)
        with torch.enable_grad():
            left = averaged(changes.values(), self.log_probs, self.chains)
            total = torch.stack([term.values.sum() for term in left]).sum()
        found = torch.autograd.grad(total, [term.values for term in changes.values()])
        return {
            axis.name: in_digits(in_plates(grad, axis.name, self.chains), self.chains.latents[axis.name])
            for axis, grad in zip(changes, found, strict=True)
        }

    def entropies(self) -> dict[str, Tensor]:
        r"""Compute :math:`\mathrm{E}_q[\mathrm{H}(q(z | z', x))]` of each discrete latent, in the shape of results.

        Here z' are the latents that z depends on. The values add up to the entropy of all latents; they are neither
        scaled nor masked.
        """
        return self._per_cell({axis.name: negative(term)._replace(scale=1.0) for axis, term in self.log_probs.items()})

    def kls(self) -> dict[str, Tensor]:
        """Compute the KL of each latent in the shape of results, scaled and masked; the values add up to KL(q || p)."""
        q = self.both.q
        auxiliary = {name: term for name, term in q.others.items() if name not in self.both.p.others}
        observed = {name: site.masked for name, site in q.sites.items() if name not in self.both.p.sites}
        return self._per_cell(self._ratios() | auxiliary | observed)

    def kls_of_digits(self) -> dict[str, LatentKL]:
        """Compute the KL of each digit, summed over data; differentiable. A latent that the guide lacks has one KL."""
        q, p = self.both
        create_graph = torch.is_grad_enabled()
        weights: dict[str, Tensor] = {}
        costs = []
        with torch.enable_grad():
            auxiliary = {name: term for name, term in q.others.items() if name not in p.others}
            for name, ratio in (self._ratios() | auxiliary).items():
                is_read = name in q.sites
                count = q.sites[name].latent.num_latents if is_read else 1
                own = weights[name] = ratio.values.new_ones(count).requires_grad_()
                costs.append(
                    _difference(q.sites[name].of_digits(own), p.sites[name].of_digits(own))
                    if is_read
                    else ratio._replace(values=ratio.values.clamp(*_finite(ratio)) * own.squeeze())
                )
            parts = collected(averaged(costs, self.log_probs, self.chains), self.chains)
            found = torch.autograd.grad(parts.sum(), list(weights.values()), create_graph=create_graph)
        totals = {**p.weights, **q.weights}
        return {name: LatentKL(value, totals[name]()) for name, value in zip(weights, found, strict=True)}

    def table(self) -> Tensor:
        """Return log q(z | x) of all joint codes, (S, B); all latents must be in the plates of the results."""
        whole = joined([term._replace(scale=1.0) for term in self.log_probs.values()])
        sizes = dict(zip(whole.axes, whole.values.shape, strict=True))
        shape = self.chains.result_shape
        values = whole.values.reshape(-1, *(sizes.get(plate, 1) for plate in self.chains.shared))
        return values.expand(-1, *shape).reshape(len(values), -1)

    def _ratios(self) -> dict[str, Term]:
        """Return log q - log p of each latent of both programs, given the latents that it depends on."""
        q, p = self.both
        own = {name: site.masked for name, site in q.sites.items() if name in p.sites} | {
            name: term for name, term in q.others.items() if name in p.others
        }
        given = {name: site.masked for name, site in p.sites.items()} | p.others
        found = {name: _difference(term, given[name]) for name, term in own.items()}
        for axis, term in self.log_probs.items():
            if axis.name not in q.sites:
                prior = p.sites[axis.name].log_probs
                found[axis.name] = _difference(term._replace(scale=scale_along(prior, term.axes)), prior)
        return found

    def _per_cell(self, costs: Mapping[str, Term]) -> dict[str, Tensor]:
        """Average each cost, in the shape of results."""
        plates = self._wide(self.chains.shared)
        sizes = [self.chains.sizes[plate] for plate in plates]
        weights, weighted = [], []
        with torch.enable_grad():
            for cost in costs.values():
                weights.append(cost.values.new_ones(sizes).requires_grad_())
                axes = tuple(sorted({*cost.axes, *plates}))
                weight = aligned(Term(weights[-1], plates, frozenset()), axes)
                finite = aligned(cost.weighed(), axes).clamp(*_finite(cost))
                weighted.append(Term(finite * weight, axes, cost.plates))
            total = collected(averaged(weighted, self.log_probs, self.chains), self.chains).sum()
        found = torch.autograd.grad(total, weights)
        return {name: own.reshape(self.chains.result_shape) for name, own in zip(costs, found, strict=True)}

    def _wide(self, plates: Iterable[Axis]) -> tuple[Axis, ...]:
        """Leave out plates of size one, for which no term has an axis."""
        return tuple(plate for plate in plates if self.chains.sizes[plate] > 1)


def _difference(one: Term, other: Term) -> Term:
    """Return the difference of two terms, each with its own scale."""
    return joined([one.weighed(), negative(other.weighed())])


def _finite(term: Term) -> tuple[float, float]:
    """Return the lowest and the highest finite number; clamped to them, an impossible value adds 0 to an average."""
    lowest = torch.finfo(term.values.dtype).min
    return lowest, -lowest
