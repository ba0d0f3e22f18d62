"""Sort the settings of a run for its page: those that differ from the defaults, the others, and the circumstances."""

from collections.abc import Mapping
from dataclasses import MISSING, fields
from importlib.metadata import metadata
from pathlib import Path
from typing import Any, NamedTuple

#: Entries of a config.json that are no settings.
NO_SETTINGS = frozenset(
    {"command", "cells", "commit", "default_hidden", "extended", "machine", "started", "train", "versions"}
)
#: Files that a page in the same folder links to, if they are there.
FILES = (
    *("explorer.html", "gaps.html", "results.csv", "summary.csv", "differences.csv", "gaps.csv", "gradients.csv"),
    *("gradients.jsonl", "advice.csv", "metrics.jsonl", "config.json", "cells", "figures"),
)


class Settings(NamedTuple):
    """The settings of a run, as its page shows them.

    Attributes:
        chosen: settings that differ from their defaults.
        others: all other settings.
        circumstances: when and on what the run was made, and with which versions.
    """

    chosen: dict[str, Any]
    others: dict[str, Any]
    circumstances: dict[str, Any]


def sort_settings(
    given: Mapping[str, Any],
    defaults: Mapping[str, Any],
    written: Mapping[str, Any],
    *,
    seconds: float | None = None,
) -> Settings:
    """Sort the settings of a run.

    Args:
        given: the settings; those that are None or empty are left out.
        defaults: the default of each setting that has one, from :func:`defaults_of`.
        written: the contents of config.json, or what :func:`~pyro_gvae.runs.config.circumstances` returns.
        seconds: seconds of training, of all models together; None if unknown.

    Example:
        >>> sort_settings({"epochs": 5, "seed": 0, "data": None}, {"epochs": 60, "seed": 0}, {"commit": "1a2b"})
        Settings(chosen={'epochs': 5}, others={'seed': 0}, circumstances={'commit': '1a2b'})
    """
    # Before widths were guessed from the data, their default was 128.
    defaults = {**defaults, "hidden": written.get("default_hidden", [128])}
    shown = {
        name: _plain(value) for name, value in given.items() if value not in (None, []) and name not in NO_SETTINGS
    }
    chosen = {name: value for name, value in shown.items() if value != _plain(defaults.get(name, value))}
    chosen.pop("output", None)  # where the page is
    others = {name: value for name, value in shown.items() if name not in chosen}
    parts = (written.get(name) for name in ("machine", "versions"))
    machine, versions = (part if isinstance(part, dict) else {} for part in parts)
    known = {"started": written.get("started"), "training time": None if seconds is None else in_words(seconds)}
    known |= machine | {"commit": written.get("commit")} | versions
    return Settings(chosen, others, {name: value for name, value in known.items() if value is not None})


def defaults_of(kind: type[Any], sizes: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return the defaults of a configuration; a setting without one has None.

    Args:
        kind: its class.
        sizes: default sizes of the model, which replace those of the class.
    """
    return {one.name: None if one.default is MISSING else one.default for one in fields(kind)} | dict(sizes or {})


def _plain(value: Any) -> Any:
    """Return a value as JSON has it, and the length of a list of records in place of the records."""
    if isinstance(value, tuple | list):
        return f"{len(value)} entries" if any(isinstance(item, dict) for item in value) else list(value)
    return str(value) if isinstance(value, Path) else value


def in_words(seconds: float) -> str:
    """Format a duration.

    Example:
        >>> in_words(12.34), in_words(150.0), in_words(7200.0)
        ('12.3 s', '2.5 min', '2 h')
    """
    size, unit = next((size, unit) for size, unit in ((3600, "h"), (60, "min"), (0, "s")) if seconds >= 2 * size)
    return f"{seconds / (size or 1):.3g} {unit}"


def files_beside(folder: Path, page: str = "report.html") -> list[str]:
    """List the files and folders of a run that its page can link to."""
    return [name for name in FILES if (folder / name).exists() and name != page]


def documentation(page: str) -> str:
    """Return the address of a page of the documentation.

    Args:
        page: its name in docs/, such as "howto/compare.md".
    """
    addresses = dict(address.split(", ", 1) for address in metadata("pyro-gvae").get_all("Project-URL") or [])
    return f"{addresses['Repository']}/blob/main/docs/{page}"
