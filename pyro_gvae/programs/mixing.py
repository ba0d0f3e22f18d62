"""Find statements that read the codes of other data of their plate, as those of neighbours in a graph.

Sums run over the codes of each datum apart, as the plate declares, and would be wrong. No shape shows it.
"""

from typing import Any, NamedTuple

import torch
from pyro.distributions.util import scale_and_mask
from torch import Tensor

from ..handlers.sites import Discrete, Messages, Run
from ..runtime.compat.torch import is_transformed
from ..runtime.memory import lacks_memory
from .latents import first_value, latent_of
from .modes import without_trace
from .statements import Reader

#: Plates with more cells are not checked, since programs would have to decode a code for each.
MOST_CELLS = 1000
#: Plates with up to as many cells are checked cell by cell.
FEW = 4
#: A relative or absolute difference of log-probabilities that rounding may cause.
ROUNDING = 1e-2


class _Plate(NamedTuple):
    name: str
    dim: int
    size: int


def check_apart(program: Run, seen: Reader) -> None:
    """Refuse a statement whose log-probability for one datum changes with the codes of others.

    The program runs with other codes in some cells of each plate of a discrete latent: in each one of a few cells in
    turn, or in about half of many. The latter is a sample: it finds a statement that reads the codes of others for most
    cells, and may miss one that does so for a few.

    Args:
        program: the program with its data bound.
        seen: an earlier run of it, with the first code of all latents.

    Raises:
        ValueError: if there is such a statement.
    """
    if is_transformed():  # torch.func does not allow reading values
        return
    plates = {plate for name in seen.discrete for plate in _plates(seen.messages[name])}
    for plate in sorted(plates):
        if 1 < plate.size <= MOST_CELLS:
            for changed in _some_cells(plate.size):
                _check(program, seen, plate, changed)


def _plates(msg: Messages) -> list[_Plate]:
    frames = [frame for frame in msg["cond_indep_stack"] if frame.vectorized]
    return [_Plate(frame.name, frame.dim, frame.size) for frame in frames]


def _some_cells(size: int) -> list[Tensor]:
    """Return which cells get other codes: each of a few in turn; of more, the first, the last, and others at random.

    In a regular half, all neighbours of a cell may be on its side.
    """
    cells = torch.arange(size)
    if size <= FEW:
        return [cells == one for one in range(size)]
    scattered = cells * 2654435761 // 2**16 % 2 == 1  # Knuth's multiplicative hashing
    return [((cells == 0) | (cells == size - 1) | scattered) & (cells != 1)]


def _check(program: Run, seen: Reader, plate: _Plate, changed: Tensor) -> None:
    found = _with_codes(program, seen, plate, changed)
    if found is None or _different(seen, found, plate, changed) is None:
        return
    # Two runs in the same shapes: the earlier one may have decoded a single code, with other rounding errors, and the
    # program may do something else in each run.
    nothing = torch.zeros_like(changed)
    same, again = (_with_codes(program, seen, plate, nothing) for _ in range(2))
    if same is None or again is None or _different(same, again, plate, nothing) is not None:
        return
    different = _different(same, found, plate, changed)
    if different is not None:
        raise ValueError(
            f"Expected every statement to read the codes of its own datum only, but found '{different}', whose "
            f"log-probability changes with those of others in the plate '{plate.name}'. Try one site for all of them, "
            "with .to_event(1) in place of the plate."
        )


def _with_codes(program: Run, seen: Reader, plate: _Plate, changed: Tensor) -> Reader | None:
    """Run a program with the last code in some cells of a plate, and the first elsewhere; None if no two runs agree."""

    def place(name: str, found: Discrete) -> Tensor:
        first = first_value(name, found)
        if plate not in _plates(seen.messages[name]):
            return first
        codes = found.natural.new_zeros(*found.batch_shape, *found.code_shape)
        codes[..., -1] = 1.0
        last = latent_of(name, found).value(codes)
        return torch.where(_along(changed, plate.dim - len(found.event_shape), last.device), last, first)

    def draw(name: str, fn: Any) -> Tensor:
        value: Tensor = seen.messages[name]["value"]
        return value.expand(fn.batch_shape + fn.event_shape)

    for _ in range(2):  # the first run may draw the minibatch
        reader = Reader(place, draw, seen.on)
        try:
            with without_trace() as is_untouched:
                reader.run(program)
                if is_untouched():  # untrue with dropout or batch normalization
                    return reader
        except (RuntimeError, ValueError, IndexError, KeyError) as error:  # a program that takes one code for all data
            if lacks_memory(error):
                raise
            return None
    return None


def _different(one: Reader, other: Reader, plate: _Plate, changed: Tensor) -> str | None:
    """Return a statement in the plate whose log-probabilities differ where the codes are the same."""
    kept = (~changed).nonzero().squeeze(1)
    for name, msg in other.messages.items():
        if name not in one.messages or plate not in _plates(msg):
            continue
        before, after = torch.broadcast_tensors(_scores(one, name), _scores(other, name))
        dim = plate.dim - (2 if name in other.discrete else 0)
        if -dim <= after.dim() and after.shape[dim] == plate.size:
            before, after = (own.index_select(dim, kept.to(own.device)) for own in (before, after))
        if not torch.allclose(before, after, rtol=ROUNDING, atol=ROUNDING, equal_nan=True):
            return name
    return None


def _along(values: Tensor, dim: int, device: torch.device) -> Tensor:
    """Reshape values so that they lie along a negative dimension."""
    return values.to(device).reshape(-1, *(1,) * (-1 - dim))


def _scores(reader: Reader, name: str) -> Tensor:
    msg = reader.messages[name]
    if name in reader.discrete:
        return reader.discrete[name].log_probs
    found: Tensor = scale_and_mask(msg["fn"].log_prob(msg["value"]), 1.0, msg["mask"])
    return found
