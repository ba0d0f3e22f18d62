"""The config.json of a run folder."""

import json
import platform
import shlex
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ..config.train import TrainConfig
from ..data.dataset import Dataset


def read_config(run: Path) -> TrainConfig:
    """The configuration of a run folder of `train`.

    Raises:
        ValueError: if there is none.
    """
    try:
        written = json.loads((run / "config.json").read_text(encoding="utf-8"))["train"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"Expected a run folder of pyro-gvae train, but found that '{run}' is not one. Try what its --output named."
        ) from error
    return TrainConfig.from_json(written)


def is_train_run(run: Path) -> bool:
    """Whether a folder is one of `train`; what is no run folder at all is none."""
    try:
        written = json.loads((run / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(written, dict) and "train" in written


def provenance(data: Dataset) -> dict[str, Any]:
    """What else a run folder's config.json says: the command, the versions, the shape of an image."""
    packages = ("pyro-gvae", "torch", "pyro-ppl", "numpy")
    return {
        "image_shape": data.image_shape,
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "versions": {"python": platform.python_version()} | {name: version(name) for name in packages},
    }
