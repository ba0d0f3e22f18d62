"""Find what statements have in common: the data that share them, and their scale."""

import math
from collections.abc import Sequence

import torch
from torch import Size, Tensor

from .axes import Axis, Term
from .factors import Layout, Reading


def apart(layout: Layout, *readings: Reading) -> Size:
    """Return the batch shape of all discrete latents, with 1 where data share a statement of these readings."""
    shapes = [statement.own_shape for reading in readings for statement in reading.statements()]
    return Size(map(min, zip(layout.batch_shape, *shapes, strict=True)))


def common_scale(scales: Sequence[float | Tensor], batch_shape: Size, shape: Size) -> float | Tensor:
    """Return the scale of all statements of a datum, which stands outside of the logarithm of a sum over codes.

    Args:
        scales: the scale of each statement: one number, or the least and the largest scale in each cell, (2, B), with
            NaN in cells that the statement does not have.
        batch_shape: of all discrete latents.
        shape: the same with 1 where data share a latent or another statement, so that they need the same scale.

    Returns:
        One number, or the scale of each cell of `shape`, (M,), if they are different.

    Raises:
        ValueError: if the statements of a cell have several.
    """
    if all(not isinstance(scale, Tensor) or scale.numel() == 1 for scale in scales):
        if len({float(scale) for scale in scales}) > 1:
            raise _several_scales()
        return scales[0]
    like = next(scale for scale in scales if isinstance(scale, Tensor) and scale.numel() > 1)
    rows = torch.cat([torch.as_tensor(scale).to(like).expand(2, like.shape[1]) for scale in scales])  # (.., B)
    is_absent = rows.isnan()
    inside = [1 + dim for dim, size in enumerate(shape) if size == 1]
    least, most = (
        edge(rows.masked_fill(is_absent, nowhere).reshape(-1, *batch_shape), [0, *inside], True).flatten()
        for edge, nowhere in ((torch.amin, math.inf), (torch.amax, -math.inf))
    )
    return _equal(least, most).masked_fill(least.isinf(), 1.0)


def scale_along(term: Term, axes: Sequence[Axis]) -> float | Tensor:
    """Return the scale of a term: a number, or a tensor with a dimension for each of these axes.

    Raises:
        ValueError: if it differs along another axis.
    """
    if not isinstance(term.scale, Tensor) or term.scale.dim() == 0:
        return term.scale
    others = [dim for dim, axis in enumerate(term.axes) if axis not in axes]
    scale = _equal(term.scale.amin(others, True), term.scale.amax(others, True)) if others else term.scale
    sizes = dict(zip(term.axes, scale.shape, strict=True))
    return scale.reshape([sizes.get(axis, 1) for axis in axes])


def common_scale_along(terms: Sequence[Term], axes: Sequence[Axis]) -> float | Tensor:
    """Return the scale of terms that are added, as :func:`scale_along`.

    Raises:
        ValueError: if there are several at one place.
    """
    scales = [scale_along(term, axes) for term in terms]
    if all(scale is scales[0] for scale in scales):
        return scales[0]
    if all(not isinstance(scale, Tensor) or scale.numel() == 1 for scale in scales):
        return common_scale(scales, Size(), Size())
    device = terms[0].values.device
    together = torch.stack(torch.broadcast_tensors(*(torch.as_tensor(scale, device=device) for scale in scales)))
    return _equal(together.amin(0), together.amax(0))


def _equal(least: Tensor, most: Tensor) -> Tensor:
    """Return the least and the largest of some scales, which are equal up to rounding, as one."""
    if (most - least > 1e-6 * most.abs()).any():
        raise _several_scales()
    return least


def unscaled(values: Tensor, scale: float | Tensor) -> Tensor:
    """Divide values (.., M) by their scale; values of scale 0 are 0."""
    return values / (torch.where(scale == 0, 1.0, scale) if isinstance(scale, Tensor) else scale)


def _several_scales() -> ValueError:
    return ValueError(
        "Expected all sites of the model to share one scale, and those of the guide, if it is read, to have it, too, "
        "but found several: log p(x) is not defined if the statements of one datum, such as likelihood and prior, are "
        "scaled differently, or if data that share a latent are. Try the ELBO, or one poutine.scale around model and "
        "guide, which may have a weight for each datum."
    )
