"""Checks that several configurations share."""

from collections.abc import Iterable
from difflib import get_close_matches
from numbers import Integral
from pathlib import Path
from typing import Any

#: The most operations (see `exact.cost`) that one exact sum may take: about a minute on two cores. An evaluation takes
#: several sums; with larger ones it would take longer than the training.
MOST_OPERATIONS = 6e12
#: The most latents, categories or units of a layer: larger models would not fit into any memory.
MOST_UNITS = 1_000_000
#: The most cells of a comparison.
MOST_CELLS = 10_000
#: The subfolder of the data folder with the files of each data set, as torchvision lays them out.
FOLDERS = {
    "mnist": "MNIST/raw",
    "fashion_mnist": "FashionMNIST/raw",
    "kmnist": "KMNIST/raw",
    "omniglot": "omniglot-py",
}


#: Suggest a known name if its similarity to the wrong one, from 0 to 1, is at least this.
LEAST_ALIKE = 0.7


def nearest(name: str, known: Iterable[str]) -> str:
    """Return a sentence that suggests the known name most similar to a wrong one; empty if none is similar.

    Example:
        >>> nearest("mnits", ["digits", "mnist"]), nearest("xyz", ["digits"])
        (" Try 'mnist'.", '')
    """
    by_letters = {_letters(one): one for one in known}
    found = get_close_matches(_letters(name), by_letters, 1, LEAST_ALIKE)
    return f" Try '{by_letters[found[0]]}'." if found else ""


def _letters(name: str) -> str:
    """Normalize a name for comparison: lower case, dashes for underscores, no leading dashes."""
    return name.lower().replace("_", "-").lstrip("-")


def check_files(dataset: str, data_dir: Path) -> None:
    """Refuse a data set whose files are missing.

    Raises:
        FileNotFoundError: if they are.
    """
    folder = data_dir / FOLDERS.get(dataset, "")
    if dataset in FOLDERS and not folder.is_dir():
        raise FileNotFoundError(
            f"Expected the files of '{dataset}' in '{folder}', but found no such folder. "
            "Try --download (download=True) to fetch them, or another --data-dir (data_dir)."
        )


def positive(name: str, value: float | None) -> None:
    """Refuse a setting that is not a positive, finite number; None passes."""
    if value is not None and not 0 < value < float("inf"):
        raise ValueError(f"Expected a positive number as {name}, but found {value}.")


def all_different(name: str, values: tuple[Any, ...]) -> None:
    """Refuse a list of settings that is empty or has duplicates."""
    if not values or len(set(values)) < len(values):
        raise ValueError(f"Expected one or more different {name}, but found {list(values)}.")


def check_particles(num_particles: int, least: int = 1) -> None:
    """Refuse a number of samples per datum that is not whole, or below what an estimator needs."""
    if not isinstance(num_particles, Integral):
        raise ValueError(f"Expected a whole number of particles, but found num_particles={num_particles!r}.")
    if num_particles < least:
        particles = "one particle" if least == 1 else f"{least} particles"
        raise ValueError(f"Expected at least {particles}, but found num_particles={num_particles}.")


def at_most(name: str, value: float, most: float) -> None:
    """Refuse a setting that is above its maximum."""
    if not value <= most:
        raise ValueError(f"Expected {name} of at most {most:,}, but found {value}.")


def at_least(name: str, value: int | None, least: int) -> None:
    """Refuse a setting that is not a whole number, or below its minimum; None passes."""
    if value is not None and not isinstance(value, Integral):
        raise ValueError(f"Expected a whole number as {name}, but found {value!r}.")
    if value is not None and value < least:
        raise ValueError(f"Expected {name} of at least {least}, but found {value}.")
