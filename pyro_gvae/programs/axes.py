"""Log-probabilities with named dimensions: one for each plate, and one for each discrete latent."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from pyro.distributions.util import broadcast_shape
from torch import Tensor

from ..handlers.sites import Messages
from ..runtime.compat.enumeration import axes_in_reach


class Axis(NamedTuple):
    """A named dimension; in sorted order, latents stand left of plates, each in the order of the programs."""

    is_plate: bool
    place: int  # the number of a latent, or the dimension of a plate
    name: str


class Term(NamedTuple):
    """The log-probability of a statement, or the result of summing several of them."""

    values: Tensor  # one dimension for each axis
    axes: tuple[Axis, ...]  # sorted; without plates along which the values are the same
    plates: frozenset[Axis]  # the plates that it is in
    scale: float | Tensor = 1.0  # to multiply values by: a number, or a tensor with a dimension for each axis

    def detached(self) -> "Term":
        """Return the term without a gradient."""
        return self._replace(values=self.values.detach())

    def weighed(self) -> "Term":
        """Return the term with its values multiplied by the scale."""
        is_one = not isinstance(self.scale, Tensor) and self.scale == 1
        return self if is_one else self._replace(values=self.values * self.scale, scale=1.0)


def plate_axes(msg: Messages) -> dict[int, Axis]:
    """Return the axes of the plates around a site, by their dimensions."""
    return {frame.dim: Axis(True, frame.dim, frame.name) for frame in msg["cond_indep_stack"] if frame.vectorized}


def term_of(
    name: str,
    values: Tensor,
    msg: Messages,
    axes: Mapping[int, Axis],
    nesting: int,
    variable: Axis | None = None,
) -> Term:
    """Name the dimensions of values. The last one belongs to `variable`, if it is given."""
    scale = msg["scale"]
    if isinstance(scale, Tensor) and scale.numel() == 1:
        scale = scale.reshape(())
    varies = isinstance(scale, Tensor) and scale.dim() > 0
    if varies:
        scale = scale if variable is None else scale.unsqueeze(-1)
        values = values.expand(broadcast_shape(values.shape, scale.shape))
        scale = scale.reshape((1,) * (values.dim() - scale.dim()) + scale.shape)
    plates = plate_axes(msg)
    last = () if variable is None else (variable,)
    names = [*_names(name, values.shape[: values.dim() - len(last)], plates, axes_in_reach(msg), axes, nesting), *last]
    found, own = _packed(values, names)
    return Term(found, own, frozenset(plates.values()), _packed(scale, names)[0] if varies else scale)


def _names(
    name: str,
    shape: Sequence[int],
    plates: Mapping[int, Axis],
    reach: Mapping[int, int],
    axes: Mapping[int, Axis],
    nesting: int,
) -> list[Axis | None]:
    """Return the axis of each dimension of a batch shape, None where its size is 1."""
    found: list[Axis | None] = []
    for dim, size in zip(range(-len(shape), 0), shape, strict=True):
        axis = plates.get(dim) if -dim <= nesting else axes.get(reach.get(dim, -1))
        if axis is None and size > 1:
            raise ValueError(
                f"Expected every batch dimension of '{name}' to belong to a plate or to a latent in reach, but found "
                f"{tuple(shape)}, whose dimension {dim} is neither. Try .to_event(1), or a plate around it."
            )
        found.append(axis if size > 1 else None)
    return found


def _packed(values: Tensor, names: Sequence[Axis | None]) -> tuple[Tensor, tuple[Axis, ...]]:
    """Drop dimensions without an axis, whose size is 1, and sort the others."""
    values = values.reshape([size for size, axis in zip(values.shape, names, strict=True) if axis is not None])
    axes = [axis for axis in names if axis is not None]
    order = sorted(range(len(axes)), key=axes.__getitem__)
    if order == list(range(len(axes))):
        return values, tuple(axes)
    return values.permute(order), tuple(axes[i] for i in order)


def aligned(term: Term, axes: tuple[Axis, ...]) -> Tensor:
    """Reshape a term's values so that they broadcast with values that have these axes."""
    if term.axes == axes[len(axes) - len(term.axes) :]:
        return term.values
    sizes = dict(zip(term.axes, term.values.shape, strict=True))
    return term.values.reshape([sizes.get(axis, 1) for axis in axes])
