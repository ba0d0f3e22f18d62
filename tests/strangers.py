"""Small runs of train and compare, and helpers to change them as a stranger, a crash or a bad disk might."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pyro_gvae.cli.main import COMMANDS, _run, main

SMALL = ["--num-latents", "2", "--num-categories", "3", "--hidden", "8"]


def train_run(folder: Path) -> Path:
    plan = ["--stages", "gumbel-softmax:4steps,exact:2steps", "--learning-rate", "0.01"]
    assert main(["train", *SMALL, *plan, "--output", str(folder)]) == 0
    return folder


def compare_run(folder: Path) -> Path:
    plan = ["--estimators", "exact", "--seeds", "0", "--epochs", "1", "--evaluations", "1", "--batch-size", "700"]
    assert main(["compare", *SMALL, *plan, "--output", str(folder)]) == 0
    return folder


def rewrite(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Change the config.json of a run folder by a function of its contents."""
    path = folder / "config.json"
    path.write_text(json.dumps(change(json.loads(path.read_text()))))


def command(name: str, run: Path, **options: Any) -> str:
    """Run a command and return its output, without parsing a command line, which takes a second."""
    return _run(COMMANDS[name].config(run=run, **options))


def contents(folder: Path) -> dict[Path, bytes]:
    """Return the bytes of all files of a folder."""
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
