"""The grid of estimators to measure, each at its temperatures."""

import inspect
from collections.abc import Callable, Hashable, Sequence
from functools import partial
from typing import Any, NamedTuple

from ..estimators import ESTIMATORS, Estimator, estimator


class Candidate(NamedTuple):
    """An estimator that has not been created yet, since creating it may fail, which is a result to report too.

    Attributes:
        name: its name in the registry.
        temperature: its temperature; None if it has none.
        make: creates the estimator.
        family: equal for candidates that differ only in temperature, whose steps do the same work. If that is unknown,
            each candidate is in a separate family.
    """

    name: str
    temperature: float | None
    make: Callable[[], Estimator]
    family: Hashable


def candidates(
    estimators: Sequence[str | Estimator], *, temperatures: Sequence[float] = (), **options: Any
) -> list[Candidate]:
    """List every estimator at every temperature; an estimator without a temperature is listed once.

    Args:
        estimators: names in the registry, or estimators.
        temperatures: temperatures for each named estimator that has one; if empty, its default.
        **options: options passed to those named estimators that accept them.

    Raises:
        ValueError: if a name is unknown.

    Example:
        >>> [(c.name, c.temperature) for c in candidates(["gumbel-softmax", "exact"], temperatures=(0.5, 1.0))]
        [('gumbel-softmax', 0.5), ('gumbel-softmax', 1.0), ('exact', None)]
    """
    found = []
    for given in estimators:
        if isinstance(given, Estimator):
            temperature = None if given.temperature is None else float(given.temperature)
            found.append(Candidate(given.name, temperature, partial(_identity, given), family=given))
            continue
        if given not in ESTIMATORS:
            estimator(given)  # raises an error that lists the known names
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


def _identity(given: Estimator) -> Estimator:
    return given
