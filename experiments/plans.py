"""Shared code of the experiments that compare training plans of equally many steps, half of which may be soft."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import pandas as pd
from common import Places, Row, check_names, draw_curve, log_axis, mean_and_error, print_paired, run_cells, train
from matplotlib.figure import Figure

from pyro_gvae import Dataset, TrainConfig
from pyro_gvae.programs.pair import HasPair
from pyro_gvae.report.style import MARKERS, PALETTE, SMALL_PRINT, in_house_style
from pyro_gvae.runs.tables import with_errors

#: Fractions of the training at which a row is scored.
PARTS = (0.1, 0.2, 0.5, 0.6, 0.8, 1.0)


@dataclass(frozen=True)
class Schedule:
    """What an experiment trains, for how long and how often.

    Args:
        plans: Rows to train, by default all.
        steps: Total number of training steps; plans of two stages spend half of them on the first.
        seeds: Seeds of the initial weights, the order of the data and the samples.
    """

    plans: tuple[str, ...] = ()
    steps: int = 10_000
    seeds: tuple[int, ...] = (0,)


def run_plans(
    experiment: str,
    known: Mapping[str, str],
    schedule: Schedule,
    measure: Callable[[Row], list[Row]],
    places: Places,
    values: tuple[str, str],
    settings: Row | None = None,
) -> pd.DataFrame:
    """Measure the plans, and print their final scores and the differences from the first known plan.

    Args:
        experiment: the name of the experiment.
        known: row -> stages, in which {all}, {half} and {rest} stand for numbers of steps.
        schedule: which of them to train, for how long and how often.
        measure: returns the rows of a cell.
        places: the folders, and the number of processes.
        values: columns that are compared.
        settings: more columns, with the value that they have in all cells of this call.

    Returns:
        The rows with these steps and settings.
    """
    if schedule.steps < 10:
        raise ValueError(f"Expected at least 10 steps, but found {schedule.steps}.")
    check_names(schedule.plans, known)
    settings = {"steps": schedule.steps} | (settings or {})
    cells: list[Row] = [
        settings | {"estimator": plan, "seed": seed, "moment": "1"}
        for seed, plan in product(schedule.seeds, schedule.plans or known)
    ]
    table = run_cells(experiment, cells, measure, places)
    table = table[(table[list(settings)] == pd.Series(settings)).all(axis=1)]
    ends = table[table["moment"].astype(float) == 1]
    found = mean_and_error(ends, ["estimator"], [*values, "seconds"])
    text = with_errors(found, [*values, "seconds"])
    print(found[["estimator", "seeds"]].join(text).to_string(index=False))
    print_paired(ends, ["steps"], values, next(iter(known)))
    return table


def train_plan(
    cell: Row,
    stages: str,
    config: TrainConfig,
    program: HasPair,
    scores: Callable[[Any, Dataset], Row],
    folder: Path,
) -> list[Row]:
    """Train a program by the stages of a cell, and score it at `PARTS`; `moment` is the fraction of the training.

    Args:
        cell: the settings of the cell.
        stages: the stages of its plan, as in `run_plans`.
        config: all other settings.
        program: the program with its initial weights.
        scores: computes the columns of a row from the program and its data.
        folder: the folder of the checkpoint.
    """
    steps, half = cell["steps"], cell["steps"] // 2
    config = replace(config, stages=stages.format(all=steps, half=half, rest=steps - half))
    moments = [f"{round(part * steps)}steps" for part in PARTS]
    rows = train(config, moments, scores, folder, vae=program)
    return [row | {"moment": f"{part:g}"} for part, row in zip(PARTS, rows, strict=True)]


@in_house_style
def draw_plans(table: pd.DataFrame, names: Sequence[str], value: str, label: str) -> Figure:
    """Draw minus a value against steps and against seconds: means over seeds with standard errors."""
    figure = Figure(figsize=(11, 4.6))
    panels = dict(zip(("step", "seconds"), figure.subplots(1, 2, sharey=True), strict=True))
    present = [name for name in names if name in set(table["estimator"])]
    for name, color, marker in zip(present, PALETTE, MARKERS, strict=False):
        rows = table[table["estimator"] == name]
        mean = mean_and_error(rows, ["moment"], [value, "step", "seconds"])
        for clock, axes in panels.items():
            look = {"color": color, "marker": marker, "ms": 4, "lw": 1.5, "label": f"{name} ({rows['seed'].nunique()})"}
            draw_curve(axes, mean[clock], -mean[value], mean[f"{value}_se"], **look)
    for clock, axes in panels.items():
        axes.set(xscale="log", xlabel="steps" if clock == "step" else "seconds of training (means over seeds)")
        log_axis(axes.xaxis)
    panels["step"].set_ylabel(label)
    figure.legend(*panels["step"].get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=9)
    figure.suptitle("in brackets: seeds; bands: standard error over seeds", x=0.99, ha="right", **SMALL_PRINT)
    return figure
