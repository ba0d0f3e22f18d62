"""The functions behind the commands: each takes a configuration, writes files and returns the text to print."""

import math
import sys
import webbrowser
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pandas as pd
import torch

from ..compare.gather import read_results
from ..compare.run import compare
from ..config.commands import (
    EncodeConfig,
    EvaluateConfig,
    ExploreConfig,
    GapsConfig,
    ModelConfig,
    ReconstructConfig,
    ReportConfig,
    ResumeConfig,
    SampleConfig,
)
from ..config.compare import CompareConfig
from ..config.gradients import AdviseConfig, GradientsConfig
from ..config.train import TrainConfig
from ..config.units import in_bytes
from ..data.dataset import fixed_part
from ..diagnostics.advise import advice_table, advise
from ..diagnostics.laboratory import gradients, gradients_table
from ..evaluate.generate import encode, numbers_of, reconstruct, sample
from ..evaluate.metrics import evaluate
from ..evaluate.tables import evaluation_table
from ..report.comparison import write_report
from ..report.explorer import explorer_if_possible, write_explorer
from ..report.gaps import gaps_table, run_gaps
from ..report.training import write_train_report
from ..runs.config import allowed_memory, is_train_run, read_compare_config, read_config
from ..runs.contents import read_compared
from ..runs.files import write_json
from ..runs.folder import check_writable
from ..runs.frames import write_csv
from ..runs.tables import format_table, labelled, summarize
from ..runtime.distributed import is_main, processes
from ..train.launch import resume, train
from ..train.result import Fit, Interrupted
from ..train.trained import Trained, load_model
from .advised import advice_page, train_by
from .errors import PartlyFailedError
from .files import save, save_png

#: Training has diverged if the ELBO ends this part of its size below that of the untrained networks.
DIVERGED = 0.1


def evaluate_command(config: EvaluateConfig) -> str:
    """Evaluate a model, write NAME.json, NAME-metrics.csv and NAME-latents.csv, and return the table to print."""
    trained, folder = _load(config, "evaluation")
    found = evaluate(
        trained.vae,
        trained.data,
        num_data=config.num_data,
        num_particles=config.particles,
        evidence=config.evidence,
        max_memory=in_bytes(config.max_memory),
        seed=config.random_seed,
    )
    write_json(folder / f"{trained.name}.json", found.as_json())
    write_csv(folder / f"{trained.name}-metrics.csv", found.metrics)
    write_csv(folder / f"{trained.name}-latents.csv", found.latents)
    return f"{trained.name}\n{evaluation_table(found)}\n\nfiles: {folder / trained.name}*"


def encode_command(config: EncodeConfig) -> str:
    """Write category numbers (M, N), and values (M, L) of continuous latents, as CSV and safetensors, with labels."""
    trained, folder = _load(config, "codes")
    part = fixed_part(trained.data, config.part, config.num_data)
    with torch.random.fork_rng():
        torch.manual_seed(config.random_seed)
        found = encode(trained.vae, part.x, config.kind, max_memory=in_bytes(config.max_memory))
    numbers = numbers_of(found)
    tensors = dict(numbers) if isinstance(found, dict) else {"codes": numbers["latent"]}
    tensors |= {} if part.labels is None else {"labels": part.labels}
    columns = {f"{name}_{n}": column for name, own in numbers.items() for n, column in enumerate(own.T.numpy())}
    frame = pd.DataFrame(columns)
    if part.labels is not None:
        frame["label"] = part.labels.numpy()
    path = folder / f"{trained.name}-{config.part}-{config.kind}"
    save(path, tensors)
    write_csv(path.with_name(f"{path.name}.csv"), frame)
    codes = torch.cat([own for own in numbers.values() if not own.is_floating_point()], 1)
    used = len(codes.unique(dim=0))
    return (
        f"{frame.head().to_string()}\n{len(codes)} images, {used} different codes.\n\nfiles: {path}.csv, .safetensors"
    )


def reconstruct_command(config: ReconstructConfig) -> str:
    """Write images and their reconstructions; in the picture, each row of images is followed by its reconstructions."""
    trained, folder = _load(config, "reconstructions")
    x = fixed_part(trained.data, config.part, config.num_data).x
    with torch.random.fork_rng():
        torch.manual_seed(config.random_seed)
        found = reconstruct(trained.vae, x, config.kind, max_memory=in_bytes(config.max_memory))
    path = folder / f"{trained.name}-{config.part}-{config.kind}"
    save(path, {"inputs": x, "reconstructions": found})
    shown = (trained.vae.observation.to_pixels(images).split(10) for images in (x, found))
    rows = [row for pair in zip(*shown, strict=True) for row in pair]
    save_png(path, rows, trained.data.image_shape)
    error = (x - found).square().sum(-1).mean().item()
    return f"{len(x)} images, mean squared distance {error:.3f} per image.\n\nfiles: {path}.png, .safetensors"


def sample_command(config: SampleConfig) -> str:
    """Write images generated from codes that are sampled from the prior."""
    trained, folder = _load(config, "samples")
    with torch.random.fork_rng():
        torch.manual_seed(config.random_seed)
        found = sample(trained.vae, config.num_samples, pixels=config.pixels)
    path = folder / f"{trained.name}-{'pixels' if config.pixels else 'means'}"
    save(path, {"samples": found})
    save_png(path, list(trained.vae.observation.to_pixels(found).split(10)), trained.data.image_shape)
    return f"{len(found)} samples.\n\nfiles: {path}.png, .safetensors"


def _load(config: ModelConfig, kind: str) -> tuple[Trained, Path]:
    trained = load_model(config.run, config.estimator, config.seed, data_dir=config.data_dir)
    folder = config.output or config.run / kind
    check_writable(folder)
    return trained, folder


def compare_command(config: CompareConfig) -> str:
    """Run a comparison and return the text to print.

    Raises:
        PartlyFailedError: if a cell failed.
    """
    run = compare(config)
    text = f"{results_table(run)}\n\nreport: {run / 'report.html'}"
    results = read_results(run)
    held = results[(results["status"] == "unfinished") & (results["error"] != "")]
    failed = labelled(results[results["status"] == "failed"])
    if len(held):
        first = labelled(held).iloc[0]
        raise PartlyFailedError(
            f"Expected {len(results)} finished cells, but found {len(held)} that other processes work on: "
            f"{first['estimator']}, seed {first['seed']}, {first['error']}. Try the same command when they have ended.",
            text,
        )
    if len(failed):
        first = failed.iloc[0]
        raise PartlyFailedError(
            f"Expected {len(results)} finished cells, but found that {len(failed)} failed, first "
            f"{first['estimator']}, seed {first['seed']}: {first['error']}",
            text,
        )
    return text


def resume_any_command(config: ResumeConfig) -> str:
    """Resume a comparison or a single training run."""
    if "cells" not in read_config(config.run):
        if config.workers != 1 or config.scheduler is not None:
            raise ValueError("Expected workers and scheduler with a comparison, but found them with a training run.")
        return resume_command(config)
    if config.device != "cpu":
        raise ValueError("Expected a device with a training run, but found one with a comparison, which has the CPU.")
    if config.compile:
        raise ValueError(
            "Expected compile with a training run, but found it with a comparison, which compiles nothing."
        )
    read_compared(config.run)
    written = read_compare_config(config.run)
    here = replace(
        written,
        output=config.run,
        data_dir=config.data_dir,
        download=config.download,
        max_memory=allowed_memory(written.max_memory) if config.max_memory is None else config.max_memory,
    )
    if config.scheduler is not None:
        here = replace(here, backend="dask", scheduler=config.scheduler)
    return compare_command(replace(here, workers=config.workers))


def results_table(run: Path) -> str:
    """Format the means of the finished cells as a table."""
    results = read_results(run)
    final = labelled(results[results["status"] == "finished"])
    return format_table(summarize(final)) if len(final) else "No cell has finished."


def advise_command(config: AdviseConfig) -> str:
    """Measure estimators and return the advice, the command that follows it, and the table."""
    table, advice = advise(config)
    text = f"{advice.in_words()}\n\nTry: {train_by(config, advice.stages)}\n\n{advice_table(table)}"
    return text if config.output is None else f"{text}\n\nreport: {advice_page(config, table, advice)}"


def gradients_command(config: GradientsConfig) -> str:
    """Measure gradients and return the table and the folder."""
    folder = gradients(config)
    return f"{gradients_table(folder)}\n\nreport: {folder / 'report.html'}"


def gaps_command(config: GapsConfig) -> str:
    """Measure the gaps of a run and return the table and the figure's path."""
    max_memory = in_bytes(config.max_memory)
    table = run_gaps(
        config.run,
        num_data=config.num_data,
        num_particles=config.num_particles,
        max_memory=max_memory,
        data_dir=config.data_dir,
    )
    return f"{gaps_table(table)}\n\nreport: {config.run / 'gaps.html'}"


def report_command(config: ReportConfig) -> str:
    """Write the report of a run folder of train or compare, and the explorer that it links to."""
    explorer_if_possible(config.run, data_dir=config.data_dir)
    if is_train_run(config.run):
        return f"report: {write_train_report(config.run, data_dir=config.data_dir)}"
    return f"report: {write_report(config.run)}"


def explore_command(config: ExploreConfig) -> str:
    """Write the explorer of a run folder, and open it if asked."""
    page = write_explorer(config.run, data_dir=config.data_dir, output=config.output)
    if config.open:
        webbrowser.open(page.absolute().as_uri())
    return f"explorer: {page}"


def train_command(config: TrainConfig) -> str:
    """Train a model and return a summary of the run."""
    with _process_group(config.device):
        return _summary(*train(config))


def resume_command(config: ResumeConfig) -> str:
    """Resume a training run and return a summary of it."""
    with _process_group(config.device):
        return _summary(
            *resume(
                config.run,
                data_dir=config.data_dir,
                download=config.download,
                device=config.device,
                compile=config.compile,
                max_memory=config.max_memory,
            )
        )


@contextmanager
def _process_group(device: str) -> Iterator[None]:
    """Run as one process of a torchrun group; only rank 0 reports an interruption."""
    with processes(device):
        try:
            yield
        except Interrupted as interrupt:
            if is_main():
                raise
            sys.exit(128 + interrupt.signal)


def _summary(run: Path, done: Fit) -> str:
    """Return what to print of a run.

    Raises:
        PartlyFailedError: if training diverged.
    """
    if not is_main():
        return ""
    last = done.history[-1]
    elbos = (f"{part} {last[f'{part}_elbo']:.2f}" for part in ("train", "test") if last[f"{part}_elbo"] is not None)
    text = (
        f"discrete ELBO ({last['elbo_is']}, nats per datum): {', '.join(elbos) or 'unknown'}\n"
        f"{done.steps} steps in {done.seconds:.1f} s, the end of {done.reason}\n\nrun: {run}"
    )
    before, after = done.history[0]["train_elbo"], last["train_elbo"]
    is_judged = before is not None and after is not None and math.isfinite(before)
    if is_judged and not after >= before - DIVERGED * abs(before):  # nor is it NaN
        raise PartlyFailedError(
            f"Expected training to raise the ELBO of the training data, but found that it fell from {before:.2f} to "
            f"{after:.2f}: training diverged. Try a lower learning rate, or --clip-norm.",
            text,
        )
    return text
