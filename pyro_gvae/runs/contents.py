"""Read a comparison's run folder for its report, with a list of everything that is missing or unreadable."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from safetensors import SafetensorError
from safetensors.numpy import load_file

from .config import read_config
from .folder import PICTURES, cell_error, cell_folder
from .frames import read_json_lines
from .tables import CELL, final_rows, label, labelled

CONFIGURED = {"dataset", "cells", "seeds", "num_latents", "num_categories", "epochs", "image_shape"}
MEASURED = [
    *("finished", "step", "epoch", "seconds", "train_objective", "train_elbo"),
    *("test_objective", "test_elbo", "test_log_evidence"),
]
GRID = ["estimator", "setting", "seed"]
PICTURED = {"inputs", "reconstructions_start", "reconstructions_end", "samples", "code_usage"}
OTHER = "Try one that pyro-gvae compare or train made."


class Run(NamedTuple):
    """The contents of a comparison's run folder.

    Args:
        config: The contents of `config.json`.
        estimators: The labels (estimator and setting) that are compared, in order.
        metrics: Every evaluation, one for each (estimator, seed, step); `estimator` is the label.
        final: The last evaluation of each (estimator, seed) that was trained to its end.
        pictures: Label to the arrays of one seed, for each estimator with a readable pictures file.
        missing: A sentence for everything that is missing or unreadable.
    """

    config: dict[str, Any]
    estimators: list[str]
    metrics: pd.DataFrame
    final: pd.DataFrame
    pictures: dict[str, dict[str, np.ndarray]]
    missing: list[str]


def read_run(run: Path) -> Run:
    """Read a run folder and list what it lacks.

    Args:
        run: The run folder, finished or not.

    Returns:
        Its contents, in the order of the configuration.

    Raises:
        ValueError: If `config.json` or `metrics.jsonl` is absent or unreadable, or lacks entries that every run has.
    """
    config = read_config(run)
    try:
        metrics = read_json_lines(run / "metrics.jsonl")
    except (OSError, ValueError) as error:
        raise ValueError(f"Expected a run folder, but found that '{run}' is not one: {error}. {OTHER}") from error
    lacking = CONFIGURED - set(config) or ({*GRID, *MEASURED} - set(metrics) if len(metrics) else set())
    if lacking:
        raise ValueError(f"Expected a run folder, but found that '{run}' lacks {', '.join(sorted(lacking))}. {OTHER}")
    torn = [f"Line {number} of metrics.jsonl is torn and was left out." for number in metrics.attrs["torn_lines"]]
    cells = [(label(cell["estimator"], cell["setting"]), cell["seed"]) for cell in config["cells"]]
    estimators = list(dict.fromkeys(name for name, _ in cells))
    metrics = labelled(metrics.reindex(columns=[*GRID, *MEASURED])).drop_duplicates([*CELL, "step"], keep="last")
    known = [cell in cells for cell in zip(metrics["estimator"], metrics["seed"], strict=True)]
    metrics = metrics[np.array(known, bool)]
    metrics = metrics.sort_values("estimator", key=lambda names: names.map(estimators.index), kind="stable")
    last = final_rows(metrics)
    final = last[last["finished"].astype(bool)]
    pictures, unreadable = _read_pictures(run, final)
    cells.sort(key=lambda cell: estimators.index(cell[0]))
    return Run(config, estimators, metrics, final, pictures, [*_unfinished(run, cells, last), *unreadable, *torn])


def _unfinished(run: Path, cells: list[tuple[str, int]], last: pd.DataFrame) -> list[str]:
    """Write a sentence for each cell that did not end with a finite result."""
    sentences = []
    rows = {(row.estimator, row.seed): row for row in last.itertuples()}
    for cell in cells:
        name, row = f"{cell[0]}, seed {cell[1]}", rows.get(cell)
        error = cell_error(run, *cell)
        if error is not None and (row is None or not row.finished):
            sentences.append(f"{name}: failed. {error}")
        elif row is None:
            sentences.append(f"{name}: nothing was recorded.")
        elif not row.finished:
            sentences.append(
                f"{name}: not finished ({row.epoch:g} epochs); its curve is drawn, but the tables leave it out."
            )
        elif not np.isfinite([row.test_elbo, row.test_log_evidence]).all():
            sentences.append(f"{name}: the last evaluation is not finite, so {cell[0]} has no mean.")
    return sentences


def _read_pictures(run: Path, final: pd.DataFrame) -> tuple[dict[str, dict[str, np.ndarray]], list[str]]:
    """Read the arrays of each estimator's first readable seed; return a sentence for each unreadable file."""
    pictures: dict[str, tuple[str, dict[str, np.ndarray]]] = {}
    missing = []
    for estimator, seed in zip(final["estimator"], final["seed"], strict=True):
        path = cell_folder(run, estimator, seed) / PICTURES
        try:
            arrays = load_file(path)
        except (OSError, SafetensorError):
            arrays = {}
        if arrays.keys() >= PICTURED:
            pictures.setdefault(estimator, (f"{estimator} (seed {seed})", arrays))
        else:
            missing.append(f"{estimator}, seed {seed}: {path.name} is absent or damaged, so it has no pictures.")
    return dict(pictures.values()), missing
