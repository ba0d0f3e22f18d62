"""Measure how long commands take from the shell.

Question: how long does each command take on a tiny run, relative to `python -c "import torch, pyro"`?

Command: `python experiments/speed.py commands` (`--smoke` runs two commands, once each). It writes
`experiments/results/speed_commands.json`.

Cost: about three minutes on two cores.

The run is a model of digits with 2 one-hots of 4 categories, trained for two steps. Each command is a new process; all
commands and the bare imports run in turn. Reported are median wall times and their ratios to the imports.

Found: see `docs/results/speed_commands.md`.
"""

import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from bench import ROOT, machine, results_of, seconds_of

from pyro_gvae.cli.main import main
from pyro_gvae.runs.files import write_json

TINY = ["--num-latents", "2", "--num-categories", "4", "--hidden", "16", "--stages", "exact:2steps"]
IMPORTS = "import torch, pyro"
#: Name -> arguments; RUN stands for the run folder.
COMMANDS = {
    "--help": ["--help"],
    "evaluate": ["evaluate", "RUN"],
    "list": ["list"],
    "doctor": ["doctor"],
    "encode": ["encode", "RUN"],
    "reconstruct": ["reconstruct", "RUN"],
    "sample": ["sample", "RUN"],
    "gaps": ["gaps", "RUN", "--num-particles", "1", "--num-data", "100"],
    "explore": ["explore", "RUN"],
    "report": ["report", "RUN"],
}
#: Name -> upper limit for the ratio to the imports; the limit of `--help` is half a second.
BARS = {"evaluate": 1.5}


def commands(*, smoke: bool = False, results: Path | None = None) -> None:
    """Time commands from the shell on a tiny run, and compare with the imports of torch and Pyro.

    Args:
        smoke: run two commands, once each.
        results: the JSON file to write, by default in experiments/results; in runs/experiments/smoke for a smoke run.
    """
    chosen = dict(list(COMMANDS.items())[:2]) if smoke else COMMANDS
    taken: dict[str, list[float]] = {name: [] for name in (IMPORTS, *chosen)}
    with tempfile.TemporaryDirectory() as folder:
        run = str(Path(folder) / "run")
        if main(["train", *TINY, "--output", run]):
            raise RuntimeError("Expected a tiny run, but found that its training failed.")
        words = {name: [run if word == "RUN" else word for word in own] for name, own in chosen.items()}
        for _ in range(1 if smoke else 7):
            taken[IMPORTS].append(seconds_of(lambda: _python("-c", IMPORTS)))
            for name, own in words.items():
                taken[name].append(seconds_of(lambda own=own: _python("-m", "pyro_gvae", *own)))  # type: ignore[misc]
    seconds = {name: statistics.median(found) for name, found in taken.items()}
    rows = [row(name, seconds) for name in chosen]
    for one in rows:
        print(f"{one['command']:12s} {one['seconds']:6.2f} s {one['over_imports']:6.2f}", flush=True)
    found = {"machine": machine(), "imports_seconds": seconds[IMPORTS], "rows": rows}
    write_json(results or results_of("speed_commands", smoke=smoke), found)


def row(name: str, seconds: dict[str, float]) -> dict[str, Any]:
    """Return the seconds of a command, its ratio to the imports, and its limit."""
    over = seconds[name] / seconds[IMPORTS]
    return {"command": name, "seconds": seconds[name], "over_imports": over, "bar": BARS.get(name)}


def _python(*words: str) -> None:
    paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    subprocess.run([sys.executable, *words], env=environment, capture_output=True, check=True)
