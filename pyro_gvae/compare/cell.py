"""Train one cell of a comparison in its own folder, evaluate it as a discrete model, and make its pictures."""

from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import exact
from ..config.models import MODELS
from ..config.train import TrainConfig
from ..config.units import in_bytes
from ..data.columns import mean_of
from ..data.labels import given, shown
from ..evaluate.code_statistics import guide_log_probs
from ..evaluate.collapsed import collapsed_importance_weighted
from ..evaluate.generate import digits_of, pictured
from ..evaluate.metrics import code_usage, own_objective
from ..models.base import VAE
from ..report.tiles import NUM_CHANGED, category_pictures
from ..runs.checkpoint import save_tensors
from ..runs.config import write_config
from ..runs.files import remove
from ..runs.folder import PICTURES
from ..runs.inside import make_folder, staying_inside
from ..runs.tables import NUM_DRAWS
from ..runtime.rng import derived_seed, own_randomness
from ..train.fit import fit
from ..train.monitor import AT_A_TIME
from ..train.setup import initial_model
from ..train.source import read_again, source_of
from ..train.training import Training


class Job(NamedTuple):
    """A cell to train: its folder and its configuration."""

    folder: Path
    config: TrainConfig


def train_cell(job: Job) -> None:
    """Train a cell, from its checkpoint if there is one; its pictures are written last and mark it as finished.

    Raises:
        ValueError: if data or configuration are invalid, or too many steps were not finite.
        OSError: if data files are absent or the folder cannot be written.
    """
    folder, config = job
    run = folder.parents[1]
    data = read_again(run, config)
    vae = initial_model(config, data)
    make_folder(run)
    with staying_inside(run):
        remove(folder / PICTURES)  # of a cell that is trained for longer
        write_config(folder, {"train": config.as_json()} | source_of(config, data))
        fit(vae, data, config, output=folder, resume=True, progress=False, measure=_measure)
        with own_randomness(derived_seed("pictures", config.seed)):
            arrays = pictured(vae, initial_model(config, data), data)
            test: Any = given(vae, data).test
            arrays["code_usage"] = mean_of(partial(_usage, vae, config), test, AT_A_TIME)
            if data.columns is None and (found := category_pictures(vae, shown(vae, data, NUM_CHANGED))) is not None:
                arrays["category_pictures"] = found
        save_tensors(folder / PICTURES, arrays)


def _usage(vae: VAE, config: TrainConfig, x: Any) -> Tensor:
    """Return how often data have each category, (N, K): under the posterior, or under the guide beside a Gaussian."""
    if MODELS[config.model].has_gaussian:  # given which the posterior of codes is no sum
        return digits_of(guide_log_probs(vae, x)).exp().mean(0)
    return digits_of(code_usage(vae, x, max_memory=in_bytes(config.max_memory)))


@torch.no_grad()
def _measure(training: Training) -> dict[str, Any]:
    """Evaluate what a comparison reports in addition to the ELBO, which every training run reports."""
    vae, config, test = training.vae, training.config, training.given.test
    assert test is not None
    name = "collapsed_iwae_bound" if MODELS[config.model].has_gaussian else "log_evidence"
    found = {"test_objective": mean_of(partial(own_objective, vae, training.estimator), test, AT_A_TIME)}
    for part, x in {"train": training.watched, "test": test}.items():
        found[f"{part}_{name}"] = mean_of(partial(_log_evidence, vae, config), x, AT_A_TIME)
    return found


def _log_evidence(vae: VAE, config: TrainConfig, x: Any) -> float:
    """Return the mean of log p(x), or of a bound of it beside a Gaussian, in nats per datum."""
    max_memory = in_bytes(config.max_memory)
    if not MODELS[config.model].has_gaussian:
        return exact.log_evidence(vae, x, max_memory=max_memory).mean().item()
    with own_randomness(0):
        return collapsed_importance_weighted(vae, x, NUM_DRAWS, max_memory=max_memory).bound.mean().item()
