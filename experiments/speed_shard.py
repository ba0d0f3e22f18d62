"""Measure how efficiently two processes divide the codes of an exact sum.

Question: how much faster is a training step of `exact` and `exact-evidence` when two processes divide its codes
(`--shard codes`) than when one process does all the work, with one thread per process?

Command: `OMP_NUM_THREADS=1 python experiments/speed.py shard` (`--smoke` for tiny sizes). It writes
`experiments/results/speed_shard.json`.

Cost: about three minutes on two idle cores.

A step is loss, gradients, their sum over the processes, and optimizer: MLP 784-512-256-NK and back, B = 100, fused Adam
with learning rate 0, so that the same codes are decoded in each step. Efficiency is the time of one process divided by
twice the time of two; blocks of both are interleaved, and medians are reported. A check ensures that both give the same
loss to 1e-5. "Talk" is the sum of the gradients alone.

Found: see `docs/howto/many_devices.md`.
"""

import json
import statistics
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import torch
from bench import FULL_SIZE, SMOKE_SIZE, Size, machine, results_of, seconds_of
from torch import Tensor, distributed, multiprocessing, nn

from pyro_gvae.estimators import estimator
from pyro_gvae.runs.files import write_json
from pyro_gvae.runtime.distributed import ALONE, Share, share, sum_gradients
from pyro_gvae.runtime.memory import keep_freed_memory
from pyro_gvae.train.step import make_step

PROCESSES = 2


class Protocol(NamedTuple):
    """Sizes and numbers of repetitions."""

    size: Size
    codes: list[tuple[int, int, int]]  # K, N, steps in a block
    blocks: int


FULL = Protocol(FULL_SIZE, [(10, 3, 20), (8, 4, 10), (8, 5, 2)], blocks=5)
SMOKE = Protocol(SMOKE_SIZE, [(3, 2, 2)], blocks=2)


def shard(smoke: bool = False, results: Path | None = None) -> None:
    """Compare two processes that divide the codes with one process, each with one thread.

    Args:
        smoke: run everything on tiny sizes.
        results: the JSON file to write, by default in experiments/results; in runs/experiments/smoke for a smoke run.
    """
    with tempfile.TemporaryDirectory() as folder:
        multiprocessing.start_processes(
            _work, (SMOKE if smoke else FULL, folder), nprocs=PROCESSES, start_method="fork"
        )
        rows = json.loads((Path(folder) / "rows.json").read_text())
    found = {"machine": machine() | {"threads": 1}, "processes": PROCESSES, "rows": rows}
    write_json(results or results_of("speed_shard", smoke=smoke), found)


def _work(rank: int, protocol: Protocol, folder: str) -> None:
    torch.set_num_threads(1)
    keep_freed_memory()
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=PROCESSES)
    rows = []
    for name in ("exact", "exact-evidence"):
        for num_categories, num_latents, steps in protocol.codes:
            rows.append(measure(protocol, name, num_categories, num_latents, steps))
            if rank == 0:
                print(json.dumps(rows[-1]), flush=True)
    if rank == 0:
        (Path(folder) / "rows.json").write_text(json.dumps(rows))
    distributed.destroy_process_group()


def measure(protocol: Protocol, name: str, num_categories: int, num_latents: int, steps: int) -> dict[str, Any]:
    """Measure a step of one process, while the others wait, and of all together: median times."""
    x = protocol.size.x()
    one = _step(protocol.size.vae(num_latents, num_categories), name, ALONE)
    vae = protocol.size.vae(num_latents, num_categories)
    together = _step(vae, name, share())
    losses = (one(x).item() if share().rank == 0 else 0.0), together(x).item()
    if share().rank == 0 and abs(losses[1] / losses[0] - 1) > 1e-5:
        raise RuntimeError(f"Expected the same loss to 1e-5, but found {losses[0]} of one and {losses[1]} of all.")
    taken: dict[str, list[float]] = {"one": [], "together": [], "talk": []}
    for _ in range(protocol.blocks):
        for _ in range(steps):
            distributed.barrier()
            if share().rank == 0:
                taken["one"].append(seconds_of(lambda: one(x)))
        for _ in range(steps):
            distributed.barrier()
            taken["together"].append(seconds_of(lambda: together(x)))
        for _ in range(steps):
            distributed.barrier()
            taken["talk"].append(seconds_of(lambda: _talk(vae)))
    seconds = {job: statistics.median(found) if found else 0.0 for job, found in taken.items()}
    return {
        "estimator": name,
        "num_categories": num_categories,
        "num_latents": num_latents,
        "num_codes": num_categories**num_latents,
        "one_ms": 1e3 * seconds["one"],
        "together_ms": 1e3 * seconds["together"],
        "talk_ms": 1e3 * seconds["talk"],
        "speedup": seconds["one"] / seconds["together"],
        "efficiency": seconds["one"] / seconds["together"] / PROCESSES,
        "message_bytes": 4 * sum(parameter.numel() for parameter in vae.parameters()),
        "loss_difference": abs(losses[1] / losses[0] - 1) if share().rank == 0 else None,
    }


def _step(vae: nn.Module, name: str, part: Share) -> Any:
    chosen = estimator(name, share=part)
    return make_step(vae, chosen, lr=0.0, shard=None if part == ALONE else "codes")  # type: ignore[arg-type]


def _talk(vae: nn.Module) -> Tensor:
    return sum_gradients(torch.zeros(()), 1, list(vae.parameters()), [], []).loss
