"""Measure memory and time of an epoch over a Parquet file that is read in slices.

Question: as the number of rows grows, what is the peak resident memory of an epoch over a table of ten columns that is
read in slices, and of the same table in memory? And how many rows per second does training process in both cases?

Command: `python experiments/speed.py rows` (`--smoke` for tiny sizes, in seconds). It writes
`experiments/results/speed_rows.json`.

Cost: about five minutes on two cores, half of them for the memory of the largest file.

The table has three real columns, two positive ones, two counts, a binary one and two categorical ones with 5 and 20
levels. One cell in twenty is missing; row groups have 65,536 rows. The program is the default of `train`, with 4
one-hots of 8 categories and one hidden layer of 128 units; a step is `make_step` with `gumbel-softmax`, the cheapest
estimator, so that reading weighs most. Epochs from memory and in slices are interleaved, and medians are reported.
Times are those of the whole epoch, including reading; the file is in the system's cache. Memory is that of a separate
process from its start to the end of the first epoch, which includes describing the columns, the first recording and
training.

Found: see `docs/howto/tables.md`.
"""

import json
import sys
from functools import partial
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from bench import in_a_process, machine, peak_bytes, results_of, seconds_of

from pyro_gvae import CategoricalVAE, dataset_of, estimator, make_step, sliced_dataset
from pyro_gvae.data.batches import epoch_batches
from pyro_gvae.data.sliced import AnyDataset
from pyro_gvae.models.table import TableObservation
from pyro_gvae.runs.files import write_json
from pyro_gvae.runtime.memory import keep_freed_memory

COMMAND = "python experiments/speed.py rows"
MISSING = 0.05


class Protocol(NamedTuple):
    """Sizes and numbers of repetitions."""

    num_rows: int
    rows_of_memory: list[int]
    group: int  # rows of a group
    batch_sizes: list[int]
    batch_of_memory: int
    blocks: int


FULL = Protocol(1_000_000, [250_000, 1_000_000, 4_000_000], 65_536, [256, 1024], 4096, 2)
SMOKE = Protocol(600, [600], 64, [64], 64, 1)


def rows(*, smoke: bool = False, results: Path | None = None) -> None:
    """Measure memory and time of an epoch over a Parquet file, read in slices and held in memory.

    Args:
        smoke: run everything on tiny sizes.
        results: the JSON file to write, by default in experiments/results; in runs/experiments/smoke for a smoke run.
    """
    protocol = SMOKE if smoke else FULL
    found: dict[str, Any] = {"machine": machine(), "command": COMMAND, "memory": [], "rate": []}
    with TemporaryDirectory() as folder:
        for num_rows in protocol.rows_of_memory:
            file = write_table(Path(folder), num_rows, protocol.group)
            for method in METHODS:
                base = {"method": method, "num_rows": num_rows, "batch_size": protocol.batch_of_memory}
                row = base | in_a_process(__file__, file=str(file), **base)
                found["memory"].append(row)
                print(json.dumps(row), flush=True)
        file = write_table(Path(folder), protocol.num_rows, protocol.group)
        for batch_size in protocol.batch_sizes:
            row = rate(file, batch_size, protocol.blocks)
            found["rate"].append(row)
            print(json.dumps(row), flush=True)
    write_json(results or results_of("speed_rows", smoke=smoke), found)


def write_table(folder: Path, num_rows: int, group: int) -> Path:
    """Write a table of mixed columns, one row group at a time."""
    import pyarrow
    from pyarrow.parquet import ParquetWriter

    path, writer = folder / f"{num_rows}.parquet", None
    for number, start in enumerate(range(0, num_rows, group)):
        table = pyarrow.Table.from_pandas(mixed(min(group, num_rows - start), number), preserve_index=False)
        writer = writer or ParquetWriter(path, table.schema)
        writer.write_table(table)
    assert writer is not None
    writer.close()
    return path


def mixed(num_rows: int, seed: int) -> pd.DataFrame:
    """Draw rows from four hidden groups, so that there is something to learn."""
    random = np.random.default_rng(seed)
    group = random.integers(0, 4, num_rows)
    columns: dict[str, Any] = {f"real{n}": random.normal(group - n, 1.0) for n in range(3)}
    columns |= {f"positive{n}": np.exp(random.normal(group * (n - 0.5), 1.0)) for n in range(2)}
    columns |= {f"count{n}": random.poisson(1 + group * (n + 1)).astype(float) for n in range(2)}
    columns["binary"] = np.where(random.random(num_rows) < (1 + group) / 5, "yes", "no")
    for levels in (5, 20):
        columns[f"of{levels}"] = np.array([f"level {n}" for n in range(levels)])[
            (group + random.integers(0, levels // 2, num_rows)) % levels
        ]
    frame = pd.DataFrame(columns)
    return frame.mask(random.random(frame.shape) < MISSING)


#: Ways to read the table.
METHODS = {"in memory": dataset_of, "in slices": sliced_dataset}


def trainer(data: AnyDataset) -> Any:
    torch.manual_seed(0)
    vae = CategoricalVAE(len(data.columns or ()), 4, 8, (128,), observation=TableObservation(data.columns or ()))
    return make_step(vae, estimator("gumbel-softmax"), lr=1e-3)


def epoch(step: Any, data: AnyDataset, batch_size: int, number: int) -> None:
    for batch in epoch_batches(data, batch_size, seed=0, epoch=number):
        step(batch).item()


def point(file: str, method: str, num_rows: int, batch_size: int) -> dict[str, float]:
    """Measure peak resident memory before reading, after it and after an epoch; and the bytes of the rows."""
    keep_freed_memory()
    before = peak_bytes()
    data = METHODS[method](file)
    described = peak_bytes()
    epoch(trainer(data), data, batch_size, 0)
    cells = num_rows * len(data.columns or ())
    return {"peak_bytes": peak_bytes(), "peak_of_reading": described, "peak_before": before, "bytes_of_rows": 4 * cells}


def rate(file: Path, batch_size: int, blocks: int) -> dict[str, Any]:
    """Measure rows per second of epochs of both methods, in turn, and of reading the batches without training."""
    data = {name: read(file) for name, read in METHODS.items()}
    steps = {name: trainer(own) for name, own in data.items()}
    for name, step in steps.items():  # the first step records
        step(next(epoch_batches(data[name], batch_size, seed=0, epoch=0)))
    seconds: dict[str, list[float]] = {name: [] for name in data}
    for number in range(blocks):
        for name, own in data.items():
            seconds[name].append(seconds_of(partial(epoch, steps[name], own, batch_size, number)))
    alone = seconds_of(lambda: [None for _ in epoch_batches(data["in slices"], batch_size, seed=1, epoch=0)])
    found = {name: len(data[name].train) / median(own) for name, own in seconds.items()}
    return {
        "batch_size": batch_size,
        "rows_a_second": found,
        "slices_over_memory": found["in slices"] / found["in memory"],
        "rows_a_second_without_training": len(data["in slices"].train) / alone,
        "goal": 0.8,
    }


if __name__ == "__main__":
    print(json.dumps(point(**json.loads(sys.argv[1]))))
