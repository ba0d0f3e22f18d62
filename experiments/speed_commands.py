"""Measure how long commands take from the shell.

Questions: how long does each command take on a tiny run, relative to `python -c "import torch, pyro"`? And how long do
the sums of `evaluate`, `gaps` and `encode` take, relative to the matrix products that they need?

Command: `python experiments/speed.py commands` (`--smoke` runs two commands, once each). It writes
`experiments/results/speed_commands.json`.

Cost: about five minutes on two cores.

The run is a model of digits with 2 one-hots of 4 categories, trained for two steps. Each command is a new process; all
commands and the bare imports run in turn. Reported are median wall times and their ratios to the imports.

The sums are over the 8x4 codes of MNIST's test set, after 100 exact steps. The products are those of the encoder on all
data, of the decoder on all codes, and of the two results, each run once with random factors of the same shapes. Calls
and products alternate. Reported are medians of processor seconds, which change little on a busy core.

Found: see `docs/results/speed_commands.md`.
"""

import itertools
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from bench import FULL_SIZE, MNIST_FOLDER, ROOT, SMOKE_SIZE, machine, results_of, seconds_of
from torch import Tensor

from pyro_gvae import CategoricalVAE, estimator, exact, load, make_step
from pyro_gvae.cli.main import main
from pyro_gvae.evaluate.generate import encode
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
#: Upper limit for the ratio of the time of a sum to that of its products.
BAR_OF_SUMS = 1.3


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
    found = {"machine": machine(), "imports_seconds": seconds[IMPORTS], "rows": rows, "sums": sums(smoke=smoke)}
    write_json(results or results_of("speed_commands", smoke=smoke), found)


def row(name: str, seconds: dict[str, float]) -> dict[str, Any]:
    """Return the seconds of a command, its ratio to the imports, and its limit."""
    over = seconds[name] / seconds[IMPORTS]
    return {"command": name, "seconds": seconds[name], "over_imports": over, "bar": BARS.get(name)}


def sums(*, smoke: bool) -> list[dict[str, Any]]:
    """Processor seconds of the sums of commands, over those of the products that they need."""
    vae, x = trained(smoke=smoke)
    products = products_of(vae, len(x))
    every, once = tuple(products), ("encoder",)
    calls: dict[str, tuple[tuple[str, ...], Callable[[], Any]]] = {
        "evaluate": (every, lambda: exact.bounds(vae, x)),
        "encode": (once, lambda: encode(vae, x)),
        "encode --kind exact": (every[1:], lambda: encode(vae, x, "exact")),
        "gaps": (every, lambda: exact.mean_field(vae, x)),
    }
    jobs = products | {name: call for name, (_, call) in calls.items()}
    taken: dict[str, list[float]] = {name: [] for name in jobs}
    with torch.no_grad():
        for number in range(2 if smoke else 8):
            for name, job in jobs.items():
                start = time.process_time()
                job()
                if number:  # the first calls allocate
                    taken[name].append(time.process_time() - start)
    seconds = {name: statistics.median(found) for name, found in taken.items()}
    rows = []
    for name, (needed, _) in calls.items():
        of_products = sum(seconds[one] for one in needed)
        ratio = seconds[name] / of_products if of_products else None  # a clock may not see a tiny product
        rows.append({"command": name, "seconds": seconds[name], "over_products": ratio, "bar": BAR_OF_SUMS})
        print(f"{name:20s} {seconds[name]:6.2f} s {ratio or 0:6.2f}", flush=True)
    return rows


def trained(*, smoke: bool) -> tuple[CategoricalVAE, Tensor]:
    """Return a program after some exact steps, and test data."""
    on_mnist = MNIST_FOLDER.is_dir() and not smoke
    data = (
        load("mnist", data_dir=MNIST_FOLDER, binarize="threshold") if on_mnist else load("digits", binarize="threshold")
    )
    size = (SMOKE_SIZE if smoke else FULL_SIZE)._replace(data_dim=data.train.shape[1])
    vae = size.vae(*((2, 3) if smoke else (4, 8)))
    step = make_step(vae, estimator("exact"), lr=1e-3)
    for _ in range(2 if smoke else 100):
        step(data.train[torch.randint(len(data.train), (size.batch_size,))])
    return vae, data.test


def products_of(vae: CategoricalVAE, num_data: int) -> dict[str, Callable[[], Any]]:
    """Return the products of the encoder on all data, of the decoder on all codes, and of both with each other."""

    def of_layers(network: Any, num_rows: int) -> Callable[[], Any]:
        weights = [layer.weight.detach() for layer in network.modules() if isinstance(layer, torch.nn.Linear)]
        blocks = [torch.randn(len(rows), weights[0].shape[1]) for rows in torch.arange(num_rows).split(1000)]
        return lambda: [
            list(itertools.accumulate([block, *weights], lambda rows, own: rows @ own.T)) for block in blocks
        ]

    num_codes = vae.num_categories**vae.num_latents
    codes, data = torch.randn(min(num_codes, 512), vae.data_dim), torch.randn(vae.data_dim, num_data)
    return {
        "encoder": of_layers(vae.encoder, num_data),
        "decoder": of_layers(vae.decoder, num_codes),
        "table": lambda: [codes @ data for _ in range(-(-num_codes // 512))],
    }


def _python(*words: str) -> None:
    paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    subprocess.run([sys.executable, *words], env=environment, capture_output=True, check=True)
