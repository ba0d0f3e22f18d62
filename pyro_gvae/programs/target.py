"""A model and its guide with their data bound, for losses that sample."""

from typing import Any, final

from torch import Tensor

from .draws import Draws, draw
from .factors import Layout, Reading
from .layout import warn_of
from .noise import CodesOf, DrawCodes, anew
from .runs import Runs
from .samples import NOTHING, Change, Given, Sample, changed, read_values, sample
from .site import Codes
from .statements import Draw, given_codes, read_with
from .without_replacement import Distinct, draw_distinct


@final
class Target:
    """A model and a guide with their data bound: draws from the guide, scored by both.

    A pair may have any number of latents. :meth:`draw` gives values of all of them and their log-densities. Losses that
    make codes of their own take the values themselves (:meth:`drawn`), change one latent (:meth:`changed`), and run the
    model (:meth:`read`). All densities are in nats, with the programs' scales and masks, and are differentiable in
    parameters and soft codes.

    Args:
        runs: the pair with its data bound.
        layout: its latents and plates.
    """

    def __init__(self, runs: Runs, layout: Layout) -> None:
        self.runs = runs
        self.layout = layout

    def draw(self, num_particles: int, *, pathwise: bool = True) -> Draws:
        """Draw P values of every latent of each datum from the guide.

        Args:
            num_particles: P.
            pathwise: whether continuous latents are reparameterized where possible, or all scored like discrete ones.
        """
        warn_of(self.layout.obstacle)
        return draw(self.runs, self.layout, num_particles, pathwise=pathwise)

    def draw_distinct(self, num_codes: int) -> Distinct:
        """Draw P different joint codes of each datum from the guide, without replacement.

        Args:
            num_codes: P; all codes are taken if there are fewer.
        """
        warn_of(self.layout.obstacle)
        return draw_distinct(self.runs, self.layout, num_codes)

    def drawn(self, num_particles: int, draw_codes: DrawCodes, given: Given = NOTHING) -> Sample:
        """Draw P values of every latent of each datum from the guide, and keep their noise.

        Args:
            num_particles: P.
            draw_codes: draws the codes of discrete latents.
            given: values of latents that are not drawn.
        """
        warn_of(self.layout.obstacle)
        return sample(self.runs, self.layout, num_particles, draw_codes, given=given)

    def changed(self, base: Sample, change: Change, codes_of: CodesOf, draw_anew: Draw = anew) -> Sample:
        """Give a latent other codes, as ``programs.samples.changed`` does."""
        return changed(self.runs, self.layout, base, change, codes_of, draw_anew)

    def read_codes(self, base: Sample, codes: Codes) -> Reading:
        """Run the model on other codes (R, B, N, K), or soft ones, and the other latents of a sample of R rows."""
        layout = self.layout

        def read_rows(rows: slice) -> Reading:
            place = given_codes(layout, {name: own[rows] for name, own in codes.items()})

            def draw(name: str, _: Any) -> Tensor:
                value = base.values[name][rows]
                return value if layout.obstacle is None else value.squeeze(0)

            return read_with(self.runs.model, layout, place, draw)

        if layout.obstacle is None:
            return read_rows(slice(None))
        num_rows = len(next(iter(codes.values())))
        return Reading.stacked([read_rows(slice(row, row + 1)) for row in range(num_rows)])

    def read(self, values: dict[str, Tensor]) -> Reading:
        """Run the model on values ``(R, *plates, *event_shape)`` of every latent."""
        return read_values(self.runs, self.layout, values)
