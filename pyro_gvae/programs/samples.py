"""Draw values of all latents from the guide, and draw them again with one latent changed.

A sample keeps its noise. If a discrete latent gets another code, latents that the guide declares before it keep their
values, and later ones are drawn again with the same noise. So latents that do not depend on the changed one stay as
they are, without any analysis of dependence. Given the latents before them, the later ones still have the guide's
distribution, whatever noise they share with the sample.

Particles share one axis, left of the plates. Programs that do not accept it are run for one row after another.
"""

from collections.abc import Callable, Collection, Mapping
from functools import partial
from typing import Any, NamedTuple, Self

import torch
from torch import Size, Tensor

from ..distributions.location_scale import noise_of, value_of
from ..handlers.sites import Discrete
from .factors import Layout, Reading
from .noise import CodesOf, DrawCodes, anew
from .runs import Runs
from .statements import Draw, read_with
from .values import Values, cells_of, check_rows, has_rows, value_of_codes


class Sample(NamedTuple):
    """R values of every latent of each datum, in the order of the guide.

    Attributes:
        codes: codes of each discrete latent, (R, B, N, K).
        values: values of each latent, as programs take them, ``(R, *plates, *event_shape)``.
        noise: noise of the latents that have any, in the shape of codes if discrete, otherwise of values.
        scored: continuous latents that are not reparameterized.
        q: the guide's log-probabilities.
        given: latents whose values were not drawn.
    """

    codes: dict[str, Tensor]
    values: dict[str, Tensor]
    noise: dict[str, Tensor]
    scored: frozenset[str]
    q: Reading
    given: frozenset[str] = frozenset()

    def later(self, name: str) -> list[str]:
        """Return the latents that the guide declares after this one."""
        names = list(self.values)
        return names[names.index(name) + 1 :]

    def part(self, rows: slice) -> Self:
        """Return some rows of the drawn values; `q` still has all rows."""
        codes, values, noise = (
            {name: own[rows] for name, own in mapping.items()} for mapping in (self.codes, self.values, self.noise)
        )
        return self._replace(codes=codes, values=values, noise=noise)

    @property
    def without_path(self) -> set[str]:
        """The latents that are not reparameterized."""
        return {*self.codes, *self.scored}

    def score_function(self, costs: Tensor) -> Tensor:
        """Return the surrogate of the scored continuous latents, for costs (R, B) of this sample: ().

        Rows are independent draws; the baseline of each is the mean cost of the others.
        """
        advantages = above_others(costs.detach())
        scores = [self.q.factors[name].unweighed() for name in self.values if name in self.scored]
        return sum(((advantages * log_q).mean(0).sum() for log_q in scores), costs.new_zeros(()))


def above_others(costs: Tensor) -> Tensor:
    """Subtract from the costs (P, ...) of each draw the mean costs of the other draws, if there are any."""
    return costs if len(costs) == 1 else (costs - costs.mean(0)) * (len(costs) / (len(costs) - 1))


class Given(NamedTuple):
    """Values of some latents, which are not drawn.

    Attributes:
        codes: codes of discrete ones, (R, B, N, K).
        values: values of others, ``(R, *plates, *event_shape)``.
        sources: maps the given latents declared so far to the row from which each row takes its next draw, (R,); None
            if each row draws its own.
    """

    codes: Mapping[str, Tensor]
    values: Mapping[str, Tensor]
    sources: Callable[[Collection[str]], Tensor] | None = None

    def row(self, row: int) -> "Given":
        """Return one row, keeping the axis."""
        codes, values = ({name: own[row : row + 1] for name, own in mapping.items()} for mapping in self[:2])
        return Given(codes, values)


NOTHING = Given({}, {})


def sample(
    runs: Runs,
    layout: Layout,
    num_particles: int,
    draw_codes: DrawCodes,
    *,
    pathwise: bool = True,
    given: Given = NOTHING,
) -> Sample:
    """Draw P values of every latent from the guide.

    Args:
        runs: the pair with its data bound.
        layout: its latents and plates.
        num_particles: P.
        draw_codes: draws the discrete ones.
        pathwise: whether continuous latents are reparameterized where possible, or all scored like discrete ones.
        given: P values of latents that are not drawn.
    """
    if layout.obstacle is not None and num_particles > 1:
        draw_row = partial(sample, runs, layout, 1, draw_codes, pathwise=pathwise)
        return _one_by_one(draw_row, num_particles, given)
    values = Values(layout)
    scored = set()

    def from_sources(drawn: Tensor) -> Tensor:
        if given.sources is None:
            return drawn
        return drawn.index_select(0, given.sources([name for name in values.codes if name in given.codes]))

    def place(name: str, found: Discrete) -> Tensor:
        check_rows(layout, found.batch_shape)
        if name in given.codes:
            return values.keep_code(name, found, cells_of(layout, given.codes[name], found.batch_shape))
        # Without the axis of particles, draw P times from the same distribution.
        sample_shape = Size() if has_rows(layout, found.batch_shape) else Size((num_particles,))
        codes, noise = draw_codes(found.log_probs.detach(), sample_shape)
        noise = noise if noise is None else from_sources(noise)
        return values.keep_code(name, found, from_sources(codes), noise)

    def draw(name: str, fn: Any) -> Tensor:
        if name in given.values:
            return values.keep(name, values.in_a_run(given.values[name]))
        if layout.obstacle is None and not has_rows(layout, fn.batch_shape):
            padding = (1,) * (layout.nesting - len(fn.batch_shape))
            fn = fn.expand((num_particles, *padding, *fn.batch_shape))
        if pathwise and fn.has_rsample:
            value = fn.rsample()
        else:
            scored.add(name)
            value = fn.sample().detach()
        value = from_sources(value)
        return values.keep(name, value, noise_of(fn, value))

    q = read_with(runs.guide, layout, place, draw)
    return _sampled(values, q, frozenset(scored), frozenset(given.codes))


def _one_by_one(draw_row: Callable[..., Sample], num_particles: int, given: Given) -> Sample:
    """Draw one row after another."""
    done: list[Sample] = []
    for row in range(num_particles):
        taken, own = _taken(given, row, done), given.row(row)
        own = Given(
            {**own.codes, **{name: one.codes[name] for name, one in taken.items() if name in one.codes}},
            {**own.values, **{name: one.values[name] for name, one in taken.items() if name not in one.codes}},
        )
        found = draw_row(given=own)
        noise = {name: one.noise[name] for name, one in taken.items() if name in one.noise}
        done.append(found._replace(noise=found.noise | noise, given=frozenset(given.codes)))
    return _stacked(done)


def _taken(given: Given, row: int, done: list[Sample]) -> dict[str, Sample]:
    """Return the earlier rows whose draws this row takes instead of its own, by the names of latents."""
    if given.sources is None or not done:
        return {}
    declared: list[str] = []
    taken = {}
    for name in done[0].values:
        source = int(given.sources(declared)[row])
        if name in given.codes:
            declared.append(name)
        elif source < row:
            taken[name] = done[source]
    return taken


def _sampled(values: Values, q: Reading, scored: frozenset[str], given: frozenset[str]) -> Sample:
    """Return the values of a run as a sample."""
    said = q if values.layout.obstacle is None else Reading.stacked([q])
    return Sample(values.codes, values.values, values.noise, scored, said, given)


class Change(NamedTuple):
    """New codes for one discrete latent.

    Attributes:
        name: the name of the latent.
        codes: its new codes, (R, B, N, K).
        rows: which of the P rows of a sample each code belongs to, (R,); None for all rows in their order.
    """

    name: str
    codes: Tensor
    rows: Tensor | None = None

    def of_base(self, value: Tensor) -> Tensor:
        """Take the rows of a value (P, ...) of the sample that the codes belong to: (R, ...)."""
        return value if self.rows is None else value.index_select(0, self.rows)

    def one_by_one(self) -> "list[Change]":
        """Return a change for each code."""
        rows = torch.arange(len(self.codes), device=self.codes.device) if self.rows is None else self.rows
        each = zip(self.codes.split(1), rows.split(1), strict=True)
        return [Change(self.name, code, row) for code, row in each]


def changed(
    runs: Runs, layout: Layout, base: Sample, change: Change, codes_of: CodesOf, draw_anew: Draw = anew
) -> Sample:
    """Give a discrete latent other codes, and draw later latents of the guide again with the same noise.

    Later latents without an axis of rows keep their values. Continuous ones outside of the location-scale families are
    drawn with new noise.

    Args:
        runs: the pair with its data bound.
        layout: its latents and plates.
        base: the sample.
        change: the latent and its codes.
        codes_of: computes the codes of later latents from their log-probabilities and noise.
        draw_anew: draws continuous latents without noise.
    """
    name = change.name
    # A KL in closed form needs the distributions of these rows, which only a run gives.
    needs_rows = bool(layout.analytic) and change.rows is not None
    if not needs_rows and (not layout.guide_depends or not base.later(name)):
        return _replaced(layout, base, change)
    if layout.obstacle is not None and len(change.codes) > 1:
        return _stacked([changed(runs, layout, base, one, codes_of, draw_anew) for one in change.one_by_one()])
    values, taken = Values(layout), change.of_base
    later = set(base.later(name))

    def depends(other: str, batch_shape: Size) -> bool:
        return other in later and (layout.obstacle is not None or has_rows(layout, batch_shape))

    def place(other: str, found: Discrete) -> Tensor:
        if other == name:
            return values.keep_code(other, found, cells_of(layout, change.codes, found.batch_shape))
        if other in base.given or not depends(other, found.batch_shape):
            return values.keep_code(other, found, cells_of(layout, taken(base.codes[other]), found.batch_shape))
        noise = cells_of(layout, taken(base.noise[other]), found.batch_shape)
        log_probs = found.log_probs
        return values.keep_code(other, found, codes_of(log_probs.reshape(-1, *noise.shape[1:]), noise))

    def draw(other: str, fn: Any) -> Tensor:
        if not depends(other, fn.batch_shape):
            return values.keep(other, values.in_a_run(taken(base.values[other])))
        if other in base.noise:
            return values.keep(other, value_of(fn, values.in_a_run(taken(base.noise[other]))))
        return values.keep(other, draw_anew(other, fn))

    q = read_with(runs.guide, layout, place, draw)
    return _sampled(values, q, base.scored, base.given)


def _replaced(layout: Layout, base: Sample, change: Change) -> Sample:
    """Give a latent other codes, when no other latent has to be drawn again."""
    name, taken = change.name, change.of_base
    value = value_of_codes(layout, base.q.sites[name].latent, base.values[name], change.codes)
    return Sample(
        codes={other: change.codes if other == name else taken(own) for other, own in base.codes.items()},
        values={other: value if other == name else taken(own) for other, own in base.values.items()},
        noise={},
        scored=base.scored,
        q=base.q if change.rows is None else base.q.at(change.rows),
        given=base.given,
    )


def read_values(runs: Runs, layout: Layout, values: dict[str, Tensor]) -> Reading:
    """Run the model on values (R, *plates, *event_shape) of every latent."""
    num_rows = len(next(iter(values.values()))) if values else 1  # without latents, all rows would be the same
    if layout.obstacle is not None and num_rows > 1:
        each = [{name: value[row : row + 1] for name, value in values.items()} for row in range(num_rows)]
        return Reading.stacked([read_values(runs, layout, one) for one in each])
    in_a_run = Values(layout).in_a_run
    p = read_with(runs.model, layout, lambda name, _: in_a_run(values[name]), lambda name, _: in_a_run(values[name]))
    return p if layout.obstacle is None else Reading.stacked([p])


def _stacked(samples: list[Sample]) -> Sample:
    """Concatenate samples of one row each."""
    codes, values, noise = (
        {name: torch.cat([mapping[name] for mapping in mappings]) for name in mappings[0]}
        for mappings in zip(*((one.codes, one.values, one.noise) for one in samples), strict=True)
    )
    q = Reading.stacked([one.q for one in samples])
    return Sample(codes, values, noise, samples[0].scored, q, samples[0].given)
