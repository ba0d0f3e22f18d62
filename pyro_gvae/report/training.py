"""Write the report of a training run: figures and one self-contained HTML page."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure

from ..config.train import TrainConfig
from ..evaluate.code_statistics import guide_log_probs
from ..evaluate.generate import pictured
from ..runs.config import read_config, read_train_config
from ..runs.frames import read_json_lines
from ..runtime.rng import own_randomness
from ..train.fit import WEIGHTS
from ..train.setup import initial_model
from ..train.trained import load_model
from . import pictures
from .pages import embedded, write_page
from .style import save_figure
from .training_figures import SCHEDULED, StageStart, speed_and_schedules, stage_starts, training_curves


def write_train_report(run: Path) -> Path:
    """Draw the figures of a run folder of `train` and write its report.

    This reads the configuration, the evaluations and the weights (those of the checkpoint if the run is unfinished). It
    writes `figures/*.png`, `figures/*.svg` and `report.html`, a page that needs no network and no script.

    Args:
        run: the run folder, finished or not.

    Returns:
        The path of `report.html`.

    Raises:
        ValueError: if it is not a run folder of `train`, nothing has been evaluated yet, or its weights are damaged.
        OSError: if the data files are absent.
    """
    config, written = read_train_config(run), read_config(run)
    metrics = _read_metrics(run)
    drawn = {"training-curves": training_curves(metrics), "speed": speed_and_schedules(metrics)} | _draw(run, config)
    return write_page(
        run / "report.html",
        "train_report.html.j2",
        name=run.resolve().name,
        run=str(run),
        config=config,
        settings={name: value for name, value in config.as_json().items() if value is not None},
        command=written.get("command"),
        versions=written.get("versions"),
        last=metrics.iloc[-1].to_dict(),
        stages=_stage_rows(metrics, stage_starts(metrics)),
        scheduled=[label for name, label in SCHEDULED.items() if name in metrics and metrics[name].nunique() > 1],
        finished=(run / WEIGHTS).exists(),
        figures={name: embedded(save_figure(figure, run / "figures", name)) for name, figure in drawn.items()},
    )


def _read_metrics(run: Path) -> pd.DataFrame:
    try:
        metrics = read_json_lines(run / "metrics.jsonl")
    except OSError as error:
        raise ValueError(f"Expected a run with evaluations, but found no metrics in '{run}'. Try resume.") from error
    if metrics.empty:
        raise ValueError(
            f"Expected a run with evaluations, but found no complete line of metrics in '{run}'. Try resume."
        )
    return metrics


def _stage_rows(metrics: pd.DataFrame, stages: list[StageStart]) -> list[dict[str, Any]]:
    """Summarize each stage: its first and last step, its time, and the objective and discrete ELBO at its end."""
    rows = []
    for number, stage in zip(metrics["stage"].unique(), stages, strict=True):
        lines = metrics[metrics["stage"] == number]
        last, begin = lines.iloc[-1], metrics[metrics["step"] <= stage.step].iloc[-1]
        seconds = last["seconds"] - begin["seconds"]
        rows.append(
            {
                "estimator": stage.estimator,
                "first": int(stage.step),
                "last": int(last["step"]),
                "seconds": seconds,
                "steps_per_second": (last["step"] - stage.step) / seconds if seconds > 0 else None,
                "objective": _known(last["train_objective"]),
                "train_elbo": _known(last["train_elbo"]),
                "test_elbo": _known(last["test_elbo"]),
            }
        )
    return rows


def _known(value: Any) -> float | None:
    return None if pd.isna(value) else float(value)


def _draw(run: Path, config: TrainConfig) -> dict[str, Figure]:
    _, vae, data = load_model(run)
    initial = initial_model(replace(config, device="cpu"), data)
    with own_randomness(0), torch.no_grad():
        arrays = pictured(vae, initial, data) | {"code_usage": guide_log_probs(vae, data.test).exp().mean(0)}
    cells: dict[str, dict[str, np.ndarray]] = {"": {name: array.numpy() for name, array in arrays.items()}}
    return {
        "reconstructions": pictures.reconstructions(cells, data.image_shape),
        "prior-samples": pictures.prior_samples(cells, data.image_shape),
        "code-usage": pictures.code_usage(cells),
    }
