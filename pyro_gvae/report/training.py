"""Write the report of a training run: figures and one self-contained HTML page."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from markupsafe import Markup
from matplotlib.figure import Figure
from torch import Tensor

from ..config.models import MODELS, code_in_words
from ..config.train import OF_DATA_AND_PROGRAM, TrainConfig
from ..data.labels import shown
from ..data.parts import MOST_SHOWN, shown_part
from ..data.rows import Rows
from ..data.sliced import AnyDataset
from ..data.tables import beside, decoded
from ..evaluate.code_statistics import guide_log_probs
from ..evaluate.generate import NUM_RECONSTRUCTIONS, digits_of, pictured
from ..evaluate.independent import independent_log_prob
from ..models.observations import CategoricalObservation, MultinomialObservation
from ..models.table import TableObservation
from ..runs.config import commands_of, read_config, read_train_config
from ..runs.folder import check_writable, command_on
from ..runs.frames import read_json_lines
from ..runs.records import TrainLine
from ..runtime.rng import own_randomness
from ..train.described import program_of
from ..train.files import METRICS, WEIGHTS
from ..train.setup import initial_model
from ..train.trained import Trained, load_model
from . import pictures
from .pages import embedded, link_to_explorer, printable, write_page
from .settings import Settings, defaults_of, documentation, files_beside, sort_settings
from .style import save_figure
from .tiles import NUM_CHANGED, category_pictures
from .training_figures import SCHEDULED, StageStart, speed_and_schedules, stage_starts, training_curves
from .verdicts import Baseline, training_finding, training_remarks

#: A setting that every run of `train` chooses, so that it is no difference from the default.
CHOSEN_BY_RUNS = {"judge": "exact"}


def write_train_report(run: Path, *, data_dir: Path = Path("data")) -> Path:
    """Draw the figures of a run folder of `train` and write its report.

    This reads the configuration, the evaluations and the weights (those of the checkpoint if the run is unfinished). It
    writes `figures/*.png`, `figures/*.svg` and `report.html`, a page that needs no network and no script.

    Args:
        run: the run folder, finished or not.
        data_dir: the folder of the data sets that have files.

    Returns:
        The path of `report.html`.

    Raises:
        ValueError: if it is not a run folder of `train`, nothing has been evaluated yet, or its weights are damaged.
        OSError: if the data files are absent.
    """
    config, written = read_train_config(run), read_config(run)
    metrics = _read_metrics(run)
    check_writable(run)
    program = program_of(run)
    is_known = program is None or program["arguments"] is not None
    trained = load_model(run, data_dir=data_dir) if is_known else None
    arrays = {} if trained is None else _arrays(trained, config if program is None else None)
    drawn = {"training-curves": training_curves(metrics), "speed": speed_and_schedules(metrics)}
    drawn |= {} if trained is None else _draw(arrays, trained.data)
    last = metrics.iloc[-1].to_dict()
    resume = printable(command_on(run, "resume", data_dir=data_dir))
    return write_page(
        run / "report.html",
        "train_report.html.j2",
        name=printable(run.resolve().name),
        run=printable(str(run)),
        config=config,
        **_of_program(config, written, program),
        part="test" if trained is None else shown_part(trained.data, 1)[0],
        settings=_sorted_settings(config, written, program, seconds=float(last["seconds"])),
        category_pictures="category_pictures" in arrays,
        command=commands_of(written),
        last=last,
        stages=_stage_rows(metrics, stage_starts(metrics)),
        finding=training_finding(last, None if trained is None else _baseline(trained)),
        remarks=training_remarks(
            metrics, arrays["code_usage"].numpy() if arrays else None, go_on=f"{resume} --more 10"
        ),
        to_know=_to_know(
            last,
            finished=(run / WEIGHTS).exists() if trained is None else trained.finished,
            go_on=resume if is_known else "the same call of fit, with resume=True",
        ),
        explorer=link_to_explorer(run),
        scheduled=[label for name, label in SCHEDULED.items() if name in metrics and metrics[name].nunique() > 1],
        tables=[] if trained is None else _tables(arrays, trained.data),
        figures={name: embedded(save_figure(figure, run / "figures", name)) for name, figure in drawn.items()},
        files=files_beside(run),  # after the figures were saved
        documentation=documentation("howto/run_folders.md"),
    )


def _of_program(config: TrainConfig, written: dict[str, Any], program: dict[str, Any] | None) -> dict[str, str | None]:
    """Return what the page calls the program, its code and its data; a run of `fit` describes the code nowhere."""
    if program is not None:
        name = printable(program["name"])
        return {"program": f"A program, {name},", "code": None, "data_name": printable(_data_name(written))}
    sizes = config.num_latents, config.num_categories, config.num_layers, config.latent_dim
    return {
        "program": "One variational autoencoder",
        "code": code_in_words(config.model, *sizes),
        "data_name": printable(config.data_name),
    }


def _baseline(trained: Trained) -> Baseline | None:
    """Return the log-likelihood of the shown data under a distribution without a code, fit to training data."""
    observation = trained.vae.observation
    train = trained.data.train
    rows = train.first(MOST_SHOWN).x if isinstance(train, Rows) else train
    value = independent_log_prob(observation, rows, shown_part(trained.data)[1])
    words = {
        TableObservation: "one distribution for each column",
        MultinomialObservation: "the frequency of each word",
        CategoricalObservation: "the frequency of each level in each place",
    }
    others = "the mean image" if trained.data.image_shape[0] > 1 else "one distribution for each value"
    return None if value is None else Baseline(words.get(type(observation), others), value)


def _read_metrics(run: Path) -> pd.DataFrame:
    try:
        metrics = read_json_lines(run / METRICS, TrainLine)
    except OSError as error:
        raise ValueError(f"Expected a run with evaluations, but found no metrics in '{run}'. Try resume.") from error
    if metrics.empty:
        raise ValueError(
            f"Expected a run with evaluations, but found no complete line of metrics in '{run}'. Try resume."
        )
    if not (metrics["step"].is_monotonic_increasing and metrics["stage"].is_monotonic_increasing):
        raise ValueError(f"Expected evaluations in order, but found another order in '{run / METRICS}'. Try a copy.")
    return metrics


def _to_know(last: Mapping[str, Any], *, finished: bool, go_on: str) -> list[str]:
    """List what a reader must know of an incomplete run."""
    sentences = []
    if not finished:
        sentences.append(f"It is not finished; the pictures show its checkpoint. Go on with: {go_on}")
    if _known(last.get("num_latents")) is not None:
        sizes = f"{last['num_latents']:.0f} latents of {last['num_categories']:.0f} categories"
        sentences.append(f"Pruning left {sizes}; the pictures show these.")
    if last["skipped"] > 0:
        sentences.append(f"{last['skipped']:.0f} steps were skipped, since their loss or gradient was not finite.")
    return sentences


def _stage_rows(metrics: pd.DataFrame, stages: list[StageStart]) -> list[dict[str, Any]]:
    """Summarize each stage: its first and last step, its time, and the objective and discrete ELBO at its end."""
    rows = []
    for number, stage in zip(metrics["stage"].unique(), stages, strict=True):
        lines = metrics[metrics["stage"] == number]
        last, before = lines.iloc[-1], metrics[metrics["step"] <= stage.step]
        seconds = last["seconds"] - (before.iloc[-1]["seconds"] if len(before) else 0.0)  # the first line may be lost
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


def _sorted_settings(
    config: TrainConfig, written: dict[str, Any], program: dict[str, Any] | None, *, seconds: float
) -> Settings:
    defaults = defaults_of(TrainConfig, MODELS[config.model].sizes) | (CHOSEN_BY_RUNS if program is None else {})
    return sort_settings(_settings(written["train"], program), defaults, written, seconds=seconds)


def _settings(written: dict[str, Any], program: dict[str, Any] | None) -> dict[str, Any]:
    """Return the settings of a run; a run of `fit` is given its data and program, and has no settings of them."""
    if program is None:
        return {name: value for name, value in written.items() if value is not None}
    used = {name: value for name, value in written.items() if value is not None and name not in OF_DATA_AND_PROGRAM}
    parts = {name: _in_short(value) for name, value in (program["arguments"] or {}).items()}
    return {"program": printable(program["name"]), **parts, **used}


def _in_short(value: Any) -> Any:
    """Return an argument of a program; a part of a program is given by its name."""
    return printable(str(value.get("name"))) if isinstance(value, dict) else value


def _data_name(written: dict[str, Any]) -> str:
    record = written.get("data")
    name = record.get("name") if isinstance(record, dict) else None
    return printable(name) if isinstance(name, str) else "own data"


def _known(value: Any) -> float | None:
    return None if pd.isna(value) else float(value)


def _arrays(trained: Trained, config: TrainConfig | None) -> dict[str, Tensor]:
    """Compute the arrays that are shown; without a configuration, as for `fit`, the initial model is unknown."""
    vae, data = trained.vae, trained.data
    initial = None if config is None else initial_model(config, data)
    with own_randomness(0), torch.no_grad():
        rows: Any = shown(vae, data)
        log_q = digits_of(guide_log_probs(vae, rows))
        arrays = pictured(vae, initial, data) | {"code_usage": log_q.exp().mean(0)}
        found = None if data.columns is not None else category_pictures(vae, shown(vae, data, NUM_CHANGED))
        return arrays if found is None else arrays | {"category_pictures": found}


def _draw(arrays: dict[str, Tensor], data: AnyDataset) -> dict[str, Figure]:
    cells: dict[str, dict[str, np.ndarray]] = {"": {name: array.numpy() for name, array in arrays.items()}}
    usage = {"code-usage": pictures.code_usage(cells, data.image_shape)}
    if data.columns is not None:  # tables have no pictures
        return usage
    return {
        "reconstructions": pictures.reconstructions(cells, data.image_shape),
        "prior-samples": pictures.prior_samples(cells, data.image_shape),
    } | usage


def _tables(arrays: dict[str, Tensor], data: AnyDataset) -> list[tuple[str, Markup]]:
    """Return rows of a table with captions, which replace pictures: test rows with reconstructions, and samples."""
    if data.columns is None:
        return []
    found, reconstructed, samples = (
        decoded(arrays[name], data.columns) for name in ("inputs", "reconstructions_end", "samples")
    )
    captions = {
        "Test rows, each above its reconstruction from the encoder\N{RIGHT SINGLE QUOTATION MARK}s most probable "
        "code: means, medians of positive columns, most probable levels.": beside(found, reconstructed),
        "The same for codes sampled from the prior.": samples.head(NUM_RECONSTRUCTIONS),
    }
    return [(text, Markup(rows.to_html(index=False, float_format="%.4g", border=0))) for text, rows in captions.items()]
