"""What the benchmarks share: the machine, what is trained on, where numbers go, how seconds and bytes are read."""

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
#: The folder that torchvision calls root.
MNIST_FOLDER = ROOT.parent / "shared" / "mnist"
SMOKE_FOLDER = ROOT / "runs" / "experiments" / "smoke"


class Size(NamedTuple):
    """What is trained on."""

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
    """The file of a benchmark's numbers; those of a smoke run never lie among the results."""
    return (SMOKE_FOLDER if smoke else ROOT / "experiments" / "results") / f"{name}.json"


def figures_folder(*, smoke: bool) -> Path:
    """The folder of its figures, likewise."""
    return SMOKE_FOLDER if smoke else ROOT / "docs" / "figures"


def machine() -> dict[str, Any]:
    """On what the figures were found."""
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
    """How long a call takes."""
    start = time.perf_counter()
    job()
    return time.perf_counter() - start


def peak_bytes() -> int:
    """Of resident memory; Linux's own figure, because that of getrusage starts at the peak of the parent."""
    found = [int(line.split()[1]) for line in _lines("/proc/self/status") if line.startswith("VmHWM")]
    return 1024 * (found[0] if found else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)


def in_a_process(script: str, **arguments: Any) -> dict[str, Any]:
    """What a script prints as its last line, JSON, when it is called with arguments as JSON, or why it died."""
    # Children see the package and the scripts, installed or not.
    paths = [str(ROOT), str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
    done = subprocess.run(
        [sys.executable, script, json.dumps(arguments)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:  # out of memory, in one of the ways that a process is
        reason = done.stderr.strip().rpartition("\n")[2] or f"signal {-done.returncode}"
        return {"died": True, "reason": reason}
    return {"died": False, **json.loads(done.stdout.splitlines()[-1])}


def _lines(path: str) -> list[str]:
    return Path(path).read_text().splitlines() if Path(path).exists() else []
