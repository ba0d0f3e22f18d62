"""A loss that sums over some discrete latents, scores others, and draws the rest by `rsample`."""

from functools import partial
from typing import Any, final

import torch
from pyro import poutine
from torch import Tensor
from typing_extensions import override

from ..distributions.parameters import impossible_as_infinite
from ..exact.expectation import expected, finite
from ..exact.plan import Plan, computed, make_plan
from ..handlers.chosen import Sites
from ..handlers.discretize_messenger import DiscretizeMessenger
from ..handlers.sites import Program, Run
from ..programs.cells import summed_over
from ..programs.draws import Score
from ..programs.joint import Guide, elbo_terms, read_guide_once
from ..programs.kept import Kept
from ..programs.latents import Roles
from ..programs.modes import without_trace
from ..programs.runs import Runs, bind
from ..runtime.memory import memory_limit
from .mean_field import check_analytic
from .sampled import Estimate, EstimatedELBO


@final
class PerSiteELBO(EstimatedELBO):
    r"""The ELBO, summed over the codes of some latents y; others are drawn, c with a score and z by `rsample`.

    .. math::

        F = \sum_y q(y | c, z, x) \Big(\log p(x, y, c, z) - \log q(y, c, z | x)\Big), \qquad
        \nabla \approx \nabla F + (F - \bar F) \nabla \log q(c | x)

    A latent that depends on y in the guide is drawn for each code of y, and its score is weighted by this code's part
    of the sum. :math:`\bar F` is the mean of F over the other P - 1 draws. The score of a latent is weighted by the
    costs of the data that share it, and of no others. For this loss, a latent that a handler relaxes or draws with a
    surrogate gradient is one with `rsample`, like a Gaussian.

    *Approximates* the ELBO of the programs as changed by their handlers. *With* P runs, each on all codes of the summed
    latents. *Requires* `rsample` of all latents that are neither summed nor scored. *Bias*: none, for those programs.

    Args:
        roles: which latents are summed (`read`) and which are scored.
        analytic: names of discrete latents with `rsample` whose KL is taken in closed form, as that of the
            categoricals.
        num_particles: P, samples per datum; there is no baseline if P = 1.
        max_memory: bytes that a slice may take; 4 GB if None.
        slice_size: codes in a slice; the largest that is fast and fits into `max_memory` if None.

    Raises:
        ValueError: when called, as :class:`~pyro_gvae.ExactELBO`; also if an analytic KL is not a term of the ELBO.

    Example:
        >>> from pyro_gvae import relax
        >>> from pyro_gvae.handlers.chosen import AllBut
        >>> from pyro_gvae.models.hierarchical_categorical_vae import HierarchicalCategoricalVAE
        >>> vae = HierarchicalCategoricalVAE(6, num_layers=2, num_latents=1, num_categories=3, hidden=(5,))
        >>> relaxed = frozenset({"z1"})
        >>> elbo = PerSiteELBO(Roles(read=AllBut(relaxed)))
        >>> elbo.loss(relax(vae.model, sites=relaxed), relax(vae.guide, sites=relaxed), torch.ones(4, 6)) > 0
        True
    """

    def __init__(
        self,
        roles: Roles,
        *,
        analytic: Sites = frozenset(),
        num_particles: int = 1,
        max_memory: float | None = None,
        slice_size: int | None = None,
    ) -> None:
        super().__init__(num_particles=num_particles)
        self.roles = roles
        self.analytic = analytic
        self.max_memory = max_memory
        self.slice_size = slice_size
        self._plans: Kept[Plan] = Kept()

    @override
    def why_not_recordable(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> str | None:
        num_slices = self._plan(bind(model, guide, *args, **kwargs), model, guide, args, kwargs).num_slices
        if num_slices == 1:
            return None
        return (
            f"Expected a sum over one slice of codes, but found {num_slices} slices, which a recording would hold all "
            "at once. Try the plain ELBO, which is hardly slower, or a larger slice_size."
        )

    @override
    def estimate_of(self, model: Program, guide: Program, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Estimate:
        runs = bind(model, guide, *args, **kwargs)
        plan = self._plan(runs, model, guide, args, kwargs)
        guides = [read_guide_once(runs, plan.layout) for _ in range(self.num_particles)]
        sums = [
            computed(plan, partial(_part, runs, plan, guides, numbers, first=i == 0))
            for i, numbers in enumerate(plan.numbers())
        ]
        values = torch.stack([value for value, _ in sums]).sum(0)  # (P, B)
        scores = torch.stack([score for _, score in sums]).sum()
        bound = values.detach()
        scores = scores + _scored(plan, list(bound.unsqueeze(1)), [_scores(plan, guide) for guide in guides])
        return Estimate(impossible_as_infinite(bound).mean(0), values.mean(0).sum() + scores)

    def _plan(self, runs: Runs, model: Program, guide: Program, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Plan:
        """Return how codes are cut into slices. This takes a few small runs, so it is kept for equal shapes."""

        def new_plan() -> Plan:
            memory = memory_limit(self.max_memory) / self.num_particles
            plan = make_plan(runs, max_memory=memory, slice_size=self.slice_size, roles=self.roles)
            analytic = statements_of(runs.again().guide, self.analytic)
            if analytic:
                check_analytic(model, guide, args, kwargs, self.analytic)
            return plan._replace(layout=plan.layout._replace(analytic=analytic))

        return self._plans.find((model, guide), args, kwargs, new_plan)


@torch.no_grad()
def statements_of(guide: Run, sites: Sites) -> frozenset[str]:
    """Return the names of the statements that draw the given discrete latents of a guide."""
    with without_trace(), poutine.block():
        with DiscretizeMessenger() as found:
            guide()
        drawn = poutine.trace(guide).get_trace().nodes
    # A relaxed latent is drawn by the auxiliary site of its logarithm.
    return frozenset(f"{name}_log" if f"{name}_log" in drawn else name for name in found.sites if name in sites)


def _part(runs: Runs, plan: Plan, guides: list[Guide], numbers: Tensor, *, first: bool) -> tuple[Tensor, Tensor]:
    """Return what a slice of codes adds to the sums (P, B), and the scores of the latents drawn for each code."""
    codes = plan.codes(numbers)
    terms = [elbo_terms(runs, plan.layout, guide, codes) for guide in guides]
    values = torch.stack([expected(plan, one, first=first) for one in terms])
    costs = [(plan.weights(one.log_weights) * finite(one.table)).detach() for one in terms]  # (s, B)
    return values, _scored(plan, costs, [one.scores for one in terms])


def _scored(plan: Plan, costs: list[Tensor], scores: list[tuple[Score, ...]]) -> Tensor:
    """Return the mean over P draws of the scores, each weighted by its costs (s, B) minus the mean of the others."""
    total = costs[0].new_zeros(())
    for of_latent in zip(*scores, strict=True):
        shape = of_latent[0].own_shape
        signals = torch.stack([summed_over(cost, plan.batch_shape, shape) for cost in costs])  # (P, s, M)
        log_q = torch.stack([score.of_each() for score in of_latent])
        # A cost minus the mean of the others is P / (P - 1) times the cost minus the mean of all.
        advantages = signals if len(costs) == 1 else (signals - signals.mean(0)) / (len(costs) - 1)
        total = total + (advantages * log_q).sum()
    return total


def _scores(plan: Plan, guide: Guide) -> tuple[Score, ...]:
    """Return the scores of the latents that are drawn once for all codes."""
    rows = 1, plan.layout.batch_size
    scored = (factor for factor in guide.factors.values() if factor.is_scored)
    return tuple(Score(factor.unweighed().expand(rows), plan.batch_shape, factor.own_shape) for factor in scored)
