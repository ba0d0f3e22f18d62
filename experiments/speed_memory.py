"""Measure the peak memory of a training step.

Question: how much memory does a step need at its peak, relative to the networks alone, relaxed at 20x10 and exact at
8^4 codes, with ours and with stock Pyro?

Command: `python experiments/speed.py memory` (`--smoke` for tiny sizes). It writes
`experiments/results/speed_memory.json`.

Cost: half a minute; nothing is timed, so other work on the machine does not matter.

"The networks alone" hold weights and Adam's two averages; their step, forward and backward with fused Adam and an
arbitrary gradient at the output, adds gradients and activations. Memory is that of tensors at the peak of the third
step.

Found: see `docs/results/speed_commands.md`.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyro
from bench import FULL_SIZE, SMOKE_SIZE, Size, machine, results_of
from pyro.infer import Trace_ELBO
from speed_exact import stock_svi
from speed_step import Size as StepSize
from speed_step import networks, stock
from torch import Tensor

from pyro_gvae import estimator, make_step
from pyro_gvae.data.dataset import Dataset
from pyro_gvae.runs.files import write_json
from pyro_gvae.runtime.memory import peak_memory

Step = Callable[[Tensor], Any]


def memory(*, smoke: bool = False, results: Path | None = None) -> None:
    """Measure the peak memory of a training step relative to the networks alone.

    Args:
        smoke: use tiny sizes.
        results: the JSON file to write, by default in experiments/results; in runs/experiments/smoke for a smoke run.
    """
    size = SMOKE_SIZE if smoke else FULL_SIZE
    rows = []
    with pyro.get_param_store().scope():
        for name, num_latents, num_categories in (("relaxed", 20, 10), ("exact", 4, 8)):
            rows += measured(size, name, *((2, 3) if smoke else (num_latents, num_categories)))
    for one in rows:
        print(json.dumps(one), flush=True)
    write_json(results or results_of("speed_memory", smoke=smoke), {"machine": machine(), "rows": rows})


def measured(size: Size, name: str, num_latents: int, num_categories: int) -> list[dict[str, Any]]:
    """Measure peak bytes of a step of each method, and their ratios to the networks alone."""
    x = size.x()
    trained = StepSize(Dataset("drawn", x, x, (1, size.data_dim)), num_latents, num_categories, size.hidden, len(x))
    vaes = [trained.vae() for _ in range(2)]
    held = 3 * sum(weight.nbytes for weight in vaes[0].parameters())  # with Adam's two averages
    if name == "relaxed":
        ours: Step = make_step(vaes[0], estimator("gumbel-softmax", kl="relaxed"))
        theirs: Step = stock(trained, Trace_ELBO(), "memory")
    else:
        ours, theirs = make_step(vaes[0], estimator("exact")), stock_svi(vaes[1]).step
    peaks = {}
    for of, step in {"networks": networks(trained, optimize=True), "ours": ours, "stock": theirs}.items():
        for _ in range(2):
            step(x)
        peaks[of] = held + peak_memory(lambda step=step: step(x))  # type: ignore[misc]
    return [
        {
            "step": name,
            "num_latents": num_latents,
            "num_categories": num_categories,
            "method": of,
            "held_bytes": held,
            "peak_bytes": peak,
            "over_networks": peak / peaks["networks"],
        }
        for of, peak in peaks.items()
    ]
