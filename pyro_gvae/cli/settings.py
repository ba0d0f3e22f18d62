"""Settings from a JSON or TOML file, or from the config.json of a run; no torch."""

import tomllib
from pathlib import Path
from typing import Any

from ..config import compare, train
from ..config.checks import nearest
from ..config.json import read_settings
from ..runs.config import CONFIG
from ..runs.files import parse_json, read_text

#: Settings of the machine, not of the run, which are never read from a run folder.
OUTSIDE = train.OUTSIDE | compare.OUTSIDE


def settings_of(path: Path, kind: type[Any]) -> dict[str, Any]:
    """Read the settings of a configuration from a file.

    Args:
        path: a .toml or .json file of names and values; or a run folder or its config.json, whose settings of the
            machine are left out.
        kind: the class of the configuration.

    Raises:
        ValueError: if the file cannot be read, or a name or a value is wrong.
    """
    path = path / CONFIG if path.is_dir() else path
    try:
        text = read_text(path)
        written = tomllib.loads(text) if path.suffix == ".toml" else parse_json(text)
    except OSError as error:
        why = error.strerror or error
        raise ValueError(f"Expected a file of settings, but found that '{path}' cannot be read: {why}.") from error
    except ValueError as error:
        raise ValueError(
            f"Expected settings as JSON, or as TOML in a file that ends in .toml, but found that '{path}' is neither: "
            f"{error}."
        ) from error
    if not isinstance(written, dict):
        raise ValueError(f"Expected names and values in '{path}', but found {type(written).__name__}.")
    is_of_run = "versions" in written
    own = written.get("train") if is_of_run and kind is train.TrainConfig else written
    if not isinstance(own, dict):
        raise ValueError(f"Expected the settings of train, but found those of another command in '{path}'.")
    named = {name.replace("-", "_"): value for name, value in own.items()}
    known = kind.__dataclass_fields__
    if is_of_run:
        named = {name: value for name, value in named.items() if name in known and name not in OUTSIDE}
    for name in named:
        if name not in known:
            raise ValueError(f"Expected settings of the command in '{path}', but found '{name}'.{nearest(name, known)}")
    return read_settings(kind, named)
