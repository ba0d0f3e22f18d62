"""Measure how efficiently two processes share a training step.

Question: what is the efficiency of two processes with one thread each on MNIST, connected by gloo as under `torchrun`,
for a relaxed step that divides the data, and for an exact one that divides data or codes?

Command: `OMP_NUM_THREADS=1 python experiments/speed.py processes` (`--smoke` for tiny sizes). It writes
`experiments/results/speed_processes.json`.

Cost: about a minute on two idle cores; needs MNIST in torchvision's layout.

MLP 784-512-256-NK and back, fused Adam: N = 20, K = 10 relaxed, with batches of 100 and of 1,000, and N = 4, K = 8
exact, with batches of 100. Efficiency is the time of one process divided by twice the time of two; steps of both are
interleaved, and medians are reported. "Talk" is the exchange of gradients alone, 4.9 MB relaxed and 4.3 MB exact. The
efficiency of the cores is what remains if two processes compute plain matrix products at the same time, with nothing to
exchange: cores share memory, and sometimes the units that multiply.

Found: see `docs/results/speed_commands.md`.
"""

import json
import statistics
import tempfile
from pathlib import Path
from typing import Any

import torch
from bench import MNIST_FOLDER, machine, results_of, seconds_of
from speed_shard import PROCESSES, _talk
from speed_step import Size
from torch import distributed, multiprocessing

from pyro_gvae import estimator, load, make_step
from pyro_gvae.runs.files import write_json
from pyro_gvae.runtime.distributed import share
from pyro_gvae.runtime.memory import keep_freed_memory

#: Estimator, what is divided, N, K and the batch size of all processes together.
ROWS = [
    ("gumbel-softmax", "data", 20, 10, 100),
    ("gumbel-softmax", "data", 20, 10, 1000),
    ("exact", "data", 4, 8, 100),
    ("exact", "codes", 4, 8, 100),
]


def processes(*, smoke: bool = False, mnist: Path = MNIST_FOLDER, results: Path | None = None) -> None:
    """Compare a step divided between two processes with a step of one, each with one thread.

    Args:
        smoke: run everything on tiny sizes.
        mnist: the MNIST folder (torchvision's `root`).
        results: the JSON file to write, by default in experiments/results; in runs/experiments/smoke for a smoke run.
    """
    with tempfile.TemporaryDirectory() as folder:
        multiprocessing.start_processes(_work, (smoke, mnist, folder), nprocs=PROCESSES, start_method="fork")
        rows = json.loads((Path(folder) / "rows.json").read_text())
    found = {"machine": machine() | {"threads": 1}, "processes": PROCESSES, "rows": rows}
    write_json(results or results_of("speed_processes", smoke=smoke), found)


def _work(rank: int, smoke: bool, mnist: Path, folder: str) -> None:
    torch.set_num_threads(1)
    keep_freed_memory()
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=PROCESSES)
    data = load("digits") if smoke else load("mnist", data_dir=mnist)
    rows = []
    for name, divided, num_latents, num_categories, batch_size in ROWS:
        sizes = (2, 3, (8, 8), 10) if smoke else (num_latents, num_categories, (512, 256), batch_size)
        rows.append(measure(Size(data, *sizes), name, divided, steps=2 if smoke else 60))
        if rank == 0:
            print(json.dumps(rows[-1]), flush=True)
    if rank == 0:
        (Path(folder) / "rows.json").write_text(json.dumps(rows))
    distributed.destroy_process_group()


def measure(size: Size, name: str, divided: Any, steps: int) -> dict[str, Any]:
    """Measure a step of one process, while the others wait, and of all together: median times."""
    batches, vae = size.batches(steps), size.vae()
    one = make_step(size.vae(), estimator(name))
    parts = {"share": share()} if divided == "codes" else {}
    together = make_step(vae, estimator(name, **parts), shard=divided)
    own = [share().rows(x) if divided == "data" else x for x in batches]
    factors = torch.randn(512, 784), torch.randn(784, 512)
    taken: dict[str, list[float]] = {"one": [], "together": [], "talk": [], "product": [], "products": []}
    for step, (x, rows) in enumerate(zip(batches, own, strict=True)):
        if share().rank == 0:
            seconds = seconds_of(lambda x=x: one(x).item())  # type: ignore[misc]
            product = seconds_of(lambda: _products(*factors))
        distributed.barrier()
        products = seconds_of(lambda: _products(*factors))
        distributed.barrier()
        both = seconds_of(lambda rows=rows: together(rows).item())  # type: ignore[misc]
        distributed.barrier()
        talk = seconds_of(lambda: _talk(vae))
        distributed.barrier()
        if share().rank == 0 and step >= min(5, steps - 1):  # the first steps record
            measured = (seconds, both, talk, product, products)
            for job, found in zip(taken.values(), measured, strict=True):
                job.append(found)
    medians = {job: statistics.median(found) if found else 1.0 for job, found in taken.items()}
    return {
        "estimator": name,
        "divided": divided,
        "num_latents": size.num_latents,
        "num_categories": size.num_categories,
        "batch_size": size.batch_size,
        **{f"{job}_ms": 1e3 * found for job, found in medians.items()},
        "efficiency": medians["one"] / medians["together"] / PROCESSES,
        "efficiency_of_cores": medians["product"] / medians["products"],
    }


def _products(left: torch.Tensor, right: torch.Tensor) -> None:
    for _ in range(4):
        left @ right
