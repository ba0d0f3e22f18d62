"""Find the size of code below which enumeration is simply better.

Question: how do time and memory of a training step, and the seconds until a given log-likelihood, grow with the number
of codes K^N for exact sums, soft Gumbel-Softmax and sampled estimators, and where do the curves cross?

Command: `python experiments/crossover.py` (`--smoke` for tiny sizes, in seconds); `--datasets digits` is quick. It
writes `experiments/results/crossover_steps.csv` and `crossover_training.csv`, `docs/figures/crossover.png` and `.svg`.

Cost: two cores: timing the steps takes ten minutes, most of it at 262,144 codes; training takes `--seconds` for each of
50 cells and seed, and half as much again for evaluations: an hour and a quarter with the defaults on an idle machine.

Black-and-white images, MLPs 784-512-256 (MNIST) and 64-128 (digits), Adam. Each step is timed in its own process: the
median of several steps, after two untimed ones. Memory is the peak of that process minus its peak before the first
step. Training is scored by the exact log p(x) of the discrete model on the first 1,000 test images. The common level is
the highest that all rows of a size reach; the time to reach it is interpolated linearly between two evaluations.

Found (one core, digits, three seeds, 15 seconds): at 100 codes enumeration reaches the common level 1.86 +- 0.87 s
before soft samples and 0.71 +- 0.54 s before `reinforce-loo`; at 512 it ties with both, and at 4,096 it is 10.6 +- 1.0
s behind. A step at 262,144 codes takes 195 MB (MNIST: 215 MB, 11.8 s).
"""

import statistics
from dataclasses import replace
from functools import partial
from itertools import product
from multiprocessing import get_context
from typing import Annotated, NamedTuple

import numpy as np
import pandas as pd
import torch
import tyro
from bench import peak_bytes, seconds_of
from common import (
    SETTINGS,
    Places,
    Row,
    check_names,
    command,
    dataset,
    in_words,
    log_axis,
    mean_and_error,
    print_paired,
    run_cells,
    scores_on_test,
    tiny,
    train,
)
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from pyro_gvae import Dataset, TrainConfig, make_step
from pyro_gvae.estimators import estimator
from pyro_gvae.report.style import MARKERS, PALETTE, SMALL_PRINT, in_house_style
from pyro_gvae.runs.tables import with_errors
from pyro_gvae.runtime.memory import keep_freed_memory
from pyro_gvae.train.setup import initial_model

NAME = "crossover"
#: Row -> estimator with its options.
ROWS = {
    "exact": "exact",
    "soft Gumbel-Softmax": "gumbel-softmax[kl=categorical]",
    "reinmax": "reinmax",
    "reinforce-loo": "reinforce-loo",
    "local-expectation": "local-expectation",
}
#: K and N of the timed steps, from 10 to 262,144 codes; models of the last size are not trained.
SIZES = ((10, 1), (10, 2), (8, 3), (8, 4), (8, 5), (8, 6))
#: Fractions of the training time at which models are scored.
PARTS = (0.02, 0.05, 0.1, 0.2, 0.35, 0.5, 0.75, 1.0)
NUM_TEST = 1000


class Plan(NamedTuple):
    """The sizes to measure, and the number of timed steps."""

    sizes: tuple[tuple[int, int], ...]
    steps: int


def main(
    places: Annotated[Places, tyro.conf.arg(name="")],
    *,
    datasets: tuple[str, ...] = ("digits", "mnist"),
    seconds: float = 60.0,
    seeds: tuple[int, ...] = (0,),
    estimators: tuple[str, ...] = tuple(ROWS),
) -> pd.DataFrame:
    """Time steps and training against the number of codes.

    Args:
        places: where to read and write; steps are timed one after another, regardless of the number of workers.
        datasets: digits, mnist.
        seconds: seconds of training.
        seeds: seeds of the initial weights, the order of the data and the samples.
        estimators: rows to run.
    """
    if places.smoke:
        places, datasets, seconds, seeds = places.apart(NAME), ("digits",), 0.2, (0,)
        estimators = ("exact", "reinmax")
    check_names(datasets, SETTINGS)
    check_names(estimators, ROWS)
    plan = Plan(((3, 2),), steps=1) if places.smoke else Plan(SIZES, steps=9)
    cells: list[Row] = [
        {"dataset": data, "num_categories": k, "num_latents": n, "estimator": row}
        for data, (k, n), row in product(datasets, plan.sizes, estimators)
    ]
    alone = replace(places, workers=1)
    steps = run_cells(f"{NAME}_steps", cells, partial(step_cost, places=places, steps=plan.steps), alone)
    last = f"{seconds:g}s"
    cells = [
        cell | {"seed": seed, "budget": seconds, "moment": last}
        for seed, cell in product(seeds, cells)
        if (cell["num_categories"], cell["num_latents"]) != SIZES[-1]
    ]
    measured = partial(measure, places=places, seconds=seconds)
    training = run_cells(f"{NAME}_training", cells, measured, places)
    training = training[training["budget"] == seconds]
    reached = seconds_to_level(training)
    for table, values in ((steps, ["milliseconds", "megabytes"]), (reached, ["seconds_to_level", "level"])):
        by = ["dataset", "codes", "estimator"]
        found = mean_and_error(table.assign(seed=table.get("seed", 0)), by, values)
        print(found[by].join(with_errors(found, values)).to_string(index=False))
    print_paired(reached, ["dataset", "codes"], ["seconds_to_level"])
    places.save(NAME, draw(steps, reached))
    return training


def configuration(cell: Row, places: Places, amount: str = "1", seed: int = 0) -> TrainConfig:
    """Return the training configuration of a cell."""
    sizes = {name: cell[name] for name in ("num_categories", "num_latents")}
    config = TrainConfig(
        dataset=cell["dataset"], stages=f"{ROWS[cell['estimator']]}:{amount}", **SETTINGS[cell["dataset"]]
    )
    return places.placed(tiny(config) if places.smoke else config, seed=seed, **sizes)


def step_cost(cell: Row, *, places: Places, steps: int) -> list[Row]:
    """Measure milliseconds and megabytes of a step in a new process, whose peak memory is that of the step.

    The process is given one batch only: loading the data would often take more memory than a step.
    """
    config = configuration(cell, places)
    data = dataset(config)
    batch = Dataset(data.name, data.train[: config.batch_size].clone(), data.test[:1].clone(), data.image_shape)
    with get_context("spawn").Pool(1) as pool:
        return [pool.apply(_step_cost, (config, batch, steps))]


def _step_cost(config: TrainConfig, data: Dataset, steps: int) -> Row:
    keep_freed_memory()
    x = data.train
    [stage] = config.plan
    torch.manual_seed(0)
    step = make_step(initial_model(config, data), estimator(stage.estimator, **stage.options))
    before = peak_bytes()
    times = [seconds_of(lambda: step(x).item()) for _ in range(2 + steps)]
    codes = config.num_categories**config.num_latents
    return {
        "codes": codes,
        "milliseconds": 1e3 * statistics.median(times[2:]),
        "megabytes": (peak_bytes() - before) / 1e6,
        "threads": torch.get_num_threads(),
    }


def measure(cell: Row, *, places: Places, seconds: float) -> list[Row]:
    """Train a cell and score it at each moment."""
    config = configuration(cell, places, cell["moment"], cell["seed"])
    moments = [f"{seconds * part:g}s" for part in PARTS]
    rows = train(config, moments, partial(scores_on_test, most=NUM_TEST), places.folder(NAME, cell))
    return [row | {"codes": config.num_categories**config.num_latents} for row in rows]


def seconds_to_level(training: pd.DataFrame) -> pd.DataFrame:
    """Compute when each curve reaches the highest log p(x) that all rows of its data set, size and seed reach."""
    rows = []
    for (data, codes, seed), curves in training.groupby(["dataset", "codes", "seed"], sort=False):
        by_row = {name: rows_.sort_values("seconds") for name, rows_ in curves.groupby("estimator", sort=False)}
        level = min(curve["test_log_evidence"].max() for curve in by_row.values())
        rows += [
            {"dataset": data, "codes": codes, "seed": seed, "estimator": name, "level": level}
            | {"seconds_to_level": passes(curve["seconds"].to_numpy(), curve["test_log_evidence"].to_numpy(), level)}
            for name, curve in by_row.items()
        ]
    return pd.DataFrame(rows)


def passes(seconds: np.ndarray, values: np.ndarray, level: float) -> float:
    """Return the first time at which a curve reaches a level, interpolated linearly between its points.

    >>> passes(np.array([1.0, 2.0, 4.0]), np.array([-9.0, -5.0, -3.0]), -4.0)
    3.0
    """
    first = int(np.argmax(values >= level))
    if first == 0:
        return float(seconds[0])
    between = slice(first - 1, first + 1)
    return float(np.interp(level, values[between], seconds[between]))


@in_house_style
def draw(steps: pd.DataFrame, reached: pd.DataFrame) -> Figure:
    """Draw time and memory of a step, and seconds to the common level, against the number of codes, by data set.

    Seconds to the level are means over seeds with standard errors; steps are timed once, not for each seed.
    """
    datasets = list(steps["dataset"].unique())
    figure = Figure(figsize=(12, 1.0 + 3.2 * len(datasets)))
    grid = figure.subplots(len(datasets), 3, squeeze=False)
    panels = (
        (steps, "milliseconds", "a step, ms"),
        (steps, "megabytes", "memory of a step, MB"),
        (reached, "seconds_to_level", "seconds to common log p(x)"),
    )
    names = list(steps["estimator"].unique())
    for (row, data), (column, (table, value, label)) in product(enumerate(datasets), enumerate(panels)):
        axes = grid[row, column]
        for name, color, marker in zip(names, PALETTE, MARKERS, strict=False):
            shown = table[(table["dataset"] == data) & (table["estimator"] == name)]
            mean = mean_and_error(shown.assign(seed=shown.get("seed", 0)), ["codes"], [value])
            look = {"marker": marker, "ms": 4, "lw": 1.6, "capsize": 2, "elinewidth": 1, "color": color}
            axes.errorbar(mean["codes"], mean[value], yerr=mean[f"{value}_se"].fillna(0.0), label=name, **look)
        axes.set(xscale="log", yscale="log", title=f"{data}: {label}")
        if table is reached:
            seeds = reached[reached["dataset"] == data].groupby("codes")["seed"].nunique()
            axes.set_title(f"{data}: {label}, {in_words(seeds)}")
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:,g}")
        axes.xaxis.set_minor_formatter(NullFormatter())
        log_axis(axes.yaxis)
        axes.set_xlabel("number of codes K^N" if row + 1 == len(datasets) else "")
    handles, labels = grid[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper left", ncols=5)
    note = "common log p(x): the highest that all rows of a size and seed reach; bars: standard error over seeds"
    figure.supxlabel(note, x=0.99, ha="right", **SMALL_PRINT)
    return figure


if __name__ == "__main__":
    command(main)
