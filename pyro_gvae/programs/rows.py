"""Find which arguments of a program have a row for each datum, so that a batch can be cut into parts."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from ..runtime.memory import lacks_memory
from .batches import Batch, Keys, as_long_as_data, check_has_data, num_data, with_rows
from .latents import first_value
from .modes import without_trace
from .pair import HasPair
from .runs import bind_pair
from .statements import Reader

#: Errors of programs that accept only all of their data at once, for example because of a mask or of a loop over them.
ONLY_ALL = (ValueError, RuntimeError, IndexError)
#: The most data that are compared, since each has to be decoded. Larger lengths are hardly the same by chance.
MOST_COMPARED = 4096
#: Rows of the part that is compared with the whole batch. A single row would broadcast, also where it must not.
FEW = 2
#: A relative or absolute difference of log-probabilities that rounding may cause.
ROUNDING = 1e-3


def in_parts(pair: HasPair, batch: Batch, size: int) -> Iterator[Batch]:
    """Yield a batch in parts of at most `size` data; see :func:`row_arguments`.

    Args:
        pair: model and guide.
        batch: all arguments of both.
        size: the largest number of data in a part.

    Raises:
        ValueError: if there are no data.
    """
    check_has_data(batch)
    keys, total = row_arguments(pair, batch) if size < num_data(batch) else None, num_data(batch)
    for start in range(0, total, size):
        yield with_rows(lambda value, start=start: value[start : start + size], batch, keys)  # type: ignore[misc]


def row_arguments(pair: HasPair, batch: Batch) -> Keys:
    """Return the arguments that have a row for each datum.

    Tensors as long as the first one have, unless their length is the same by chance, as that of B = D standard
    deviations. If there are several, and not very many data, the first rows alone must give a model the
    log-probabilities that they have among all data.

    Args:
        pair: model and guide.
        batch: all arguments of both.
    """
    found = as_long_as_data(batch)
    every = frozenset(found)
    if len(found) < 2 or num_data(batch) > MOST_COMPARED:
        return every
    candidates = [every, *(every - {other} for other in found[1:]), frozenset(found[:1])]
    return next((keys for keys in candidates if _are_rows(pair, batch, keys)), every)


def _are_rows(pair: HasPair, batch: Batch, keys: Keys) -> bool:
    count = FEW if num_data(batch) > FEW else 1
    values: dict[str, Tensor] = {}

    def draw(name: str, fn: Any) -> Tensor:
        """Return the same value for all data."""
        if name not in values:
            values[name] = fn.sample()[(0,) * len(fn.batch_shape)]
        return values[name].expand(fn.batch_shape + fn.event_shape)

    def scores(own: Batch) -> dict[str, Tensor]:
        reader = Reader(first_value, draw)
        reader.run(bind_pair(pair, own).model)
        found = {name: site.log_probs for name, site in reader.discrete.items()}
        others = {name: msg for name, msg in reader.messages.items() if name not in reader.discrete}
        return found | {name: msg["fn"].log_prob(msg["value"]) for name, msg in others.items()}

    with torch.no_grad(), without_trace():
        try:
            part = scores(with_rows(lambda value: value[:count], batch, keys))
        except ONLY_ALL as error:
            if lacks_memory(error):
                raise
            return False
        whole = scores(batch)
    return part.keys() == whole.keys() and all(
        _is_part(part[name], whole[name], count, num_data(batch)) for name in whole
    )


def _is_part(part: Tensor, whole: Tensor, count: int, total: int) -> bool:
    """Return whether some numbers are those of the first rows of the whole."""
    if part.dim() != whole.dim():
        return False
    for dim in range(whole.dim()):
        if whole.shape[dim] == total and part.shape[dim] == count:
            whole = whole.narrow(dim, 0, count)
    return part.shape == whole.shape and torch.allclose(part, whole, rtol=ROUNDING, atol=ROUNDING, equal_nan=True)
