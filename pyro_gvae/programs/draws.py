"""Draws from a guide, scored by guide and model: what losses that sample are made of.

Particles share one axis, left of the plates, as codes do in sums. Programs that do not take it are run for one particle
after another.
"""

import functools
from typing import Any, NamedTuple

import torch
from torch import Size, Tensor

from ..distributions.one_hot import FactorizedOneHotCategorical
from ..distributions.parameters import at_least_float32
from ..handlers.sites import Discrete
from .factors import Codes, Layout, Reading, apart, common_scale, first_of, summed_over
from .layout import lay_out, obstacle_of
from .modes import without_trace
from .runs import Runs
from .statements import Draw, Place, flat, latent_of, read_with


class Score(NamedTuple):
    """The log-probability of what was drawn at one site; its gradient is the score function, which weighs a cost."""

    log_q: Tensor  # (P, B), neither scaled nor masked; where data share the site, all of them have it
    own_shape: Size  # the batch shape of all discrete latents, with 1 where data share the site


class Draws(NamedTuple):
    """P values of every latent of each datum, drawn from the guide.

    Attributes:
        log_joint: log p(x, z), (P, B), scaled and masked.
        log_q: log q(z | x) of all latents, (P, B), scaled and masked.
        pathwise: the part of it of latents that are reparameterized, None if there are none.
        scores: of latents that are not.
        batch_shape: of all discrete latents together, of B data.
        apart: the same with 1 where data share a latent or another statement.
        cells: the same with 1 where data share a latent, so that they have one weight together.
        scales: of all statements.
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
        """Return the costs that a site's draw has a part in, and its log q: both (P, M), for M draws of the site.

        Costs (P, B) of data that share the site are added. Those of other data are no part of the signal.
        """
        return (
            summed_over(costs, self.batch_shape, score.own_shape),
            first_of(score.log_q, self.batch_shape, score.own_shape),
        )

    def together(self, values: Tensor) -> Tensor:
        """Return values (P, B) summed over data that share anything: (P, M)."""
        return summed_over(values, self.batch_shape, self.apart)

    def log_weights(self) -> Tensor:
        """Return log w = log p(x, z) - log q(z | x), summed over data that share a latent: (P, M)."""
        return summed_over(self.log_joint - self.log_q, self.batch_shape, self.cells)

    def score_function(self) -> Tensor:
        """Return log q of all sites that are not reparameterized, summed as by :meth:`together`: (P, M)."""
        parts = []
        for score in self.scores:
            own = first_of(score.log_q, self.batch_shape, score.own_shape).reshape(-1, *score.own_shape)
            parts.append(own.sum_to_size(len(own), *self.apart).reshape(len(own), -1))
        return functools.reduce(torch.add, parts)

    def common_scale(self) -> float | Tensor:
        """Return the one scale of all statements.

        Raises:
            ValueError: if there are several.
        """
        return common_scale(self.scales)


def lay_out_draws(runs: Runs) -> Layout:
    """Find a pair's latents as `lay_out` does, and whether it takes particles of continuous latents, too.

    Raises:
        ValueError: as :func:`~pyro_gvae.programs.layout.lay_out`.
    """
    layout = lay_out(runs)
    if layout.obstacle is not None or not layout.has_continuous:
        return layout
    probed = runs.again()
    with torch.no_grad(), without_trace():
        return layout._replace(obstacle=obstacle_of(lambda: _draw(probed, layout, layout.few()[0], pathwise=True)))


def draw(runs: Runs, layout: Layout, num_particles: int, *, pathwise: bool = True) -> Draws:
    """Draw from the guide, and score by both programs.

    Args:
        runs: the pair with its data bound.
        layout: what is known of it.
        num_particles: P.
        pathwise: whether continuous latents are reparameterized where they can be, or scored as discrete ones are.
    """
    if layout.obstacle is None:
        return _draw(runs, layout, num_particles, pathwise)
    parts = [_draw(runs, layout, 1, pathwise) for _ in range(num_particles)]
    first = parts[0]
    return first._replace(
        log_joint=torch.cat([part.log_joint for part in parts]),
        log_q=torch.cat([part.log_q for part in parts]),
        pathwise=None if first.pathwise is None else torch.cat([_given(part.pathwise) for part in parts]),
        scores=tuple(
            score._replace(log_q=torch.cat([part.scores[i].log_q for part in parts]))
            for i, score in enumerate(first.scores)
        ),
    )


class Drawn(NamedTuple):
    """What both programs say of P values of every latent, drawn from the guide."""

    codes: Codes  # (P, B, N, K) of each discrete latent
    q: Reading
    p: Reading
    scored: frozenset[str]  # continuous latents that are not reparameterized


def read_draws(runs: Runs, layout: Layout, num_particles: int, *, pathwise: bool = True) -> list[Drawn]:
    """Draw as :func:`draw` does, and return what each statement says: of all particles at once if that is possible."""
    if layout.obstacle is None:
        return [_read(runs, layout, num_particles, pathwise)]
    return [_read(runs, layout, 1, pathwise) for _ in range(num_particles)]


def draw_continuous(runs: Runs, layout: Layout, num_particles: int) -> dict[str, Tensor]:
    """Draw P values of the continuous latents from the guide; the codes beside them are dropped.

    Args:
        runs: the pair with its data bound.
        layout: what is known of it.
        num_particles: P; 1 where the layout has an obstacle, since a draw has then no axis of particles.
    """
    values: dict[str, Tensor] = {}
    return read_with(
        runs.guide,
        layout,
        _discrete_draw(layout, num_particles, {}, values),
        _continuous_draw(layout, num_particles, values, set(), pathwise=True),
    ).values


def _given(value: Tensor | None) -> Tensor:
    assert value is not None
    return value


def _read(runs: Runs, layout: Layout, num_particles: int, pathwise: bool) -> Drawn:
    codes: dict[str, Tensor] = {}  # (P, B, N, K)
    values: dict[str, Tensor] = {}
    scored: set[str] = set()
    q = read_with(
        runs.guide,
        layout,
        _discrete_draw(layout, num_particles, codes, values),
        _continuous_draw(layout, num_particles, values, scored, pathwise),
    )
    p = read_with(runs.model, layout, lambda name, _: values[name], lambda name, _: values[name])
    return Drawn(codes, q, p, frozenset(scored))


def _draw(runs: Runs, layout: Layout, num_particles: int, pathwise: bool) -> Draws:
    return scored(layout, _read(runs, layout, num_particles, pathwise))


def scored(layout: Layout, drawn: Drawn) -> Draws:
    """Return the log-densities of what was drawn."""
    codes, q, p, without_path = drawn
    joint = [factor.log_prob for factor in p.factors.values()]
    joint += [site.weigh(site.score(codes)) for site in p.sites.values()]
    own = {name: site.score(codes) for name, site in q.sites.items()}
    log_q = [site.weigh(own[name]) for name, site in q.sites.items()]
    log_q += [factor.log_prob for factor in q.factors.values()]
    rows = len(next(iter(codes.values()))), layout.batch_size
    others = {name: factor for name, factor in q.factors.items() if name in without_path}
    paths = [factor.log_prob for name, factor in q.factors.items() if name not in without_path]
    scores = [Score(own[name].expand(rows), site.own_shape) for name, site in q.sites.items()]
    scores += [Score(factor.unweighed().expand(rows), factor.own_shape) for factor in others.values()]
    return Draws(
        log_joint=functools.reduce(torch.add, joint).expand(rows),
        log_q=functools.reduce(torch.add, log_q).expand(rows),
        pathwise=functools.reduce(torch.add, paths).expand(rows) if paths else None,
        scores=tuple(scores),
        batch_shape=layout.batch_shape,
        apart=apart(layout, q, p),
        cells=apart(layout, q),
        scales=tuple(statement.scale for reading in (q, p) for statement in reading.statements()),
    )


def _discrete_draw(layout: Layout, num_particles: int, codes: dict[str, Tensor], values: dict[str, Tensor]) -> Place:
    def place(name: str, found: Discrete) -> Tensor:
        logits = flat(at_least_float32(found.logits), found).detach()  # (*batch, N, K)
        log_probs = torch.log_softmax(logits, -1).clamp_min(torch.finfo(logits.dtype).min)
        batch_shape = found.batch_shape
        has_particles = len(batch_shape) > layout.nesting
        # Without the axis of particles the same distribution is drawn from P times.
        drawn = FactorizedOneHotCategorical(logits=log_probs, validate_args=False)
        sample = drawn.sample() if has_particles else drawn.sample((num_particles,))
        own = batch_shape[len(batch_shape) - layout.nesting :] if has_particles else batch_shape
        plates = (1,) * (layout.nesting - len(own)) + tuple(own)
        sample = sample.reshape(-1, *plates, *sample.shape[-2:])  # (P, *plates, N, K)
        union = (1,) * (layout.nesting - len(layout.batch_shape)) + tuple(layout.batch_shape)
        codes[name] = sample.expand(num_particles, *union, -1, -1).reshape(
            num_particles, layout.batch_size, *sample.shape[-2:]
        )
        if layout.obstacle is not None:
            sample = sample.reshape(*batch_shape, *sample.shape[-2:])
        values[name] = latent_of(name, found).value(sample)
        return values[name]

    return place


def _continuous_draw(
    layout: Layout, num_particles: int, values: dict[str, Tensor], scored: set[str], pathwise: bool
) -> Draw:
    def draw(name: str, fn: Any) -> Tensor:
        if len(fn.batch_shape) <= layout.nesting and layout.obstacle is None:
            padding = (1,) * (layout.nesting - len(fn.batch_shape))
            fn = fn.expand((num_particles, *padding, *fn.batch_shape))
        if pathwise and fn.has_rsample:
            values[name] = fn.rsample()
        else:
            scored.add(name)
            values[name] = fn.sample().detach()
        return values[name]

    return draw
