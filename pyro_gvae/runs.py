"""What a run folder holds, and what it should hold and does not: read for reports, truthful about the rest."""

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from safetensors import SafetensorError
from safetensors.numpy import load_file

from .results import cell_path, read_json_lines
from .tables import CELL, final_rows

CONFIGURED = {"dataset", "estimators", "seeds", "num_latents", "num_categories", "epochs", "image_shape"}
MEASURED = [
    *("step", "epoch", "seconds", "train_objective", "train_elbo"),
    *("test_objective", "test_elbo", "test_log_evidence"),
]
PICTURED = {"inputs", "reconstructions_start", "reconstructions_end", "samples", "code_usage"}


class Run(NamedTuple):
    """What a run folder holds, and what it should hold and does not.

    Args:
        config: The contents of `config.json`.
        metrics: Every evaluation, one for each (estimator, seed, step).
        final: The last evaluation of each (estimator, seed) that was trained to its end.
        pictures: Label to the arrays of one seed, for each estimator that has a readable cell file.
        missing: A sentence for each thing that is not there.
    """

    config: dict[str, Any]
    metrics: pd.DataFrame
    final: pd.DataFrame
    pictures: dict[str, dict[str, np.ndarray]]
    missing: list[str]


def read_run(run: Path) -> Run:
    """Reads a run folder and lists what it lacks.

    Args:
        run: The run folder, finished or not.

    Returns:
        Its contents, in the order of the configuration.

    Raises:
        ValueError: If `config.json` or `metrics.jsonl` is absent, unreadable or without what every run has.
    """
    try:
        config = json.loads((run / "config.json").read_text(encoding="utf-8"))
        metrics = read_json_lines(run / "metrics.jsonl")
    except (OSError, ValueError) as error:
        raise ValueError(f"Expected a run folder, but found that '{run}' is not one: {error}.") from error
    lacking = CONFIGURED - set(config) or ({*CELL, *MEASURED} - set(metrics) if len(metrics) else set())
    if lacking:
        raise ValueError(f"Expected a run folder, but found that '{run}' lacks {', '.join(sorted(lacking))}.")
    torn = [f"Line {number} of metrics.jsonl is torn and was left out." for number in metrics.attrs["torn_lines"]]
    metrics = metrics.reindex(columns=[*CELL, *MEASURED]).drop_duplicates([*CELL, "step"], keep="last")
    metrics = metrics[metrics["estimator"].isin(config["estimators"]) & metrics["seed"].isin(config["seeds"])]
    metrics = metrics.sort_values("estimator", key=lambda names: names.map(config["estimators"].index), kind="stable")
    last = final_rows(metrics)
    final = last[last["epoch"] >= config["epochs"] - 1e-6]
    pictures, unreadable = _read_pictures(run, final)
    return Run(config, metrics, final, pictures, [*_unfinished(config, last), *unreadable, *torn])


def _unfinished(config: dict[str, Any], last: pd.DataFrame) -> list[str]:
    """A sentence for each cell without a finite result at its end."""
    sentences = []
    rows = {(row.estimator, row.seed): row for row in last.itertuples()}
    for cell in ((estimator, seed) for estimator in config["estimators"] for seed in config["seeds"]):
        name, row = f"{cell[0]}, seed {cell[1]}", rows.get(cell)
        if row is None:
            sentences.append(f"{name}: nothing was recorded.")
        elif row.epoch < config["epochs"] - 1e-6:
            reached = f"{row.epoch:g} of {config['epochs']:g} epochs"
            sentences.append(f"{name}: not finished ({reached}); its curve is drawn, the tables leave it out.")
        elif not np.isfinite([row.test_elbo, row.test_log_evidence]).all():
            sentences.append(f"{name}: the last evaluation is not finite, so {cell[0]} has no mean.")
    return sentences


def _read_pictures(run: Path, final: pd.DataFrame) -> tuple[dict[str, dict[str, np.ndarray]], list[str]]:
    """The arrays of each estimator's first readable seed, and a sentence for each file that cannot be read."""
    pictures: dict[str, tuple[str, dict[str, np.ndarray]]] = {}
    missing = []
    for estimator, seed in zip(final["estimator"], final["seed"], strict=True):
        path = cell_path(run, estimator, seed)
        try:
            arrays = load_file(path)
        except (OSError, SafetensorError):
            arrays = {}
        if arrays.keys() >= PICTURED:
            pictures.setdefault(estimator, (f"{estimator} (seed {seed})", arrays))
        else:
            missing.append(
                f"{estimator}, seed {seed}: {path.name} is absent or damaged, so there are no pictures of it."
            )
    return dict(pictures.values()), missing
