"""A loss that sums over some latents and gives each of the others its own gradient estimator."""

from collections.abc import Sequence
from typing import Any, final

import torch
from torch import nn
from typing_extensions import override

from ..distributions.parameters import impossible_as_infinite
from ..exact.plan import make_plan
from ..handlers.chosen import EVERY_SITE, Sites
from ..handlers.sites import Program
from ..programs.crossed import Crossed
from ..programs.draws import lay_out_draws
from ..programs.factors import Layout
from ..programs.kept import Kept
from ..programs.latents import Roles
from ..programs.runs import Runs, bind
from ..programs.target import Target
from ..runtime.memory import in_words, memory_limit
from .mean_field import check_analytic
from .per_site import statements_of
from .rows import Rows, SiteEstimate, SiteGradient
from .sampled import Estimate, EstimatedELBO
from .score import ScoreGradient


@final
class EachSiteELBO(EstimatedELBO):
    r"""The ELBO, summed over the codes of some latents y, with a gradient estimator for each latent z that is drawn.

    .. math::

        F = \sum_y q(y | z, x) \Big(\log p(x, y, z, u) - \log q(y, z, u | x)\Big)

    For each z, the cost of a draw is F at the drawn values of the other latents u. Where z is changed, latents that the
    guide declares after it are drawn again with the same noise. The model's parameters get the gradient of F at the
    draws. A latent that a handler relaxes or draws with a surrogate gradient is one of u, drawn by `rsample`. Latents u
    without `rsample` are scored, with the mean of the other P - 1 draws as a baseline.

    *Approximates* the ELBO of the programs as changed by their handlers. *With* P draws for each joint code of the
    summed latents, all at once. *Requires* for each latent what its estimator requires. *Bias*: none, for those
    programs.

    Args:
        read: names of the discrete latents that are summed, or drawn with a gradient estimator.
        summed: names of those that are summed.
        drawn: names of the others, with their gradient estimators.
        analytic: names of discrete latents with `rsample` whose KL is taken in closed form, as that of the
            categoricals.
        num_particles: P, draws per datum.
        max_memory: bytes that all codes of the summed latents may take; 4 GB if None.

    Attributes:
        own: the gradient estimators, as a module with their learned parameters.

    Raises:
        ValueError: when called, if an estimator does not accept its latent, or the codes do not fit into `max_memory`.

    Example:
        >>> from pyro_gvae.elbos.coupled import CoupledGradient
        >>> from pyro_gvae.models.hierarchical_categorical_vae import HierarchicalCategoricalVAE
        >>> vae = HierarchicalCategoricalVAE(6, num_layers=2, num_latents=1, num_categories=3, hidden=(5,))
        >>> elbo = EachSiteELBO(EVERY_SITE, frozenset({"z2"}), [(frozenset({"z1"}), CoupledGradient())])
        >>> elbo.loss(vae.model, vae.guide, torch.ones(4, 6)) > 0
        True
    """

    own: nn.ModuleList

    def __init__(
        self,
        read: Sites,
        summed: Sites,
        drawn: Sequence[tuple[Sites, SiteGradient]],
        *,
        analytic: Sites = frozenset(),
        num_particles: int = 1,
        max_memory: float | None = None,
    ) -> None:
        super().__init__(num_particles=num_particles)
        self.read = read
        self.summed = summed
        self.drawn = tuple(drawn)
        self.own = nn.ModuleList(gradient for _, gradient in drawn)
        self.analytic = analytic
        self.max_memory = max_memory
        self._layouts: Kept[Layout] = Kept()

    @override
    def estimate_of(self, model: Program, guide: Program, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Estimate:
        runs = bind(model, guide, *args, **kwargs)
        return self._layouts.use(
            (model, guide),
            args,
            kwargs,
            lambda: self._lay_out(runs, model, guide, args, kwargs),
            lambda layout: self._estimate_with(runs, layout, args),
        )

    def _estimate_with(self, runs: Runs, layout: Layout, args: tuple[Any, ...]) -> Estimate:
        names = [latent.name for latent in layout.space.latents]
        gradients = {name: self._gradient(name) for name in names if name not in self.summed}
        entropic = frozenset(name for name, gradient in gradients.items() if gradient.sums_entropy)
        crossed = Crossed(layout, frozenset(names) - gradients.keys(), self.num_particles)
        rows = Rows(Target(runs, layout), crossed, entropic, args)
        surrogate = (rows.paths + rows.costs * rows.log_weights).sum()
        advantages = rows.above_others(rows.costs)
        for name in sorted(rows.base.scored):
            self._check_scored(name)
            surrogate = surrogate + (advantages * rows.base.q.factors[name].unweighed()).sum()
        learned = []
        for name, gradient in gradients.items():
            found: SiteEstimate = gradient(rows, name)
            surrogate = surrogate + found.surrogate
            learned += [] if found.own_loss is None else [found.own_loss]
        own_loss = torch.stack(learned).sum() if learned else None
        bound = rows.mean(rows.costs)
        return Estimate(impossible_as_infinite(bound), surrogate / self.num_particles, own_loss)

    @override
    def learn(self, found: Estimate) -> None:
        for _, gradient in self.drawn:
            gradient.learn(found.bound.mean())

    def _check_scored(self, name: str) -> None:
        """Refuse an estimator of discrete codes that was chosen for a latent with other values."""
        for sites, gradient in self.drawn:
            if isinstance(sites, frozenset) and name in sites and not isinstance(gradient, ScoreGradient):
                raise ValueError(
                    f"Expected a latent of one-hots, bits or integers at '{name}', but found one of other values. Try "
                    f"estimator({{'{name}': 'reinforce-loo'}}), which scores it."
                )

    def _gradient(self, name: str) -> SiteGradient:
        return next(gradient for sites, gradient in self.drawn if name in sites)

    def _lay_out(
        self, runs: Runs, model: Program, guide: Program, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Layout:
        """Find the layout by a few small runs, and check the requirements of each estimator."""
        layout = lay_out_draws(runs, Roles(read=self.read))
        latents = layout.space.latents
        for latent in latents:
            if latent.name not in self.summed:
                self._gradient(latent.name).check(latent)
        self._check_memory(runs, [latent.name for latent in latents if latent.name in self.summed])
        analytic = statements_of(runs.again().guide, self.analytic)
        if analytic:
            check_analytic(model, guide, args, kwargs, self.analytic)
            if layout.obstacle is not None:
                raise ValueError(
                    "Expected programs that accept codes in an additional dimension left of the plates, which a KL in "
                    f'closed form needs, but found: {layout.obstacle.rstrip(".")}. Try kl="sampled".'
                )
        return layout._replace(analytic=analytic)

    def _check_memory(self, runs: Runs, summed: Sequence[str]) -> None:
        if not summed:
            return
        plan = make_plan(runs, max_memory=self.max_memory, roles=Roles(read=frozenset(summed), scored=EVERY_SITE))
        limit = memory_limit(self.max_memory)
        needed = plan.bytes_per_code * plan.num_codes * self.num_particles
        if needed > limit:
            raise ValueError(
                f"Expected the {plan.num_codes:,} joint codes of {', '.join(summed)} to fit into {in_words(limit)} at "
                f"once, but found that they take about {in_words(needed)}. Try a larger max_memory, fewer summed "
                "sites, or reinforce-loo for the drawn sites, which lets the codes be summed in slices."
            )
