"""Shared code of the benchmarks: sizes, result folders, a description of the machine, clocks and memory readings."""

import json
import os
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pyro
import torch
from torch import Tensor

from pyro_gvae.models.categorical_vae import CategoricalVAE

ROOT = Path(__file__).resolve().parents[1]
#: The MNIST folder (torchvision's `root`).
MNIST_FOLDER = ROOT.parent / "shared" / "mnist"
SMOKE_FOLDER = ROOT / "runs" / "experiments" / "smoke"


class Size(NamedTuple):
    """The size of the networks and of the batch that a step is measured on."""

    data_dim: int = 784
    hidden: tuple[int, ...] = (512, 256)
    batch_size: int = 100

    def vae(self, num_latents: int, num_categories: int) -> CategoricalVAE:
        torch.manual_seed(0)
        return CategoricalVAE(self.data_dim, num_latents, num_categories, self.hidden)

    def x(self) -> Tensor:
        torch.manual_seed(1)
        return torch.rand(self.batch_size, self.data_dim).round()


FULL_SIZE = Size()
SMOKE_SIZE = Size(16, (12, 8), 5)


def results_of(name: str, *, smoke: bool) -> Path:
    """Return the file for a benchmark's numbers; smoke runs have a folder of their own."""
    return (SMOKE_FOLDER if smoke else ROOT / "experiments" / "results") / f"{name}.json"


def figures_folder(*, smoke: bool) -> Path:
    """Return the folder for figures; smoke runs have a folder of their own."""
    return SMOKE_FOLDER if smoke else ROOT / "docs" / "figures"


def machine() -> dict[str, Any]:
    """Describe the machine, the versions and the commit of a measurement."""
    cpu = next(
        (line.split(":")[1].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")),
        platform.processor(),
    )
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False)
    return {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "pyro": pyro.__version__,
        "commit": commit.stdout.strip() or None,
    }


def seconds_of(job: Callable[[], Any]) -> float:
    """Return the seconds that a call takes."""
    start = time.perf_counter()
    job()
    return time.perf_counter() - start


def peak_bytes() -> int:
    """Return the peak resident memory; from /proc, because getrusage starts at the peak of the parent process."""
    found = [int(line.split()[1]) for line in _lines("/proc/self/status") if line.startswith("VmHWM")]
    return 1024 * (found[0] if found else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)


def in_a_process(script: str, **arguments: Any) -> dict[str, Any]:
    """Run a script with arguments as JSON; return its last line of output, parsed as JSON, or why it died."""
    # The child process finds the package and the scripts even if they are not installed.
    paths = [str(ROOT), str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
    done = subprocess.run(
        [sys.executable, script, json.dumps(arguments)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:  # most likely out of memory, by an exception or a signal
        reason = done.stderr.strip().rpartition("\n")[2] or f"signal {-done.returncode}"
        return {"died": True, "reason": reason}
    return {"died": False, **json.loads(done.stdout.splitlines()[-1])}


def _lines(path: str) -> list[str]:
    return Path(path).read_text().splitlines() if Path(path).exists() else []
