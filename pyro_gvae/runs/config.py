"""Write and read the config.json of a run folder: the command that creates the folder writes it, all others read it."""

import os
import platform
import shlex
import sys
from collections.abc import Set
from difflib import get_close_matches
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil

from ..config import compare, train
from ..config.compare import CompareConfig
from ..config.train import TrainConfig
from .files import parse_json, read_text, write_json
from .folder import check_own
from .machine import commit, machine, now

CONFIG = "config.json"
PACKAGES = ("pyro-gvae", "torch", "pyro-ppl", "numpy")


def write_config(run: Path, settings: dict[str, Any]) -> None:
    """Write the settings of a command to config.json, with its command line, the time, the machine and the versions."""
    write_json(run / CONFIG, settings | {"command": typed()} | circumstances())


def circumstances() -> dict[str, Any]:
    """Return when and where a command runs: the time, the machine, the package's commit, the packages' versions."""
    versions = {"python": platform.python_version()} | {name: version(name) for name in PACKAGES}
    return {"started": now(), "machine": machine(), "commit": commit(), "versions": versions}


def typed() -> str:
    """Return the command line of this process, quoted so that it can be typed again."""
    name = Path(sys.argv[0]).name
    return shlex.join(["pyro-gvae" if name == "__main__.py" else name, *sys.argv[1:]])  # of python -m pyro_gvae


def commands_of(written: dict[str, Any]) -> str | None:
    """Return the command that began a run, and those by which it went on for longer, a line each; None if unknown."""
    extended = written.get("extended")
    further = extended if isinstance(extended, list) else []
    commands = [written.get("command"), *(one.get("command") for one in further if isinstance(one, dict))]
    return "\n".join(command for command in commands if isinstance(command, str)) or None


def read_config(run: Path) -> dict[str, Any]:
    """Read the config.json of a run folder of any command.

    Raises:
        ValueError: if it is absent or damaged, or the folder contains a link; the message says which.
    """
    try:
        written = parse_json(read_text(run / CONFIG))
        if not isinstance(written, dict):
            raise ValueError(f"{CONFIG} holds no settings")
    except (OSError, ValueError) as error:
        raise ValueError(f"Expected a run folder, but found that '{run}' is not one: {_why(run, error)}") from error
    check_own(run)
    return written


def read_config_of_models(run: Path) -> dict[str, Any]:
    """Read the config.json of a run folder that has trained models, of `train`, `compare` or `fit`.

    Raises:
        ValueError: if it is absent or damaged, or of another command.
    """
    written = read_config(run)
    if not {"cells", "train"} & written.keys():
        raise ValueError(
            f"Expected a run folder of train, compare or fit, but found one of another command in '{run}'. Try its "
            "report.html, or its tables, which are CSV files."
        )
    return written


def _why(run: Path, error: Exception) -> str:
    """Explain why a path is not a run folder, and what to try."""
    tried = "Try the folder that was given to --output."
    if not isinstance(error, OSError):
        return f"{error}. {tried}"
    if not os.path.lexists(run):
        near = sorted(path.parent.name for path in run.parent.glob(f"*/{CONFIG}"))
        found = get_close_matches(run.name, near, 1) or near[-1:]
        return f"it does not exist. Try {run.parent / found[0] if found else 'the folder that was given to --output'}."
    if not run.is_dir():
        return f"it is a file. {tried}"
    if isinstance(error, FileNotFoundError):
        if (run / "weights.safetensors").exists():
            return f"it has weights, but no {CONFIG}: an older release of fit made it. Try fit again, with resume=True."
        return f"it has no {CONFIG}. {tried}"
    return f"{CONFIG} cannot be read: {error.strerror or error}. {tried}"


def read_train_config(run: Path) -> TrainConfig:
    """Read the configuration of a run folder of `train`, or of a cell of `compare`, which has the same form.

    Settings that concern things outside the folder (`config.train.OUTSIDE`) get their defaults, whatever the file
    says, because the folder may come from somebody else.

    Raises:
        ValueError: if the folder is neither, or a setting is unknown, has the wrong type, or has an invalid value.
    """
    settings = read_config(run).get("train")
    if not isinstance(settings, dict):
        raise ValueError(
            f"Expected a run folder of pyro-gvae train, but found that '{run}' is not one. Try the folder that was "
            "given to its --output."
        )
    return TrainConfig.from_json(_inside(settings, train.OUTSIDE))


def read_compare_config(run: Path) -> CompareConfig:
    """Read the configuration of a run folder of `compare`; settings outside the folder get their defaults.

    Raises:
        ValueError: if a setting has the wrong type or an invalid value.
    """
    return CompareConfig.from_json(_inside(read_config(run), compare.OUTSIDE))


def allowed_memory(written: float) -> float:
    """Return the memory limit written in a run folder (in GB), if this machine has that much memory.

    Raises:
        ValueError: if it has less; the folder may come from somebody else or from another machine.
    """
    there = psutil.virtual_memory().total / 1e9
    if written > there:
        raise ValueError(
            f"Expected a max_memory of at most the {there:.1f} GB of this machine, but found {written:g} GB in "
            f"{CONFIG}. Try --max-memory {there / 4:.1f}."
        )
    return written


def _inside(written: dict[str, Any], outside: Set[str]) -> dict[str, Any]:
    return {name: value for name, value in written.items() if name not in outside}


def is_train_run(run: Path) -> bool:
    """Tell whether a run folder is one of `train`.

    Raises:
        ValueError: if it is not a run folder.
    """
    return "train" in read_config(run)


def earlier_run(output: Path | None, settings: dict[str, Any], *, free: Set[str], known_by: str) -> Path | None:
    """Find the folder of an earlier call with the same settings, to continue it.

    Args:
        output: the folder that was given to the command, if any.
        settings: the settings of the command, as JSON values.
        free: names of settings that may differ between the calls.
        known_by: a key that only folders of this command have in their config.json.

    Returns:
        The folder, or None if a new one is needed.

    Raises:
        ValueError: if the folder exists, but is not one of this command, or was started with other settings.
    """
    if output is None or not output.exists():
        return None
    written = read_config(output) if (output / CONFIG).exists() else {}
    if known_by not in written:
        raise ValueError(
            f"Expected a new folder, or one of this command, but found that '{output}' exists and is neither. "
            "Try another --output."
        )
    different = different_settings(settings, written, free=free)
    if different:
        raise ValueError(
            f"Expected the settings that '{output}' was started with, but found other values of "
            f"{', '.join(different)}. Try another folder."
        )
    return output


def different_settings(settings: dict[str, Any], before: dict[str, Any], *, free: Set[str]) -> list[str]:
    """List the settings whose values differ from those before, except for the free ones."""
    return [name for name, value in settings.items() if name not in free and before.get(name, value) != value]
