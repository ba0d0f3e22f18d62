"""Read a comparison's run folder for its report, with a list of everything that is missing or unreadable."""

import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from safetensors import SafetensorError
from safetensors.numpy import load

from ..config.checks import MOST_CELLS
from ..config.json import fits
from ..config.models import MODELS
from .config import read_config
from .folder import PICTURES, cell_error, cell_folder
from .frames import read_json_lines
from .records import CellRecord, CompareLine, CompareRecord
from .sealed import check_memory, read_sealed
from .tables import BOUND, CELL, EVIDENCE, final_rows, is_bounded, label, labelled

CONFIGURED = {"dataset", "cells", "seeds", "num_latents", "num_categories", "epochs", "image_shape"}
MEASURED = [
    *("finished", "step", "epoch", "seconds", "train_objective", "train_elbo"),
    *("test_objective", "test_elbo"),
]
GRID = ["estimator", "setting", "seed"]
PICTURED = {"inputs", "reconstructions_start", "reconstructions_end", "samples", "code_usage"}
#: Limits for drawing a page: the edge of an image in pixels, images of one kind, labels of a figure.
MOST_PIXELS, MOST_IMAGES, MOST_LABELS = 1024, 64, 500
OTHER = "Try a folder that pyro-gvae compare or train made."


class Run(NamedTuple):
    """The contents of a comparison's run folder.

    Args:
        config: The contents of `config.json`.
        estimators: The labels (estimator and setting) that are compared, in order.
        metrics: Every evaluation, one for each (estimator, seed, step); `estimator` is the label.
        final: The last evaluation of each (estimator, seed) whose training finished.
        pictures: For each estimator with a readable pictures file, its label and the arrays of one seed.
        missing: One sentence for each thing that is missing or unreadable.
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
    config = read_compared(run)
    try:
        metrics = read_json_lines(run / "metrics.jsonl", CompareLine)
    except (OSError, ValueError) as error:
        why = str(error) if isinstance(error, ValueError) else f"its metrics.jsonl cannot be read: {error.strerror}"
        raise ValueError(f"Expected a run folder, but found that '{run}' is not one: {why}. {OTHER}") from error
    if metrics.attrs["torn_lines"] and metrics.empty:
        raise ValueError(f"Expected evaluations, but found no whole line in '{run / 'metrics.jsonl'}'. {OTHER}")
    torn = [f"Line {number} of metrics.jsonl is torn and was left out." for number in metrics.attrs["torn_lines"]]
    cells = [(label(cell["estimator"], cell["setting"]), cell["seed"]) for cell in config["cells"]]
    estimators = list(dict.fromkeys(name for name, _ in cells))
    evidence = BOUND if MODELS[config.get("model") or "categorical"].has_gaussian else EVIDENCE
    metrics = labelled(metrics.reindex(columns=[*GRID, *MEASURED, evidence.name]))
    metrics = metrics.drop_duplicates([*CELL, "step"], keep="last")
    known = [cell in cells for cell in zip(metrics["estimator"], metrics["seed"], strict=True)]
    metrics = metrics[np.array(known, bool)]
    metrics = metrics.sort_values("estimator", key=lambda names: names.map(estimators.index), kind="stable")
    last = final_rows(metrics)
    final = last[last["finished"].astype(bool)]
    pictures, unreadable = _read_pictures(run, config, final)
    cells.sort(key=lambda cell: estimators.index(cell[0]))
    return Run(config, estimators, metrics, final, pictures, [*_unfinished(run, cells, last), *unreadable, *torn])


def read_compared(run: Path) -> dict[str, Any]:
    """Read the config.json of a comparison, and check its types and sizes.

    Raises:
        ValueError: If an entry that every comparison has is missing, or has the wrong type or size.
    """
    config = read_config(run)
    lacking = CONFIGURED - set(config)
    if lacking:
        raise ValueError(f"Expected a run folder, but found that '{run}' lacks {', '.join(sorted(lacking))}. {OTHER}")
    cells, edges = config["cells"], config["image_shape"]
    sound = (
        fits(CompareRecord, config)
        and config["num_latents"] >= 1
        and config["num_categories"] >= 1
        and (config.get("num_layers") or 1) >= 1
        and (config.get("latent_dim") or 0) >= 0
        and 1 <= len(cells) <= MOST_CELLS
        and all(fits(CellRecord, cell) and cell["seed"] >= 0 for cell in cells)
        and not any("$" in cell["estimator"] + cell["setting"] for cell in cells)  # figures would typeset it as math
        and len(edges) == 2
        and all(isinstance(edge, int) and 1 <= edge <= MOST_PIXELS for edge in edges)
        and len({(cell["estimator"], cell["setting"]) for cell in cells}) <= MOST_LABELS
    )
    if not sound:
        raise ValueError(f"Expected a run folder, but found that the config.json of '{run}' is damaged. {OTHER}")
    return config


def _unfinished(run: Path, cells: list[tuple[str, int]], last: pd.DataFrame) -> list[str]:
    """Return one sentence for each cell that failed, is not finished, or whose last result is not finite."""
    sentences = []
    evidence = BOUND if is_bounded(last) else EVIDENCE
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
        elif not np.isfinite([row.test_elbo, getattr(row, evidence.name)]).all():
            sentences.append(f"{name}: the last evaluation is not finite, so {cell[0]} has no mean.")
    return sentences


def _can_be_drawn(arrays: dict[str, np.ndarray], image_shape: list[int]) -> bool:
    if not arrays.keys() >= PICTURED or any(arrays[name].ndim != 2 for name in PICTURED):
        return False
    usage, inputs = arrays["code_usage"], arrays["inputs"]
    images = [arrays[name] for name in PICTURED - {"code_usage"}]
    of_categories = arrays.get("category_pictures")  # older folders lack them
    return (
        all(image.dtype.kind == "f" and image.shape[1] == math.prod(image_shape) for image in images)
        and all(1 <= len(image) <= MOST_IMAGES for image in images)
        and len(inputs) == len(arrays["reconstructions_start"]) == len(arrays["reconstructions_end"])
        and usage.dtype.kind == "f"
        and usage.size > 0
        and bool((usage >= 0).all() and np.isfinite(usage).all())
        and (
            of_categories is None
            or (of_categories.dtype == np.uint8 and of_categories.shape == (*usage.shape, math.prod(image_shape)))
        )
    )


def _read_pictures(
    run: Path, config: dict[str, Any], final: pd.DataFrame
) -> tuple[dict[str, dict[str, np.ndarray]], list[str]]:
    """Read the arrays of each estimator's first readable seed, and return a sentence for each unreadable file."""
    pictures: dict[str, tuple[str, dict[str, np.ndarray]]] = {}
    missing = []
    for estimator, seed in zip(final["estimator"], final["seed"], strict=True):
        path = cell_folder(run, estimator, seed) / PICTURES
        try:
            data = read_sealed(path)
            check_memory(len(data))
            arrays = load(data)
        except (OSError, SafetensorError, ValueError, KeyError, TypeError):
            arrays = {}
        if _can_be_drawn(arrays, config["image_shape"]):
            pictures.setdefault(estimator, (f"{estimator} (seed {seed})", arrays))
        else:
            missing.append(f"{estimator}, seed {seed}: {path.name} is absent or damaged, so it has no pictures.")
    return dict(pictures.values()), missing
