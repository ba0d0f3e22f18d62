"""Draw latents from a guide, and score them by guide and model, for losses that sample.

Particles share one axis, left of the plates, as codes do in sums. Programs that do not accept it are run for one
particle after another.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Size, Tensor

from .cells import first_of, summed_over
from .factors import Layout, Reading, add
from .latents import READ_ALL, Roles
from .layout import lay_out, obstacle_of
from .look import Look
from .modes import without_trace
from .noise import independent
from .runs import Runs
from .samples import read_values, sample
from .shared import apart, common_scale, unscaled
from .site import Codes


class Score(NamedTuple):
    """The log-probability of the values drawn at one site; its gradient is the score function.

    Attributes:
        log_q: log q of the values, (P, B), neither scaled nor masked; repeated for all data that share the site.
        batch_shape: the batch shape of all discrete latents together, with B elements.
        own_shape: the same with 1 where data share the site.
    """

    log_q: Tensor
    batch_shape: Size
    own_shape: Size

    def of_each(self) -> Tensor:
        """Return the value of each cell of the site, which all data of the cell have in common: (P, cells)."""
        return first_of(self.log_q, self.batch_shape, self.own_shape)


def joint_score(scores: Sequence[Score], shape: Size) -> Tensor:
    """Add the log q of several sites, summed to `shape`: the batch shape with 1 where data share anything."""
    parts = []
    for score in scores:
        own = score.of_each().reshape(-1, *score.own_shape)
        parts.append(own.sum_to_size(len(own), *shape).reshape(len(own), -1))
    return add(parts)


class Draws(NamedTuple):
    """P values of every latent of each datum, drawn from the guide.

    Attributes:
        log_joint: log p(x, z), (P, B), scaled and masked.
        log_q: log q(z | x) of all latents, (P, B), scaled and masked.
        pathwise: the part of log_q that belongs to reparameterized latents, None if there are none.
        scores: of each latent that is not reparameterized.
        batch_shape: of all discrete latents together, with B elements.
        apart: the same with 1 where data share a latent or another statement.
        cells: the same with 1 where data share a latent, so that they have one weight together.
        scales: the scales of all statements, as `common_scale` takes them.
    """

    log_joint: Tensor
    log_q: Tensor
    pathwise: Tensor | None
    scores: tuple[Score, ...]
    batch_shape: Size
    apart: Size
    cells: Size
    scales: tuple[float | Tensor, ...]

    def signal(self, costs: Tensor, score: Score) -> tuple[Tensor, Tensor]:
        """Return the costs that a site's draw affects, and its log q: both (P, M), for M cells of the site.

        Costs (P, B) of data that share the site are added. Costs of other data are left out.
        """
        return summed_over(costs, self.batch_shape, score.own_shape), score.of_each()

    def together(self, values: Tensor) -> Tensor:
        """Return values (P, B) summed over data that share anything: (P, M)."""
        return summed_over(values, self.batch_shape, self.apart)

    def log_weights(self) -> Tensor:
        """Return log w = log p(x, z) - log q(z | x), summed over data that share a latent, not scaled: (P, M)."""
        weighed = summed_over(self.log_joint - self.log_q, self.batch_shape, self.cells)
        return unscaled(weighed, self.scale_of(self.cells))

    def score_function(self) -> Tensor:
        """Return log q of all sites that are not reparameterized, summed as by :meth:`together`: (P, M)."""
        return joint_score(self.scores, self.apart) if self.scores else self.log_joint.new_zeros(1, 1)

    def common_scale(self) -> float | Tensor:
        """Return the scale of data that share anything, as :meth:`scale_of`."""
        return self.scale_of(self.apart)

    def scale_of(self, shape: Size) -> float | Tensor:
        """Return the scale of all statements: one number, or that of each cell of a shape, (M,).

        Raises:
            ValueError: if there are several in a cell.
        """
        return common_scale(self.scales, self.batch_shape, shape)


def lay_out_draws(runs: Runs, roles: Roles = READ_ALL, *, with_guide: bool = True, seen: Look | None = None) -> Layout:
    """Find a pair's latents as `lay_out` does, and whether its programs also accept particles of continuous latents.

    Args:
        runs: the pair with its data bound.
        roles: which latents are read as codes.
        with_guide: whether the guide is read on codes, which is needed before any are drawn.
        seen: what a first look has shown, where there was one.

    Raises:
        ValueError: as :func:`~pyro_gvae.programs.layout.lay_out`.
    """
    layout = lay_out(runs, with_guide=with_guide, roles=roles, seen=seen)
    if layout.obstacle is not None or not layout.has_continuous:
        return layout
    probed = runs.again()
    with torch.no_grad(), without_trace():
        return layout._replace(obstacle=obstacle_of(lambda: draw(probed, layout, layout.few()[0])))


def draw(runs: Runs, layout: Layout, num_particles: int, *, pathwise: bool = True) -> Draws:
    """Draw latents from the guide, and score them by both programs.

    Args:
        runs: the pair with its data bound.
        layout: its latents and plates.
        num_particles: P.
        pathwise: whether continuous latents are reparameterized where possible, or all scored like discrete ones.
    """
    return scored(layout, read_draws(runs, layout, num_particles, pathwise=pathwise))


class Drawn(NamedTuple):
    """P values of every latent, drawn from the guide, with the log-probabilities of both programs."""

    codes: Codes  # (P, B, N, K) of each discrete latent
    q: Reading
    p: Reading
    scored: frozenset[str]  # continuous latents that are not reparameterized
    num_particles: int  # P


def read_draws(runs: Runs, layout: Layout, num_particles: int, *, pathwise: bool = True) -> Drawn:
    """Draw as :func:`draw` does, and return the log-probability of each statement."""
    drawn = sample(runs, layout, num_particles, independent, pathwise=pathwise)
    return Drawn(drawn.codes, drawn.q, read_values(runs, layout, drawn.values), drawn.scored, num_particles)


def scored(layout: Layout, drawn: Drawn) -> Draws:
    """Return the log-densities of drawn values."""
    codes, q, p, without_path, num_particles = drawn
    rows = num_particles, layout.batch_size
    others = {name: factor for name, factor in q.factors.items() if name in without_path}
    shape = layout.batch_shape
    scores = [Score(site.score(codes).expand(rows), shape, site.own_shape) for site in q.sites.values()]
    scores += [Score(factor.unweighed().expand(rows), shape, factor.own_shape) for factor in others.values()]
    has_path = len(q.factors) > len(others)
    return Draws(
        log_joint=p.log_prob(codes).expand(rows),
        log_q=q.log_prob(codes).expand(rows),
        pathwise=q.log_prob(codes, {*codes, *others}).expand(rows) if has_path else None,
        scores=tuple(scores),
        batch_shape=layout.batch_shape,
        apart=apart(layout, q, p),
        cells=apart(layout, q),
        scales=tuple(statement.scales for reading in (q, p) for statement in reading.statements()),
    )


def draw_continuous(runs: Runs, layout: Layout, num_particles: int) -> dict[str, Tensor]:
    """Draw P values of the continuous latents from the guide; the codes drawn with them are dropped.

    Args:
        runs: the pair with its data bound.
        layout: its latents and plates.
        num_particles: P; 1 if the layout has an obstacle, since draws then have no axis of particles.
    """
    drawn = sample(runs, layout, num_particles, independent)
    continuous = {name: value for name, value in drawn.values.items() if name not in drawn.codes}
    return continuous if layout.obstacle is None else {name: value.squeeze(0) for name, value in continuous.items()}
