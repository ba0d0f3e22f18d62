"""Find the best factorized posterior of latents that have an axis each, by coordinate ascent on the terms of the model.

Under a factorized posterior, the average of log p(x, z) is a sum over the model's statements, each with few latents. So
a sweep takes time linear in the length of a chain.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple, final

import torch
from torch import Size, Tensor

from ..programs.axes import Axis, Term, aligned
from ..programs.chains import Chains
from ..programs.runs import Runs
from ..programs.shared import common_scale_along
from ..programs.terms import Reading
from .backwards import best, in_digits, in_plates, marginals
from .elimination import collected, joined, over

#: log q of each digit of a latent, (*plates, N, K) by its name, normalized.
Logits = dict[str, Tensor]


class Sweep(NamedTuple):
    """A factorized posterior, and its ELBO."""

    logits: Logits
    elbo: Tensor  # in the shape of results


@final
class Statements:
    """The terms of the model, whose sum is log p(x, z), masked and not scaled; and their scales.

    Terms that have a latent in common need the same scale, which then stands before a sum over its values.
    """

    def __init__(self, runs: Runs, chains: Chains) -> None:
        p = chains.of_model().read(runs).p
        terms = [*p.others.values(), *(site.log_probs for site in p.sites.values())]
        self.chains = chains
        self.scales = [_scale_of([term], tuple(axis for axis in term.axes if axis.is_plate)) for term in terms]
        # An impossible value must add 0 times a finite number, and the sum of all terms must stay finite, too.
        times = len(terms) * Size(chains.sizes.values()).numel()
        self.terms = [
            term._replace(values=term.values.clamp_min(torch.finfo(term.values.dtype).min / (2 * times)), scale=1.0)
            for term in terms
        ]
        self.variables = {name: site.variable for name, site in p.sites.items()}
        self._of = {name: [term for term in self.terms if axis in term.axes] for name, axis in self.variables.items()}
        self._scales = {
            name: _scale_of([term for term in terms if axis in term.axes], self._wide(name))
            for name, axis in self.variables.items()
        }

    def sweep(self, logits: Logits) -> Sweep:
        """Update every digit once: log q_n(k) = E_q[log p(x, z) | z_n = k] + constant."""
        logits = dict(logits)
        probs = {self.variables[name]: self._values(name, own) for name, own in logits.items()}
        for name, axis in self.variables.items():
            scores = self._scores(name, probs)  # (*plates, S)
            logits[name] = _updated(scores, logits[name])
            probs[axis] = self._values(name, logits[name])
        parts = [
            _times(_averaged(term, probs, None), scale) for term, scale in zip(self.terms, self.scales, strict=True)
        ]
        for name, own in logits.items():
            entropy = torch.special.entr(own.exp()).sum((-2, -1))
            parts.append(_times(self._term(name, entropy.unsqueeze(-1), ()), self._scales[name]))
        return Sweep(logits, collected(parts, self.chains))

    def _scores(self, name: str, probs: dict[Axis, Term]) -> Tensor:
        axis, plates = self.variables[name], frozenset(self.chains.plates[name])
        terms = [_averaged(term, probs, axis) for term in self._of[name]]
        whole = joined([over(term, term.plates - plates, self.chains.sizes) for term in terms])
        axes = (axis, *self._wide(name))
        values = aligned(whole, axes).expand(-1, *(self.chains.sizes[plate] for plate in axes[1:]))
        return in_plates(values, name, self.chains)

    def _values(self, name: str, logits: Tensor) -> Term:
        """Return the probability of each value of a latent, as a term."""
        table = logits[..., 0, :]
        for digit in logits.unbind(-2)[1:]:
            table = (table.unsqueeze(-1) + digit.unsqueeze(-2)).flatten(-2)
        return self._term(name, table.exp(), (self.variables[name],))

    def _term(self, name: str, values: Tensor, variable: tuple[Axis, ...]) -> Term:
        """Return numbers (*plates, S) of a latent as a term, with S = 1 if the term does not depend on its value."""
        plates = self._wide(name)
        sizes = [*values.shape[-1:][: len(variable)], *(self.chains.sizes[plate] for plate in plates)]
        return Term(values.movedim(-1, 0).reshape(sizes), (*variable, *plates), frozenset(self.chains.plates[name]))

    def _wide(self, name: str) -> tuple[Axis, ...]:
        return tuple(plate for plate in self.chains.plates[name] if self.chains.sizes[plate] > 1)


def starts(runs: Runs, chains: Chains) -> list[Logits]:
    """Return the starts of the ascent: the guide if factorized, the posterior's marginals, and its smoothed mode."""
    found = [_logs(marginals(runs, chains.of_model()))]
    modes = best(runs, chains.of_model()).codes
    found.append(_logs({name: 0.9 * mode + 0.1 / mode.shape[-1] for name, mode in modes.items()}))
    q = chains.read(runs).q
    return [*_of_guide(q, chains), *found]


def _of_guide(q: Reading, chains: Chains) -> list[Logits]:
    if any(name not in q.sites or not _is_independent(q, name) for name in chains.latents):
        return []
    found = {}
    for name, latent in chains.latents.items():
        term = q.sites[name].log_probs
        plates = tuple(plate for plate in chains.plates[name] if chains.sizes[plate] > 1)
        axes = (q.sites[name].variable, *plates)
        probs = aligned(term, axes).exp().expand(-1, *(chains.sizes[plate] for plate in plates))
        found[name] = in_digits(in_plates(probs, name, chains), latent)
    return [_logs(found)]


def _is_independent(q: Reading, name: str) -> bool:
    return sum(not axis.is_plate for axis in q.sites[name].log_probs.axes) == 1


def _logs(probs: dict[str, Tensor]) -> Logits:
    return {name: own.clamp_min(torch.finfo(own.dtype).tiny).log() for name, own in probs.items()}


def _scale_of(terms: Sequence[Term], plates: tuple[Axis, ...]) -> Term | None:
    """Return the scale that terms have in common, as a term in these plates; None if it is 1."""
    found = common_scale_along(terms, plates)
    if not isinstance(found, Tensor) and found == 1:
        return None
    scale = torch.as_tensor(found).to(terms[0].values)
    return Term(scale, plates if scale.dim() else (), frozenset(plates))


def _times(term: Term, scale: Term | None) -> Term:
    """Return a term without latents, multiplied by a scale."""
    if scale is None:
        return term
    axes = _union(term.axes, scale.axes)
    return term._replace(values=aligned(term, axes) * aligned(scale, axes), axes=axes)


def _averaged(term: Term, probs: dict[Axis, Term], kept: Axis | None) -> Term:
    """Average a term over all its latents except for one that is kept."""
    for axis in [axis for axis in term.axes if not axis.is_plate and axis != kept]:
        axes = _union(term.axes, probs[axis].axes)
        dim = axes.index(axis)
        values = (aligned(term, axes) * aligned(probs[axis], axes)).sum(dim)
        term = term._replace(values=values, axes=axes[:dim] + axes[dim + 1 :])
    return term


def _union(*axes: Iterable[Axis]) -> tuple[Axis, ...]:
    return tuple(sorted(frozenset().union(*axes)))


def _updated(scores: Tensor, logits: Tensor) -> Tensor:
    """Update each digit of a latent given the others: scores (*plates, S) -> log q (*plates, N, K)."""
    num_digits, num_categories = logits.shape[-2:]
    digits = list(logits.unbind(-2))
    for n in range(num_digits):
        own = scores.unflatten(-1, [num_categories] * num_digits)
        for other, log_q in enumerate(digits):
            if other != n:
                after = (1,) * (num_digits - 1 - other)
                probs = log_q.exp().reshape(*log_q.shape[:-1], *(1,) * other, num_categories, *after)
                own = (own * probs).sum(other - num_digits, keepdim=True)
        digits[n] = own.reshape(digits[n].shape).log_softmax(-1)
    return torch.stack(digits, -2)
