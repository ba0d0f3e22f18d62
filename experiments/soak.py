"""Soak test: train, kill, resume, evaluate, compare and fit for a given time, and check for lost results and leaks.

Each round trains a run undisturbed, and trains it again while killing it with SIGKILL at random moments and resuming
it: weights and evaluations must be the same. The round evaluates the model, every third round compares estimators, and
the process of the soak test itself fits models again and again while its memory is watched.

    python experiments/soak.py --minutes 30
"""

import contextlib
import json
import multiprocessing
import os
import random
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import psutil
import torch
import tyro
from bench import results_of
from safetensors.torch import load_file

from pyro_gvae import CategoricalVAE
from pyro_gvae.cli.main import main
from pyro_gvae.config.train import TrainConfig
from pyro_gvae.runs.config import CONFIG
from pyro_gvae.runs.files import write_json
from pyro_gvae.runs.frames import read_json_lines
from pyro_gvae.train.files import CHECKPOINT, WEIGHTS
from pyro_gvae.train.fit import fit

SMALL = ["--num-latents", "2", "--num-categories", "4", "--hidden", "16"]
PLANS = (
    ["--stages", "gumbel-softmax:{n}steps,exact:{n}steps"],
    ["--stages", "reinmax:{n}steps,exact:{n}steps", "--beta", "linear:0,1,{n}", "--free-bits", "0.05"],
    ["--stages", "vimco:{n}steps,exact-evidence:{n}steps", "--optimizer", "RAdam"],
    ["--stages", "reinforce-baseline:{n}steps,rebar:{n}steps", "--temperature", "linear:1,0.5,{n}", "--clip-norm", "5"],
)
#: Megabytes by which a process may grow per fit (0.3 were observed), and the number of fits that warm up caches.
MOST_GROWTH, WARM = 1.0, 20
CLOCKS = ("seconds", "steps_per_second")


class LostError(AssertionError):
    """A result was lost or differs, or memory grew."""


def soak(
    minutes: float = 30.0, smoke: bool = False, seed: int = 0, results: Path | None = None, folder: Path | None = None
) -> None:
    """Run the soak test.

    Args:
        minutes: Approximate duration; the last round is always finished.
        smoke: Run one short round, to check that the soak test itself works.
        seed: Seed of the moments of the kills.
        results: File for the summary, by default experiments/results/soak.json; in runs for a smoke run.
        folder: Folder for the runs, by default a temporary one; each run is removed once it has passed the checks.
    """
    folder = Path(tempfile.mkdtemp(prefix="soak")) if folder is None else folder
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload(
        ["pyro_gvae.train.launch", "pyro_gvae.report.training", "torch.fx.experimental.proxy_tensor"]
    )
    choose, end = random.Random(seed), time.monotonic() + 60 * minutes
    found: dict[str, Any] = {"rounds": 0, "runs": 0, "kills": 0, "resumes": 0, "evaluations": 0, "comparisons": 0}
    found["fits"], memory, begun = 0, [], time.monotonic()
    while not found["rounds"] or (time.monotonic() < end and not smoke):
        number = found["rounds"]
        plan = [word.format(n=20 if smoke else 300) for word in PLANS[number % len(PLANS)]]
        plan += [*SMALL, "--seed", str(number), "--evaluate-every", "10steps", "--checkpoint-every", "2steps"]
        undisturbed, killed = folder / f"undisturbed-{number}", folder / f"killed-{number}"
        _expect(0, _command(processes, "train", *plan, "--output", undisturbed))
        took = _seconds(undisturbed)
        _train_killed(processes, plan, killed, choose, took, found, most=1 if smoke else choose.randint(1, 6))
        _check_same(undisturbed, killed)
        found["runs"] += 2
        _evaluate(processes, killed)
        found["evaluations"] += 1
        if number % 3 == 0:
            _compare(processes, folder / f"compare-{number}", seeds=1 if smoke else 2, epochs=1 if smoke else 3)
            found["comparisons"] += 1
        for _ in range(2 if smoke else 10):
            memory.append(_fit_here(found["fits"]))
            found["fits"] += 1
        for run in (undisturbed, killed, folder / f"compare-{number}"):
            shutil.rmtree(run, ignore_errors=True)
        found["rounds"] += 1
    growth = _growth(memory)
    found |= {"minutes": round((time.monotonic() - begun) / 60, 2), "growth_mb_a_fit": round(growth, 2)}
    found |= {"memory_mb": [round(memory[0]), round(memory[-1])], "lost": 0}
    write_json(results or results_of("soak", smoke=smoke), found)
    print(json.dumps(found))
    if growth > MOST_GROWTH and len(memory) > WARM:
        raise LostError(f"the memory of a long-lived process grew by {growth:.1f} MB with each of {len(memory)} fits")


def _command(processes: Any, *words: Any, kill: Callable[[Callable[[], bool]], None] | None = None) -> int:
    """Run `pyro-gvae WORDS` in a new process and return its exit code, which is -9 if it was killed.

    If `kill` is given, the process is killed when `kill` returns; it is called with a function that says whether the
    process is still alive.
    """
    process = processes.Process(target=_run, args=([str(word) for word in words],))
    process.start()
    if kill is not None:
        kill(process.is_alive)
        process.kill()
    process.join()
    code: int = process.exitcode
    process.close()
    return code


def _run(words: list[str]) -> None:
    torch.set_num_threads(1)
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
        code = main(words)
    raise SystemExit(code)


def _train_killed(
    processes: Any, plan: list[str], run: Path, choose: random.Random, took: float, found: dict[str, Any], *, most: int
) -> None:
    """Train as planned, but kill and resume the run up to `most` times."""
    kills, code = 0, -9

    def at_a_random_moment(is_alive: Callable[[], bool]) -> None:
        """Wait, mostly until after the first checkpoint of the process, so that the run makes progress."""
        checkpoint = run / CHECKPOINT
        before = _modified(checkpoint)
        if choose.random() < 0.2 and kills:
            time.sleep(choose.uniform(0, took))
            return
        while is_alive() and _modified(checkpoint) == before:
            time.sleep(0.001)
        time.sleep(choose.uniform(0, took / most / 4))

    while code == -9:
        if (run / CONFIG).exists():
            words: tuple[Any, ...] = ("resume", run)
            found["resumes"] += 1
        else:  # killed before there was anything to resume
            shutil.rmtree(run, ignore_errors=True)
            words = ("train", *plan, "--output", run)
        code = _command(processes, *words, kill=at_a_random_moment if kills < most else None)
        kills += code == -9
    _expect(0, code)
    found["kills"] += kills


def _seconds(run: Path) -> float:
    """Return the seconds from a run's second evaluation to its last, without the slow start."""
    seconds = read_json_lines(run / "metrics.jsonl")["seconds"]
    return float(seconds.iloc[-1] - seconds[1])


def _modified(path: Path) -> int:
    """Return the modification time in nanoseconds, or 0 if the file does not exist."""
    return path.stat().st_mtime_ns if path.exists() else 0


def _check_same(expected: Path, found: Path) -> None:
    lines = [_lines(run) for run in (expected, found)]
    steps = lines[1]["step"]
    if not (steps.is_unique and steps.is_monotonic_increasing and lines[0].equals(lines[1])):
        raise LostError(f"the evaluations in '{found}' are not those in '{expected}'")
    weights = [load_file(run / WEIGHTS) for run in (expected, found)]
    if weights[0].keys() != weights[1].keys() or any(not torch.equal(weights[0][n], weights[1][n]) for n in weights[0]):
        raise LostError(f"the weights in '{found}' are not those in '{expected}'")
    if list(found.glob(".*.tmp")):
        raise LostError(f"unfinished temporary files are left in '{found}'")


def _lines(run: Path) -> pd.DataFrame:
    return read_json_lines(run / "metrics.jsonl").drop(columns=list(CLOCKS))


def _evaluate(processes: Any, run: Path) -> None:
    _expect(0, _command(processes, "evaluate", run, "--num-data", 360))
    [path] = (run / "evaluation").glob("*.json")
    elbo, last = json.loads(path.read_text())["test"]["elbo"]["value"], _lines(run)["test_elbo"].iloc[-1]
    if abs(elbo - last) > 1e-3:
        raise LostError(f"'{run}' ended with a test ELBO of {last}, but `evaluate` found {elbo}")


def _compare(processes: Any, run: Path, *, seeds: int, epochs: int) -> None:
    words = ("--estimators", "gumbel-softmax", "exact", "--seeds", *range(seeds), "--epochs", epochs)
    _expect(0, _command(processes, "compare", *words, "--evaluations", 1, *SMALL, "--output", run))
    cells = len(pd.read_csv(run / "results.csv"))
    if cells != 2 * seeds or not (run / "report.html").exists():
        raise LostError(f"'{run}' has {cells} of {2 * seeds} cells, or no report")


def _fit_here(seed: int) -> float:
    """Fit a model in this process, and return the resident memory of the process afterwards, in megabytes."""
    torch.manual_seed(seed)
    vae = CategoricalVAE(data_dim=64, num_latents=2, num_categories=4, hidden=(16,))
    x = torch.rand(256, 64).round()
    fit(vae, x, TrainConfig(stages="gumbel-softmax:20steps,exact:20steps", seed=seed), progress=False)
    return psutil.Process().memory_info().rss / 1e6


def _growth(memory: list[float]) -> float:
    """Return the growth from the second quarter of the fits to the last, in MB per fit; the first warms caches."""
    quarter = max(1, len(memory) // 4)
    grown = statistics.median(memory[-quarter:]) - statistics.median(memory[quarter : 2 * quarter])
    return grown / max(1, len(memory) - 2 * quarter)


def _expect(code: int, found: int) -> None:
    if found != code:
        raise LostError(f"a command ended with exit code {found} instead of {code}")


if __name__ == "__main__":
    torch.set_num_threads(1)
    tyro.cli(soak)
