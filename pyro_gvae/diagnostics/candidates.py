"""The estimators that are to be measured, each at its temperatures."""

import inspect
from collections.abc import Callable, Hashable, Sequence
from functools import partial
from typing import Any, NamedTuple

from ..estimators import ESTIMATORS, Estimator, estimator


class Candidate(NamedTuple):
    """An estimator that is yet to be made: one that cannot be is an answer, too.

    Attributes:
        name: in the registry.
        temperature: None where it has none.
        make: makes it.
        family: equal for candidates that differ in their temperature alone, whose steps do the same work. Where that is
            not known, the candidate is a family of its own.
    """

    name: str
    temperature: float | None
    make: Callable[[], Estimator]
    family: Hashable


def candidates(
    estimators: Sequence[str | Estimator], *, temperatures: Sequence[float] = (), **options: Any
) -> list[Candidate]:
    """The grid of estimators and temperatures; those without a temperature stand in it once.

    Args:
        estimators: names in the registry, or estimators as they are.
        temperatures: for each named estimator that has one; without any, its default.
        **options: given to the named estimators that know them.

    Raises:
        ValueError: if a name is unknown.

    Example:
        >>> [(c.name, c.temperature) for c in candidates(["gumbel-softmax", "exact"], temperatures=(0.5, 1.0))]
        [('gumbel-softmax', 0.5), ('gumbel-softmax', 1.0), ('exact', None)]
    """
    found = []
    for given in estimators:
        if isinstance(given, Estimator):
            heat = None if given.temperature is None else float(given.temperature)
            found.append(Candidate(given.name, heat, partial(_itself, given), family=given))
            continue
        if given not in ESTIMATORS:
            estimator(given)  # says what there is
        known = inspect.signature(ESTIMATORS[given]).parameters
        kept = {name: value for name, value in options.items() if name in known}
        family = _family(given, kept)
        grid = tuple(temperatures) if "temperature" in known else ()
        found += [Candidate(given, t, partial(estimator, given, temperature=t, **kept), family) for t in grid]
        if not grid:
            found.append(Candidate(given, None, partial(estimator, given, **kept), family))
    return found


def _family(name: str, options: dict[str, Any]) -> Hashable:
    found = (name, frozenset(options.items())) if all(isinstance(one, Hashable) for one in options.values()) else None
    return found or object()


def _itself(given: Estimator) -> Estimator:
    return given
