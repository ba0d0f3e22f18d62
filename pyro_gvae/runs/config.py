"""The config.json of a run folder: written by the command that makes it, read by all."""

import json
import platform
import shlex
import sys
from collections.abc import Set
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ..config.train import TrainConfig
from .files import write_json

CONFIG = "config.json"
PACKAGES = ("pyro-gvae", "torch", "pyro-ppl", "numpy")


def write_config(run: Path, settings: dict[str, Any]) -> None:
    """Writes what a command was told, and besides how it was called and by which versions."""
    command = shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])
    versions = {"python": platform.python_version()} | {name: version(name) for name in PACKAGES}
    write_json(run / CONFIG, settings | {"command": command, "versions": versions})


def read_config(run: Path) -> dict[str, Any]:
    """Reads the config.json of a run folder, whichever command made it.

    Raises:
        ValueError: if there is none, or it is damaged; the sentence says what is wrong.
    """
    try:
        written = json.loads((run / CONFIG).read_text(encoding="utf-8"))
        if not isinstance(written, dict):
            raise ValueError(f"{CONFIG} holds no settings")
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(
            f"Expected a run folder, but found that '{run}' is not one: {error}. Try what --output named."
        ) from error
    return written


def read_train_config(run: Path) -> TrainConfig:
    """Reads the configuration of a run folder of `train`, or of a cell of `compare`, which is one.

    Raises:
        ValueError: if it is none of these, or a setting is unknown, of the wrong type, or cannot be.
    """
    settings = read_config(run).get("train")
    if not isinstance(settings, dict):
        raise ValueError(
            f"Expected a run folder of pyro-gvae train, but found that '{run}' is not one. Try what its --output named."
        )
    return TrainConfig.from_json(settings)


def is_train_run(run: Path) -> bool:
    """Whether a run folder is one of `train`.

    Raises:
        ValueError: if it is no run folder at all.
    """
    return "train" in read_config(run)


def earlier_run(output: Path | None, settings: dict[str, Any], *, free: Set[str], known_by: str) -> Path | None:
    """Finds the folder of an earlier call with the same settings, in which a command goes on.

    Args:
        output: the folder that the command was given, if any.
        settings: of the command, as JSON has them.
        free: names of those that may differ between the calls.
        known_by: what only folders of this command have in their config.json.

    Returns:
        That folder, or None where a new one is to begin.

    Raises:
        ValueError: if the folder exists and is none of this command, or was begun with other settings.
    """
    if output is None or not output.exists():
        return None
    written = read_config(output) if (output / CONFIG).exists() else {}
    if known_by not in written:
        raise ValueError(
            f"Expected a new folder, or one that this command has begun, but found that '{output}' exists and is none. "
            "Try another --output."
        )
    different = different_settings(settings, written, free=free)
    if different:
        raise ValueError(
            f"Expected the settings that '{output}' was begun with, but found another {', '.join(different)}. Try "
            "another folder."
        )
    return output


def different_settings(settings: dict[str, Any], before: dict[str, Any], *, free: Set[str]) -> list[str]:
    """Names of the settings that are not what they were; those that are free, or younger, have changed nothing."""
    return [name for name, value in settings.items() if name not in free and before.get(name, value) != value]
