"""The gradient laboratory: measure (model, epoch, estimator, temperature) cells, and write tables and figures."""

import copy
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypedDict

import pandas as pd
import torch
from torch import Tensor

from .. import exact
from ..config.checks import MOST_OPERATIONS
from ..config.gradients import GradientsConfig
from ..config.json import plain_settings
from ..config.units import codes_in_words, in_bytes
from ..data.batches import check_batch_size, epoch_batches
from ..data.columns import Data, first
from ..data.dataset import Dataset
from ..data.labels import given
from ..estimators import estimator
from ..models.base import VAE
from ..programs.batches import Batch
from ..report.gradients import CELL, gradients_text, refusals, replacements, write_gradients_report
from ..runs.config import earlier_run, write_config
from ..runs.files import append_json_line, write_json
from ..runs.folder import new_run_folder
from ..runs.frames import read_json_lines, write_csv
from ..runtime.progress import Progress
from ..runtime.rng import seeded
from ..train.setup import initial_model, load_data, widths
from ..train.step import make_step
from ..train.trained import load_model, trained_models
from .candidates import Candidate, candidates
from .gradient_report import Setup, make_setup, measure, unbiased_candidates
from .probe import Probe, Wrt, make_problem
from .references import exact_reference
from .reinmax import reinmax_row
from .timing import make_clock

#: Settings that may change when a folder is continued: they only choose cells, or say where files are.
CHANGEABLE = {"estimators", "temperatures", "wrt", "epochs", "data_dir", "download", "max_memory", "output"}


class Line(TypedDict):
    """The fields that identify a line of gradients.jsonl."""

    trained_by: str
    seed: int
    epoch: int
    estimator: str
    temperature: float | None
    wrt: str


class Snapshot(NamedTuple):
    """A model at one epoch of its training."""

    trained_by: str
    seed: int
    epoch: int


def gradients(config: GradientsConfig) -> Path:
    """Measure the cells that the folder lacks, write a JSON line for each, then its table and figures.

    Args:
        config: what to measure.

    Returns:
        The folder, with `gradients.jsonl`, `gradients.csv`, `gradients.json`, `figures/` and `report.html`.

    Raises:
        ValueError: if a setting, the data or the folder is invalid, or there are too many codes for the exact gradient.
        OSError: if data files are absent or the folder cannot be written.
    """
    data = _dataset(config)
    guessed = None if data is None else widths(replace(config, hidden=None).training(), data)
    config = replace(config, hidden=guessed if config.hidden is None else config.hidden)
    folder = _folder(config, guessed, partial(_check_codes, config, data))
    lines = folder / "gradients.jsonl"
    done = set(map(_key, read_json_lines(lines, Line).to_dict("records"))) if lines.exists() else set()
    grid = candidates(config.estimators, temperatures=config.temperatures, **_options(config))
    cells = [(kind, candidate) for kind in config.wrt for candidate in grid]
    missing = {
        snapshot: [(kind, one) for kind, one in cells if _cell_key(snapshot, one, kind) not in done]
        for snapshot in _snapshots(config)
    }
    total = sum(map(len, missing.values()))
    try:
        with Progress(total=total, desc="gradients", unit="cell") as bar:
            for snapshot, vae, x in _models(config, data, [snapshot for snapshot, left in missing.items() if left]):
                for row in _rows(config, vae, x, missing[snapshot]):
                    append_json_line(lines, snapshot._asdict() | row)
                    bar.set_postfix_str(f"{row['estimator']}, epoch {snapshot.epoch}")
                    bar.update()
    finally:  # show what an interrupted call has measured, too
        if lines.exists():
            _write(folder, read_json_lines(lines, Line))
    return folder


def _rows(config: GradientsConfig, vae: VAE, x: Batch, cells: list[tuple[Wrt, Candidate]]) -> Iterator[dict[str, Any]]:
    problem = make_problem(vae, x, dtype=torch.float64 if config.double else None)
    if config.protocol == "reinmax":
        truth = estimator("exact", max_memory=in_bytes(config.max_memory))
        reference = exact_reference(problem, truth, "logits", term="reconstruction", seed=config.seed)
        for _, one in cells:
            yield reinmax_row(problem, one, reference, num_samples=config.num_samples, seed=config.seed)
        return
    clock = make_clock(problem)
    truths = unbiased_candidates(problem, MOST_OPERATIONS, seed=config.seed, **_options(config))
    samples = {"logits": config.num_samples, "parameters": config.num_parameter_samples}
    setups: dict[str, Setup] = {}
    for kind, one in cells:
        if kind not in setups:
            setups[kind] = make_setup(problem, kind, truths, samples[kind], clock, seed=config.seed)
        yield measure(setups[kind], one)


def _snapshots(config: GradientsConfig) -> list[Snapshot]:
    if config.run is None:
        return [Snapshot(config.train_by, config.seed, epoch) for epoch in sorted(config.epochs)]
    found = [Snapshot(which.estimator, which.seed, round(which.epoch)) for which in trained_models(config.run)]
    if not found:
        raise ValueError(f"Expected a finished cell in '{config.run}', but found none. Try pyro-gvae compare.")
    return found


def _models(
    config: GradientsConfig, data: Dataset | None, snapshots: list[Snapshot]
) -> Iterator[tuple[Snapshot, VAE, Data]]:
    """Yield the models in order; train a new model only to the last epoch that is needed."""
    if data is None:
        assert config.run is not None
        for snapshot in snapshots:
            found = load_model(config.run, snapshot.trained_by, snapshot.seed, data_dir=config.data_dir)
            held = given(found.vae, found.data)
            yield snapshot, found.vae, first(held.watched if held.test is None else held.test, config.num_data)
        return
    vae = initial_model(config.training(), data)
    held = given(vae, data)
    [trainer] = candidates([config.train_by], **_options(config))
    step: Callable[[Any], Tensor] | None = None
    trained = 0
    for snapshot in snapshots:
        for epoch in range(trained, snapshot.epoch):
            step = step or make_step(vae, trainer.make(), lr=config.learning_rate)
            order: Any = {"seed": config.seed, "epoch": epoch, "labels": held.labels}
            batches = list(epoch_batches(data, config.batch_size, **order))
            with seeded(config.seed + epoch):
                for x in Progress(batches, desc=f"epoch {epoch + 1}", unit="step", leave=False):
                    step(x)
        trained = snapshot.epoch
        yield snapshot, copy.deepcopy(vae), first(held.watched, config.num_data)


def _dataset(config: GradientsConfig) -> Dataset | None:
    """Load the data of a new model; return None for a run, which has its own data."""
    if config.run is not None:
        return None
    data = load_data(config.training())
    check_batch_size(config.batch_size, len(data.train))
    return data


def _check_codes(config: GradientsConfig, data: Dataset | None) -> None:
    """Check, before a folder is created, that the exact gradient can be computed.

    Raises:
        ValueError: if there are too many codes, or the reconstruction term is requested for latents that depend on each
            other.
    """
    if data is None:
        _snapshots(config)
        return
    vae = initial_model(config.training(), data)
    x = first(given(vae, data).watched, config.num_data)
    cost = exact.sum_cost(vae, x, max_memory=in_bytes(config.max_memory))
    if cost.operations > MOST_OPERATIONS:
        num_latents = config.num_latents * config.num_layers
        raise ValueError(
            f"Expected codes that can be summed in {MOST_OPERATIONS:g} operations, about a minute on two cores, but "
            f"found S = K^N = {config.num_categories}^{num_latents} = "
            f"{codes_in_words(num_latents, config.num_categories)}, which take {cost.operations:.2g} per sum. Try "
            "fewer latents or categories, or pyro-gvae advise, which needs no exact gradient."
        )
    if config.protocol == "reinmax":
        Probe(make_problem(vae, x), estimator("exact"), term="reconstruction")  # raises the error


def _folder(config: GradientsConfig, guessed: tuple[int, ...] | None, check: Callable[[], None]) -> Path:
    """Return the folder of an earlier call with the same settings, or check the settings and create a new one."""
    settings = plain_settings(config)
    free = CHANGEABLE | ({"hidden"} if guessed is None else set())  # a run has networks of its own
    earlier = earlier_run(config.output, settings, free=free, known_by="protocol")
    if earlier is not None:
        return earlier
    check()
    folder = new_run_folder(config.output, prefix="gradients")
    write_config(folder, settings if guessed is None else settings | {"default_hidden": list(guessed)})
    return folder


def _write(folder: Path, table: pd.DataFrame) -> None:
    write_csv(folder / "gradients.csv", table)
    write_json(folder / "gradients.json", table.to_dict("records"))
    write_gradients_report(folder, table)


def _cell_key(snapshot: Snapshot, one: Candidate, kind: str) -> tuple[Any, ...]:
    return _key(snapshot._asdict() | {"estimator": one.name, "temperature": one.temperature, "wrt": kind})


def _key(row: dict[Any, Any]) -> tuple[Any, ...]:
    return tuple(None if pd.isna(row[name]) else row[name] for name in CELL)


def _options(config: GradientsConfig) -> dict[str, Any]:
    return {"kl": config.kl, "max_memory": in_bytes(config.max_memory)}


def gradients_table(folder: Path) -> str:
    """Format the rows for the terminal, each number with its standard error if it has one."""
    table = read_json_lines(folder / "gradients.jsonl", Line)
    notes = (
        replacements(table)
        + refusals(table)
        + [
            f"{name} approximates {what}."
            for name, what in table.get(["estimator", "approximates"], pd.DataFrame()).drop_duplicates().dropna().values
        ]
    )
    return "\n".join([gradients_text(table).to_string(index=False), *notes])
