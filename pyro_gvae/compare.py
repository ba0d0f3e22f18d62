"""The main job: the same network, weights and batches, trained by several estimators, judged as discrete models."""

import copy
import json
import platform
import shlex
import sys
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm import tqdm

from . import exact
from .config import CompareConfig
from .data import Dataset, epoch_batches
from .datasets import load
from .estimators import Estimator, estimator
from .evaluate import code_usage, discrete_scores, own_objective
from .generate import reconstruct, sample
from .models import CategoricalVAE
from .report import write_report
from .results import append_json_line, cell_path, new_run_folder, read_json_lines, replacing, write_csv, write_json
from .step import make_step
from .tables import final_rows, format_table, summarize

#: Images shown in the report: reconstructions of the first test images, and prior samples.
NUM_RECONSTRUCTIONS, NUM_SAMPLES = 10, 25
#: Train images on which objective and discrete ELBO are compared; enough for a mean, cheap enough to repeat.
NUM_TRAIN_EVALUATED = 2000
#: Evaluations take several exact sums each; longer ones would take longer than the training.
MOST_SECONDS = 60


def compare(config: CompareConfig) -> Path:
    """Run the comparison and write its run folder, the report included.

    Args:
        config: what to compare.

    Returns:
        The run folder.

    Raises:
        ValueError: if a setting, the data or the run folder is unusable; nothing has been written then.
        OSError: if data files are absent or the folder cannot be written.
    """
    data = load(config.dataset, data_dir=config.data_dir, download=config.download, binarize=config.binarize)
    data_dim = data.train.shape[1]
    if config.batch_size > len(data.train):
        raise ValueError(f"Expected a batch_size of at most {len(data.train)} images, but found {config.batch_size}.")
    _check_codes(config, data)
    run = new_run_folder(config.output, prefix="compare")
    write_json(run / "config.json", _provenance(config, data))
    try:
        for seed in config.seeds:
            initial = _initial_model(config, data_dim, seed)
            for name in config.estimators:
                with torch.random.fork_rng():
                    torch.manual_seed(seed)
                    _run_cell(run, config, data, copy.deepcopy(initial), name, seed)
    finally:  # an interrupted comparison reports what it finished
        if (run / "metrics.jsonl").exists():
            write_csv(run / "results.csv", final_rows(read_json_lines(run / "metrics.jsonl")))
            write_report(run)
    return run


def compare_command(config: CompareConfig) -> str:
    """The comparison as a command: what is said in the end."""
    run = compare(config)
    return f"{results_table(run)}\n\nreport: {run / 'report.html'}"


def _check_codes(config: CompareConfig, data: Dataset) -> None:
    """Refuse, before a folder is made, codes that are too many to judge a model by."""
    vae = _initial_model(config, data.test.shape[1], seed=0)
    cost = exact.cost(vae, data.test[: config.batch_size], max_memory=_bytes(config))
    if cost.seconds > MOST_SECONDS:
        raise ValueError(
            f"Expected codes that can be summed in {MOST_SECONDS} seconds, but found S = K^N = {config.num_categories}^"
            f"{config.num_latents} = {cost.num_codes:,}, which take about {cost.seconds:.2g} seconds a sum. Try fewer "
            "latents or categories."
        )


def load_cell(run: Path, name: str, seed: int) -> tuple[CategoricalVAE, Dataset]:
    """The trained model of one (estimator, seed) of a run folder, and its data.

    Raises:
        ValueError: if the run folder or its weights cannot be read.
        OSError: if the data files are absent.
    """
    try:
        written = json.loads((run / "config.json").read_text(encoding="utf-8"))
        config = CompareConfig.from_json(written)
        weights = load_file(weights_path(run, name, seed))
    except (OSError, json.JSONDecodeError, SafetensorError, TypeError) as error:
        raise ValueError(
            f"Expected '{run}' to hold the weights of '{name}', seed {seed}, but found: {error}."
        ) from error
    data = load(config.dataset, data_dir=config.data_dir, binarize=config.binarize)
    vae = _initial_model(config, data.test.shape[1], seed)
    try:
        vae.load_state_dict(weights)
    except RuntimeError as error:
        raise ValueError(f"Expected the weights in '{run}' to fit its config.json, but found others.") from error
    return vae, data


def weights_path(run: Path, name: str, seed: int) -> Path:
    """Where the weights of one (estimator, seed) lie in a run folder."""
    return run / "weights" / f"{name}-seed{seed}.safetensors"


def results_table(run: Path) -> str:
    """The table that ends the terminal's output."""
    return format_table(summarize(final_rows(read_json_lines(run / "metrics.jsonl"))))


def _bytes(config: CompareConfig) -> float | None:
    return None if config.max_memory is None else config.max_memory * 1e9


def _provenance(config: CompareConfig, data: Dataset) -> dict[str, Any]:
    packages = ("pyro-gvae", "torch", "pyro-ppl", "numpy")
    return config.as_json() | {
        "image_shape": data.image_shape,
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "versions": {"python": platform.python_version()} | {name: version(name) for name in packages},
    }


def _initial_model(config: CompareConfig, data_dim: int, seed: int) -> CategoricalVAE:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return CategoricalVAE(
            data_dim,
            config.num_latents,
            config.num_categories,
            config.hidden,
            temperature=config.temperature,
            prior_temperature=config.prior_temperature,
        )


def make_estimator(name: str, config: CompareConfig) -> Estimator:
    """The named estimator with those of the configuration's options that it has."""
    if name == "gumbel-softmax":
        return estimator(name, kl=config.kl)
    return estimator(name, max_memory=_bytes(config)) if name.startswith("exact") else estimator(name)


def _run_cell(run: Path, config: CompareConfig, data: Dataset, vae: CategoricalVAE, name: str, seed: int) -> None:
    """Train one model by one estimator: a line in metrics.jsonl for each evaluation, at the end arrays for pictures."""
    chosen = make_estimator(name, config)
    step = make_step(vae, chosen, lr=config.learning_rate)
    start_images = reconstruct(vae, data.test[:NUM_RECONSTRUCTIONS])
    num_batches = -(-len(data.train) // config.batch_size)
    total = config.epochs * num_batches
    stops = {round(total * i / config.evaluations) for i in range(1, config.evaluations + 1)}
    seconds = last_seconds = 0.0
    losses: list[Tensor] = []

    def record(number: int) -> None:
        scores = _evaluate(config, data, vae, chosen, seed=number)
        line = {"estimator": name, "seed": seed, "epoch": number / num_batches, "step": number, "seconds": seconds}
        line["train_objective"] = -torch.stack(losses).mean().item() if losses else None
        line["steps_per_second"] = len(losses) / (seconds - last_seconds) if losses else None
        append_json_line(run / "metrics.jsonl", line | scores | {"temperature": vae.temperature.item()})
        bar.set_postfix_str(f"test ELBO {scores['test_elbo']:.2f}, log p(x) {scores['test_log_evidence']:.2f}")

    with tqdm(total=total, desc=f"{name} seed {seed}", unit="step") as bar:
        record(0)
        for number, x in enumerate(_batches(config, data, seed), start=1):
            start = time.perf_counter()
            losses.append(step(x))
            seconds += time.perf_counter() - start
            bar.update()
            if number in stops:
                record(number)
                losses.clear()
                last_seconds = seconds
    _save_cell(run, config, data, vae, name=name, seed=seed, start_images=start_images)


def _evaluate(
    config: CompareConfig, data: Dataset, vae: CategoricalVAE, chosen: Estimator, *, seed: int
) -> dict[str, float]:
    shown = next(epoch_batches(data, min(NUM_TRAIN_EVALUATED, len(data.train)), seed=0, epoch=0))
    train = discrete_scores(vae, shown, max_memory=_bytes(config))
    test = discrete_scores(vae, data.test, max_memory=_bytes(config))
    with torch.random.fork_rng():  # how often a run is evaluated must not change what it learns
        torch.manual_seed(seed)
        objective = own_objective(vae, chosen, data.test)
    return {
        "train_elbo": train.elbo,
        "train_log_evidence": train.log_evidence,
        "test_objective": objective,
        "test_elbo": test.elbo,
        "test_log_evidence": test.log_evidence,
    }


def _save_cell(
    run: Path, config: CompareConfig, data: Dataset, vae: CategoricalVAE, *, name: str, seed: int, start_images: Tensor
) -> None:
    shown = data.test[:NUM_RECONSTRUCTIONS]
    arrays = {
        "inputs": shown,
        "reconstructions_start": start_images,
        "reconstructions_end": reconstruct(vae, shown),
        "samples": sample(vae, NUM_SAMPLES),
        "code_usage": code_usage(vae, data.test, max_memory=_bytes(config)),
    }
    for path, tensors in ((weights_path(run, name, seed), vae.state_dict()), (cell_path(run, name, seed), arrays)):
        with replacing(path) as temporary:
            save_file({key: value.contiguous() for key, value in tensors.items()}, temporary)


def _batches(config: CompareConfig, data: Dataset, seed: int) -> Iterator[Tensor]:
    for epoch in range(config.epochs):
        yield from epoch_batches(data, config.batch_size, seed=seed, epoch=epoch)
