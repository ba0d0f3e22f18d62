"""Train one cell of a comparison in its own folder, evaluate it as a discrete model, and make its pictures."""

from pathlib import Path
from typing import Any, NamedTuple

import torch

from .. import exact
from ..config.models import MODELS
from ..config.train import TrainConfig
from ..config.units import in_bytes
from ..data.labels import judged
from ..evaluate.code_statistics import guide_log_probs
from ..evaluate.collapsed import collapsed_importance_weighted
from ..evaluate.generate import digits_of, pictured
from ..evaluate.metrics import code_usage, own_objective
from ..runs.checkpoint import save_tensors
from ..runs.config import write_config
from ..runs.folder import PICTURES
from ..runs.inside import make_folder, staying_inside
from ..runs.tables import NUM_DRAWS
from ..runtime.rng import derived_seed, own_randomness
from ..train.fit import fit
from ..train.setup import initial_model, load_data
from ..train.source import source_of
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
    data = load_data(config)
    vae = initial_model(config, data)
    run = folder.parents[1]
    make_folder(run)
    with staying_inside(run):
        write_config(folder, {"train": config.as_json()} | source_of(config, data))
        fit(vae, data, config, output=folder, resume=True, progress=False, measure=_measure)
        with own_randomness(derived_seed("pictures", config.seed)):
            arrays = pictured(vae, initial_model(config, data), data)
            test: Any = judged(vae, data.test, data.test_labels)
            if MODELS[config.model].has_gaussian:  # their exact posterior would be an integral
                arrays["code_usage"] = digits_of(guide_log_probs(vae, test)).exp().mean(0)
            else:
                arrays["code_usage"] = digits_of(code_usage(vae, test, max_memory=in_bytes(config.max_memory)))
        save_tensors(folder / PICTURES, arrays)


@torch.no_grad()
def _measure(training: Training) -> dict[str, Any]:
    """Evaluate what a comparison reports in addition to the ELBO, which every training run reports."""
    vae, config = training.vae, training.config
    test: Any = training.given.test
    assert test is not None
    parts: dict[str, Any] = {"train": training.watched, "test": test}
    found: dict[str, Any] = {"test_objective": own_objective(vae, training.estimator, test)}
    max_memory = in_bytes(config.max_memory)
    for part, x in parts.items():
        if MODELS[config.model].has_gaussian:
            with own_randomness(0):
                bound = collapsed_importance_weighted(vae, x, NUM_DRAWS, max_memory=max_memory).bound
            found[f"{part}_collapsed_iwae_bound"] = bound.mean().item()
        else:
            found[f"{part}_log_evidence"] = exact.log_evidence(vae, x, max_memory=max_memory).mean().item()
    return found
