"""Checks that several configurations share."""

from typing import Any

#: The most operations (see `exact.cost`) that one exact sum may take: about a minute on two cores. An evaluation takes
#: several sums; with larger ones it would take longer than the training.
MOST_OPERATIONS = 6e12
#: Of latents, of categories and of a layer's units: what would not fit into any memory is refused in a sentence.
MOST_UNITS = 1_000_000
#: Cells of a comparison.
MOST_CELLS = 10_000


def positive(name: str, value: float) -> None:
    """Refuse a setting that is not a positive, finite number."""
    if not 0 < value < float("inf"):
        raise ValueError(f"Expected a positive {name}, but found {value}.")


def all_different(name: str, values: tuple[Any, ...]) -> None:
    """Refuse a list of settings that is empty or has duplicates."""
    if not values or len(set(values)) < len(values):
        raise ValueError(f"Expected one or more different {name}, but found {list(values)}.")


def at_most(name: str, value: float, most: float) -> None:
    """Refuse a setting above the most that it may be."""
    if not value <= most:
        raise ValueError(f"Expected {name} of at most {most:,}, but found {value}.")


def at_least(name: str, value: int, least: int) -> None:
    """Refuse a setting that is below its minimum."""
    if value < least:
        raise ValueError(f"Expected {name} of at least {least}, but found {value}.")
