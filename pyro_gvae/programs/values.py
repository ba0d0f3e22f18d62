"""The values that a run of the guide gives its latents, with an axis of rows left of the plates."""

from typing import final

from torch import Size, Tensor

from ..handlers.sites import Discrete, Kind
from .factors import Layout
from .kept import OutdatedError
from .latents import Latent, first_category, latent_of


@final
class Values:
    """The values that a run of the guide gives its latents; a single row if programs do not accept an axis of rows."""

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self.codes: dict[str, Tensor] = {}
        self.values: dict[str, Tensor] = {}
        self.noise: dict[str, Tensor] = {}

    def in_a_run(self, value: Tensor) -> Tensor:
        """Return a value (R, ...) in the form that a run takes."""
        return value if self.layout.obstacle is None else value.squeeze(0)

    def keep(self, name: str, value: Tensor, noise: Tensor | None = None) -> Tensor:
        """Keep the value of a continuous latent in a run, and return it."""
        self.values[name] = value if self.layout.obstacle is None else value.unsqueeze(0)
        if noise is not None:
            self.noise[name] = noise if self.layout.obstacle is None else noise.unsqueeze(0)
        return value

    def keep_code(self, name: str, found: Discrete, codes: Tensor, noise: Tensor | None = None) -> Tensor:
        """Keep the codes (R, *plates, N, K) of a discrete latent, and return its value for the run."""
        plates = _plates(self.layout, found.batch_shape)
        codes = codes.reshape(-1, *plates, *codes.shape[-2:])
        self.codes[name] = spread(self.layout, codes)
        if noise is not None:
            self.noise[name] = spread(self.layout, noise.reshape(codes.shape))
        if self.layout.obstacle is not None:
            codes = codes.reshape(*found.batch_shape, *codes.shape[-2:])
        return self.keep(name, latent_of(name, found).value(codes))


def value_of_codes(layout: Layout, latent: Latent, like: Tensor, codes: Tensor) -> Tensor:
    """Convert codes (R, B, N, K) to values of a latent, in the form of the value `like` (.., *plates, *event_shape)."""
    plates = like.shape[1 : like.dim() - len(latent.shape) - (latent.kind is Kind.ONE_HOT)]
    cells = cells_of(layout, codes, plates)
    return latent.value(cells.reshape(len(codes), *plates, *codes.shape[-2:]))


def has_rows(layout: Layout, batch_shape: Size) -> bool:
    """Return whether a batch shape has the axis of rows."""
    return len(batch_shape) > layout.nesting


def check_rows(layout: Layout, batch_shape: Size) -> None:
    """Check that a latent has no axis of rows in a guide whose latents were found not to depend on each other.

    Raises:
        OutdatedError: if it has.
    """
    # If a latent is continuous, codes may depend on it, but not on each other.
    if has_rows(layout, batch_shape) and not (layout.guide_depends or layout.has_continuous):
        raise OutdatedError


def _plates(layout: Layout, batch_shape: Size) -> tuple[int, ...]:
    """Return the batch dimensions of a site without its axis of rows, as many as plates take."""
    own = batch_shape[len(batch_shape) - layout.nesting :] if has_rows(layout, batch_shape) else batch_shape
    return (1,) * (layout.nesting - len(own)) + tuple(own)


def spread(layout: Layout, codes: Tensor) -> Tensor:
    """Give each datum the codes of its cell: (R, *plates, N, K) -> (R, B, N, K)."""
    rows, event = len(codes), codes.shape[-2:]
    placed = layout.cells.placed(codes, first_category(codes), 2)
    return placed.expand(rows, *layout.padded_shape, *event).reshape(rows, layout.batch_size, *event)


def cells_of(layout: Layout, codes: Tensor, batch_shape: Size) -> Tensor:
    """Take the codes of a site's cells: (R, B, N, K) -> (R, *plates, N, K)."""
    rows = codes.reshape(len(codes), *layout.padded_shape, *codes.shape[-2:])
    return layout.cells.taken(rows, layout.cells.sizes(batch_shape), 2)
