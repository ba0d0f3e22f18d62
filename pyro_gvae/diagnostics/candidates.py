"""The grid of estimators to measure, each at its temperatures."""

import inspect
from collections.abc import Callable, Hashable, Sequence
from functools import partial
from typing import Any, NamedTuple

from ..config.stages import Named
from ..estimators import ESTIMATORS, Estimator, estimator


class Candidate(NamedTuple):
    """An estimator that has not been created yet: creating it may fail, and that is reported too.

    Attributes:
        name: its name in the registry, with the options that were given with it.
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
        estimators: names in the registry, which may have options in brackets, or estimators.
        temperatures: temperatures for each named estimator that has one and is given without; if empty, the default.
        **options: options passed to those named estimators that accept them.

    Raises:
        ValueError: if a name is unknown or cannot be parsed.

    Example:
        >>> [(c.name, c.temperature) for c in candidates(["gumbel-softmax", "exact"], temperatures=(0.5, 1.0))]
        [('gumbel-softmax', 0.5), ('gumbel-softmax', 1.0), ('exact', None)]
    """
    found = []
    for given in estimators:
        if isinstance(given, Estimator):
            found.append(_made(given))
            continue
        named = Named.parse(given)
        if named.name not in ESTIMATORS:
            found.append(_made(estimator(given)))  # for single sites, or an error that lists the known names
            continue
        known = inspect.signature(ESTIMATORS[named.name]).parameters
        kept = {name: value for name, value in options.items() if name in known} | named.options
        make = partial(estimator, named.name, **kept)
        family = _family(named.name, {name: value for name, value in kept.items() if name != "temperature"})
        own = named.options.get("temperature")
        grid = tuple(temperatures) if "temperature" in known and own is None else ()
        found += [Candidate(given, t, partial(make, temperature=t), family) for t in grid]
        if not grid:
            found.append(Candidate(given, own, make, family))
    return found


def _family(name: str, options: dict[str, Any]) -> Hashable:
    found = (name, frozenset(options.items())) if all(isinstance(one, Hashable) for one in options.values()) else None
    return found or object()


def _made(given: Estimator) -> Candidate:
    temperature = None if given.temperature is None else float(given.temperature)
    return Candidate(given.name, temperature, partial(_identity, given), family=given)


def _identity(given: Estimator) -> Estimator:
    return given
