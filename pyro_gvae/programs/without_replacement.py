"""Draw different joint codes of all discrete latents from a guide, without replacement.

A joint code has all digits that may depend on each other: those of a datum, or of all data that share a latent. Codes
are drawn site by site in the order of the guide, which is run again, on the prefixes kept so far, for each site that
depends on earlier ones. Continuous latents that depend on no code are drawn once and shared by all codes. Others belong
to a prefix.
"""

from functools import partial
from typing import Any, NamedTuple, final

import torch
from torch import Size, Tensor
from torch.nn.functional import one_hot

from ..distributions.without_replacement import extend, is_possible, no_digits
from ..handlers.sites import Discrete, Run
from .cells import summed_over
from .draws import Drawn, Draws, Score, joint_score, scored
from .factors import Layout, Reading
from .kept import OutdatedError
from .runs import Runs
from .site import Site
from .statements import given_codes, read_with


class Distinct(NamedTuple):
    """P different joint codes, or all if there are fewer, with their log-densities under model and guide.

    A cell is a datum, or the data that share a discrete latent: each cell has its own joint codes. Costs, paths and
    scores of impossible codes are 0.

    Attributes:
        log_probs: log q of each joint code, (P, cells), neither scaled nor masked, without a gradient.
        threshold: the largest perturbed log-probability of the codes that are left out, (cells,); None if none are.
        costs: log p(x, z) - log q(z | x), (P, B), scaled and masked, without a gradient.
        paths: the same with a gradient, and without log q of latents that are not reparameterized, (P, B).
        score: log q of each joint code, whose gradient is the score function, (P, cells).
        others: the scores of continuous latents that are not reparameterized.
        batch_shape: of all discrete latents together, with B elements.
        shape: the same with 1 where data share a discrete latent: the shape of the cells.
    """

    log_probs: Tensor
    threshold: Tensor | None
    costs: Tensor
    paths: Tensor
    score: Tensor
    others: tuple[Score, ...]
    batch_shape: Size
    shape: Size

    def together(self, values: Tensor) -> Tensor:
        """Sum values (P, B) over the data of a cell: (P, cells)."""
        return summed_over(values, self.batch_shape, self.shape)

    def signal(self, costs: Tensor, score: Score) -> Tensor:
        """Sum costs (P, B) over the data that share a site: (P, M)."""
        return summed_over(costs, self.batch_shape, score.own_shape)

    def spread(self, values: Tensor) -> Tensor:
        """Give each datum the values (P, cells) of its cell: (P, B)."""
        return _spread(values, self.batch_shape, self.shape)


def draw_distinct(runs: Runs, layout: Layout, num_codes: int) -> Distinct:
    """Draw P different joint codes from the guide, and score them by both programs.

    Args:
        runs: the pair with its data bound.
        layout: its latents and plates.
        num_codes: P.
    """
    beam = _Beam(layout, num_codes)
    q = beam.read(runs.guide)
    if not (layout.guide_depends or layout.has_continuous) and any(site.depends for site in q.sites.values()):
        raise OutdatedError
    while beam.pending:
        # If no log-probability of the guide depends on codes, one run is enough.
        names = beam.pending[:1] if layout.guide_depends else beam.pending
        for name in names:
            beam.extend(q.sites[name])
        if names == beam.pending:
            beam.finish()
        if not layout.guide_depends:
            break
        q = beam.read(runs.guide)
    drawn = Drawn(beam.codes, q, beam.read(runs.model), frozenset(beam.without_path), len(beam.prefixes.log_probs))
    return _scored(layout, beam, scored(layout, drawn))


def _scored(layout: Layout, beam: "_Beam", draws: Draws) -> Distinct:
    log_probs, num_sites = beam.prefixes.log_probs, len(beam.codes)
    can_be = is_possible(log_probs)  # (P, cells)
    keeps = _spread(can_be, layout.batch_shape, beam.shape)  # (P, B)
    paths = draws.log_joint if draws.pathwise is None else draws.log_joint - draws.pathwise
    score = joint_score(draws.scores[:num_sites], beam.shape) if num_sites else torch.zeros_like(log_probs)
    return Distinct(
        log_probs=log_probs,
        threshold=beam.threshold,
        costs=torch.where(keeps, draws.log_joint - draws.log_q, 0.0).detach(),
        paths=torch.where(keeps, paths, 0.0),
        score=torch.where(can_be, score, 0.0),
        others=draws.scores[num_sites:],
        batch_shape=layout.batch_shape,
        shape=beam.shape,
    )


class _Continuous(NamedTuple):
    """The value of a continuous latent.

    Attributes:
        value: (R, *plates, *event_shape), or without rows where all codes share it.
        num_plates: the number of its plate dimensions; None if it has no rows.
    """

    value: Tensor
    num_plates: int | None


@final
class _Beam:
    """The prefixes kept so far, and the values that latents of the guide have for each of them."""

    def __init__(self, layout: Layout, num_codes: int) -> None:
        self.layout = layout
        self.num_codes = num_codes
        shapes = [layout.batch_shape, *(level.shape for level in layout.levels)]
        self.shape = Size(map(min, zip(*shapes, strict=True)))  # of cells
        like = torch.zeros((), dtype=layout.dtype, device=layout.device)
        self.prefixes = no_digits(like, self.shape.numel())
        self.threshold: Tensor | None = None
        self.codes: dict[str, Tensor] = {}  # (R, B, N, K)
        self.drawn: dict[str, _Continuous] = {}
        self.without_path: set[str] = set()  # continuous latents that are not reparameterized
        self.pending: list[str] = []  # sites that had no codes in the last run

    def read(self, program: Run) -> Reading:
        """Run a program on the prefixes, with any code at the sites that have none yet."""
        takes_rows = self.layout.obstacle is None
        readings = []
        for row in [None] if takes_rows else range(len(self.prefixes.log_probs)):
            self.pending = []
            readings.append(read_with(program, self.layout, partial(self._place, row), partial(self._draw, row)))
        return readings[0] if takes_rows else Reading.stacked(readings)

    def extend(self, site: Site) -> None:
        """Draw the digits of a site, without replacement, in each cell."""
        cells = _Cells(self.layout.batch_shape, site.own_shape, self.shape)
        log_probs = cells.of_data(site.rows().detach()).flatten(2, 3)  # (R or 1, cells, digits, K)
        rows, num_cells = self.prefixes.log_probs.shape
        parents = torch.arange(rows, device=log_probs.device).unsqueeze(-1).expand(-1, num_cells)
        digits = parents.new_empty(rows, num_cells, 0)
        for own in log_probs.unbind(2):
            given = own if len(own) == 1 else _taken(own, parents)
            self.prefixes, kept, chosen = extend(self.prefixes, given, self.num_codes + 1)
            parents = _taken(parents, kept)
            digits = torch.cat([_taken(digits, kept), chosen.unsqueeze(-1)], -1)
        self._follow(parents)
        latent = site.latent
        one_hots = one_hot(digits, latent.num_categories).to(self.layout.dtype)
        self.codes[latent.name] = cells.to_data(one_hots.unflatten(2, (-1, latent.num_latents)))

    def finish(self) -> None:
        """Leave out the last of P + 1 codes, whose perturbed log-probability is the threshold."""
        if len(self.prefixes.log_probs) <= self.num_codes:
            return
        self.threshold = self.prefixes.perturbed[self.num_codes]
        rows = torch.arange(self.num_codes, device=self.threshold.device)
        self.prefixes = self.prefixes.first(self.num_codes)
        self._follow(rows.unsqueeze(-1).expand(-1, self.shape.numel()))

    def _follow(self, parents: Tensor) -> None:
        """Give each new prefix the values of its parent, the prefix (R', cells) that it extends."""
        layout = self.layout
        of_data = _spread(parents, layout.batch_shape, self.shape)
        self.codes = {name: _taken(codes, of_data) for name, codes in self.codes.items()}
        padded = parents.reshape(-1, *(1,) * (layout.nesting - len(self.shape)), *self.shape)
        for name, found in self.drawn.items():
            if found.num_plates is not None:
                own = padded.reshape(len(padded), *padded.shape[1 + layout.nesting - found.num_plates :])
                own = own.expand(-1, *found.value.shape[1 : 1 + found.num_plates])
                self.drawn[name] = found._replace(value=_taken(found.value, own))

    def _place(self, row: int | None, name: str, found: Discrete) -> Tensor:
        codes = self.codes.get(name)
        if codes is None:
            self.pending.append(name)
            shape = len(self.prefixes.log_probs), self.layout.batch_size, found.shape.numel()
            first = torch.zeros(shape, dtype=torch.long, device=self.layout.device)
            codes = one_hot(first, found.num_categories).to(self.layout.dtype)
        codes = codes if row is None else codes[row : row + 1]
        return given_codes(self.layout, {name: codes})(name, found)

    def _draw(self, row: int | None, name: str, fn: Any) -> Tensor:
        kept = self.drawn.get(name)
        if kept is not None and (kept.num_plates is None or row is None):
            return kept.value
        if kept is not None and row is not None and row < len(kept.value):
            return kept.value[row]
        value: Tensor = fn.rsample() if fn.has_rsample else fn.sample().detach()
        if self.pending and self.layout.guide_depends:
            return value  # it may depend on a code that is yet to be drawn
        if not fn.has_rsample:
            self.without_path.add(name)
        num_plates = self._num_plates(fn.batch_shape)
        if row is None or num_plates is None:
            self.drawn[name] = _Continuous(value, num_plates)
        else:
            before = [] if kept is None else [kept.value]
            self.drawn[name] = _Continuous(torch.cat([*before, value.unsqueeze(0)]), num_plates)
        return value

    def _num_plates(self, batch_shape: Size) -> int | None:
        """Return how many dimensions of plates a continuous latent has, or None if all codes share its value."""
        nesting = self.layout.nesting
        if self.layout.obstacle is None:
            return nesting if len(batch_shape) > nesting else None
        # Without an axis of rows, shapes do not show what depends on codes, but values that several cells share do not.
        own = (1,) * (nesting - len(batch_shape)) + tuple(batch_shape)
        cells = (1,) * (nesting - len(self.shape)) + tuple(self.shape)
        is_shared = any(size == 1 < number for size, number in zip(own, cells, strict=True))
        return None if is_shared else len(batch_shape)


class _Cells(NamedTuple):
    """The positions of a site's values in each cell.

    Attributes:
        batch_shape: of all discrete latents together.
        own_shape: the same with 1 where data share the site.
        shape: the same with 1 where data share any discrete latent.
    """

    batch_shape: Size
    own_shape: Size
    shape: Size

    def of_data(self, values: Tensor) -> Tensor:
        """Group the site's values (R, B, ..) by cell: (R, cells, values of the site in a cell, ..)."""
        rows, event = len(values), values.shape[2:]
        values = values.reshape(rows, *self.batch_shape, *event)[(slice(None), *map(slice, self.own_shape))]
        values = values.permute(0, *(1 + dim for dim in self._order), *range(1 + len(self.shape), values.dim()))
        return values.reshape(rows, self.shape.numel(), -1, *event)

    def to_data(self, values: Tensor) -> Tensor:
        """Give each datum its values: the inverse of :meth:`of_data`."""
        rows, event = len(values), values.shape[3:]
        values = values.reshape(rows, *(self.own_shape[dim] for dim in self._order), *event)
        back = sorted(range(len(self.shape)), key=self._order.__getitem__)
        values = values.permute(0, *(1 + dim for dim in back), *range(1 + len(self.shape), values.dim()))
        return values.expand(rows, *self.batch_shape, *event).reshape(rows, self.batch_shape.numel(), *event)

    @property
    def _order(self) -> list[int]:
        """The dimensions of cells, followed by those inside of cells."""
        is_inside = [own != cell for own, cell in zip(self.own_shape, self.shape, strict=True)]
        return sorted(range(len(self.shape)), key=is_inside.__getitem__)


def _taken(values: Tensor, rows: Tensor) -> Tensor:
    """Select rows (R', *batch) of values (R, *batch, ..): (R', *batch, ..)."""
    event = values.shape[rows.dim() :]
    return values.gather(0, rows.reshape(*rows.shape, *(1 for _ in event)).expand(*rows.shape, *event))


def _spread(values: Tensor, batch_shape: Size, shape: Size) -> Tensor:
    """Give each datum the values (R, cells) of its cell: (R, B)."""
    if shape == batch_shape:
        return values
    return values.reshape(-1, *shape).expand(-1, *batch_shape).reshape(len(values), -1)
