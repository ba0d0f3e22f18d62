"""Compute two objectives from one table of codes: log p(x) for the model, and a KL from or to its posterior for q."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import final

import torch
from torch import Tensor

from ..programs.cells import summed_over
from ..programs.chains import Chains
from ..programs.enumerator import Both
from ..programs.factors import Level
from ..programs.joint import Guide, JointScores, guide_terms, log_q_and_scores, pieces, terms_and_scores
from ..programs.look import is_continuous
from ..programs.runs import Runs
from ..programs.shared import unscaled
from ..programs.site import Codes
from ..programs.statements import read
from . import elimination
from .expectation import expected, finite
from .nested import nested_evidence
from .plan import Plan
from .sums import Evidence, Part, elbo_parts, evidence, neglected, summed

#: A function of the posterior probabilities (s, B) of a slice's codes that returns the guide's objective, (B,).
ForGuide = Callable[[Tensor], Tensor]


class Encoder(ABC):
    """Abstract base: the objective of the guide on the table of codes. The model's objective is always log p(x)."""

    @abstractmethod
    def keeps(self, plan: Plan, guide: Guide, numbers: Tensor) -> Tensor:
        """Return which codes (s,) the guide needs besides those that are probable in the model's posterior."""

    @abstractmethod
    def of_codes(
        self, runs: Runs, plan: Plan, guide: Guide, codes: Codes, *, first: bool
    ) -> tuple[JointScores, ForGuide]:
        """Run both programs once on joint codes; return the model's scores and the objective of the guide."""

    @abstractmethod
    def of_levels(self, runs: Runs, plan: Plan, guide: Guide) -> Tensor:
        """Return log p(x) with the gradients of both objectives, for latents that data share."""

    @abstractmethod
    def of_chains(self, runs: Runs, chains: Chains) -> Tensor:
        """Return log p(x) with the gradients of both objectives, for latents that have an axis each."""


@final
class Exclusive(Encoder):
    """The guide maximizes the ELBO, and so minimizes KL(q(z | x) || p(z | x))."""

    def keeps(self, plan: Plan, guide: Guide, numbers: Tensor) -> Tensor:
        """Return which codes are probable under the guide."""
        return ~neglected(plan, guide, numbers)

    def of_codes(
        self, runs: Runs, plan: Plan, guide: Guide, codes: Codes, *, first: bool
    ) -> tuple[JointScores, ForGuide]:
        """Use the slice's contribution to the ELBO."""
        terms, scores = terms_and_scores(runs, plan.layout, guide, codes)
        return scores, lambda _: expected(plan, terms, first=first)

    def of_levels(self, runs: Runs, plan: Plan, guide: Guide) -> Tensor:
        """Compute the ELBO by one more run of the model, which is held constant."""
        elbo = summed(plan, elbo_parts(runs, plan, guide, guide_terms)).sum()
        return with_gradient_of(evidence(runs.model, plan).sum(), elbo)

    def of_chains(self, runs: Runs, chains: Chains) -> Tensor:
        """Compute the ELBO from the same terms of the model, which are held constant."""
        q, p = _read_discrete(runs, chains)
        elbo = elimination.elbo_of(q, p.detached(), chains).sum()
        return with_gradient_of(elimination.evidence_of(p, chains).sum(), elbo)


@final
class Inclusive(Encoder):
    """The guide maximizes E[log q(z | x)] under the posterior, and so minimizes KL(p(z | x) || q(z | x)).

    For latents that data share, and in chains, log q is added to the model's log-probabilities with the value 0: the
    derivative of log p(x) with respect to it is the posterior probability.
    """

    def keeps(self, plan: Plan, guide: Guide, numbers: Tensor) -> Tensor:
        """Return that no further codes are needed."""
        return torch.zeros_like(numbers, dtype=torch.bool)

    def of_codes(
        self, runs: Runs, plan: Plan, guide: Guide, codes: Codes, *, first: bool
    ) -> tuple[JointScores, ForGuide]:
        """Use the average of log q under the posterior."""
        log_q, scores = log_q_and_scores(runs, plan.layout, guide, codes)
        return scores, lambda posterior: (posterior * _change(log_q)).sum(0)

    def of_levels(self, runs: Runs, plan: Plan, guide: Guide) -> Tensor:
        """Add log q of each latent, with the value 0, to the level of the latent."""
        found = nested_evidence(runs.model, plan, partial(_changes, runs, plan, guide))
        return (found.scale * found.log_evidence).sum()

    def of_chains(self, runs: Runs, chains: Chains) -> Tensor:
        """Add log q, with the value 0, to the terms of the model."""
        q, p = _read_discrete(runs, chains)
        log_q = [site.masked for site in q.sites.values()]
        changes = [term._replace(values=_change(term.values)) for term in log_q]
        return elimination.evidence_of(p, chains, changes).sum()


def with_gradient_of(value: Tensor, other: Tensor) -> Tensor:
    """Return a value that also has the gradient of another."""
    return value + (other - other.detach())


def whole(runs: Runs, plan: Plan, guide: Guide, encoder: Encoder) -> Tensor:
    """Return log p(x), summed over data, with the gradients of both objectives, from one slice of all codes."""
    [numbers] = plan.numbers()
    scores, for_guide = encoder.of_codes(runs, plan, guide, plan.codes(numbers), first=True)
    joint = scores.joint.detach()
    highest = joint.amax(0).clamp_min(torch.finfo(joint.dtype).min)
    weights = plan.weights(joint - highest)
    total = weights.sum(0)
    climbed = _climbed(scores, weights / total.clamp_min(torch.finfo(joint.dtype).tiny), for_guide)
    return with_gradient_of((scores.scale * (highest + total.log())).sum(), climbed.sum())


def wake_parts(runs: Runs, plan: Plan, found: Evidence, encoder: Encoder, guide: Guide) -> Iterator[Part]:
    """Yield one function per slice of the codes that contribute; only the gradients of their sum have a meaning."""
    for i, numbers in enumerate(plan.repacked(found.likely)):
        yield partial(_part, runs, plan, found, encoder, guide, numbers, first=i == 0 and plan.share.rank == 0)


def _part(
    runs: Runs, plan: Plan, found: Evidence, encoder: Encoder, guide: Guide, numbers: Tensor, *, first: bool
) -> Tensor:
    scores, for_guide = encoder.of_codes(runs, plan, guide, plan.codes(numbers), first=first)
    return _climbed(scores, plan.weights(scores.joint.detach() - found.log_evidence), for_guide)


def _climbed(scores: JointScores, posterior: Tensor, for_guide: ForGuide) -> Tensor:
    """Return (B,) with the gradients of both objectives: that of the evidence is an average under the posterior."""
    return scores.scale * (posterior * finite(scores.joint)).sum(0) + for_guide(posterior)


def _changes(runs: Runs, plan: Plan, guide: Guide, codes: Codes, scale: float | Tensor) -> Mapping[str, Tensor]:
    """Return log q of each latent in the cells of its level, (s, cells), with the value 0."""
    found: dict[str, list[Tensor]] = {}
    levels = {name: level for level in plan.layout.levels for name in level.names}
    for part in pieces(plan.layout, codes):
        q = read(runs.guide, plan.layout, part, guide.values).sites if guide.depends else {}
        for name, site in (q | guide.sites).items():
            weighed = summed_over(site.weigh(site.score(part)), plan.batch_shape, levels[name].shape)
            found.setdefault(name, []).append(_change(unscaled(weighed, _inside(levels[name], plan, scale))))
    return {name: torch.cat(each) for name, each in found.items()}


def _inside(level: Level, plan: Plan, scale: float | Tensor) -> float | Tensor:
    """Return the scale of each cell of a level, from one number or that of each outermost cell."""
    if not isinstance(scale, Tensor) or scale.numel() == 1:
        return scale
    return plan.layout.levels[0].spread(scale.unsqueeze(0), level)


def _read_discrete(runs: Runs, chains: Chains) -> Both:
    """Read both programs, and refuse continuous latents."""
    both = chains.read(runs)
    for name in both.q.others:
        raise is_continuous(name)
    return both


def _change(log_q: Tensor) -> Tensor:
    """Return log q with the value 0; finite also for codes that the guide never draws."""
    log_q = finite(log_q)
    return log_q - log_q.detach()
