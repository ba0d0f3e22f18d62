"""Find what statements have in common: the data that share them, and their scale."""

from collections.abc import Sequence

from torch import Size, Tensor

from .factors import Layout, Reading


def apart(layout: Layout, *readings: Reading) -> Size:
    """Return the batch shape of all discrete latents, with 1 where data share a statement of these readings."""
    shapes = [statement.own_shape for reading in readings for statement in reading.statements()]
    return Size(map(min, zip(layout.batch_shape, *shapes, strict=True)))


def common_scale(scales: Sequence[float | Tensor]) -> float | Tensor:
    """Return the one scale of all statements, which stands outside of the logarithm of a sum over codes.

    Raises:
        ValueError: if there are several.
    """
    one_each = all(not isinstance(scale, Tensor) or scale.numel() == 1 for scale in scales)
    if not one_each or len({float(scale) for scale in scales}) > 1:
        raise ValueError(
            "Expected all sites of the model to share one scale, and those of the guide, if it is read, to have it, "
            "too, but found several: log p(x) is not defined if likelihood and prior, or the data, are scaled "
            "differently. Try the ELBO, or one poutine.scale around model and guide."
        )
    return scales[0]
