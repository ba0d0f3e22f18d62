"""The functions behind most commands: each takes a configuration, writes files and returns the text to print."""

import math
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..compare.gather import read_results
from ..compare.run import compare
from ..config.commands import ResumeConfig
from ..config.compare import CompareConfig
from ..config.gradients import AdviseConfig, GradientsConfig
from ..config.train import TrainConfig
from ..diagnostics.advise import advice_table, advise
from ..diagnostics.laboratory import gradients, gradients_table
from ..report.training import write_train_report
from ..runs.config import allowed_memory, read_compare_config, read_config
from ..runs.contents import read_compared
from ..runs.folder import command_on
from ..runs.frames import read_json_lines
from ..runs.tables import format_table, labelled, summarize
from ..runtime.distributed import is_main, processes
from ..train.files import WEIGHTS
from ..train.launch import resume, train
from ..train.result import Fit, Interrupted
from .advised import advice_page, train_by
from .errors import PartlyFailedError
from .said import Said
from .terminal import tell

#: Training has diverged if the final ELBO is lower than the initial one by this share of its absolute value.
DIVERGED = 0.1


def compare_command(config: CompareConfig) -> Said:
    """Run a comparison and return the text to print.

    Raises:
        PartlyFailedError: if a cell failed.
    """
    run = compare(config, tell=tell)
    results = read_results(run)
    content = {"run": run, "report": run / "report.html", "results": results.to_dict("records")}
    text = Said(f"{results_table(run)}\n\nreport: {run / 'report.html'}", content)
    held = results[(results["status"] == "unfinished") & (results["error"] != "")]
    failed = labelled(results[results["status"] == "failed"])
    if len(held):
        first = labelled(held).iloc[0]
        raise PartlyFailedError(
            f"Expected {len(results)} finished cells, but found {len(held)} that other processes work on: "
            f"{first['estimator']}, seed {first['seed']}, {first['error']}. Try the same command after they end.",
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


def resume_any_command(config: ResumeConfig) -> Said:
    """Resume a comparison or a single training run."""
    if "cells" not in read_config(config.run):
        if config.workers != 1 or config.scheduler is not None:
            raise ValueError("Expected workers and scheduler with a comparison, but found them with a training run.")
        return resume_command(config)
    if config.device != "cpu":
        raise ValueError("Expected a device with a training run, but found one with a comparison, which uses the CPU.")
    if config.compile:
        raise ValueError(
            "Expected compile with a training run, but found it with a comparison, which compiles nothing."
        )
    if config.log:
        raise ValueError("Expected log with a training run, but found it with a comparison, which uses no loggers.")
    written = read_compare_config(config.run)
    if (config.more, config.steps, config.seconds) != (None, None, None):
        raise ValueError(
            "Expected more, steps and seconds with a training run, but found them with a comparison, whose estimators "
            f"train equally long. Try pyro-gvae compare --epochs {2 * written.epochs} --output {config.run}."
        )
    read_compared(config.run)
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


def advise_command(config: AdviseConfig) -> Said:
    """Measure estimators and return the advice, the command to train accordingly, and the table."""
    table, advice = advise(config, tell=tell)
    text = f"{advice.in_words()}\n\nTry: {train_by(config, advice.stages)}\n\n{advice_table(table)}"
    content = {"stages": advice.stages, "command": train_by(config, advice.stages), "rows": table.to_dict("records")}
    if config.output is None:
        return Said(text, content)
    page = advice_page(config, table, advice)
    return Said(f"{text}\n\nreport: {page}", content | {"report": page})


def gradients_command(config: GradientsConfig) -> Said:
    """Measure gradients and return the table and the folder."""
    folder = gradients(config)
    rows = read_json_lines(folder / "gradients.jsonl").to_dict("records")
    content = {"folder": folder, "report": folder / "report.html", "rows": rows}
    return Said(f"{gradients_table(folder)}\n\nreport: {folder / 'report.html'}", content)


def train_command(config: TrainConfig) -> Said:
    """Train a model and return a summary of the run."""
    with _process_group(config.device):
        return _summary(*train(config, tell=tell), config.data_dir)


def resume_command(config: ResumeConfig) -> Said:
    """Resume a training run and return a summary of it."""
    was_finished = (config.run / WEIGHTS).exists()
    with _process_group(config.device):
        said = _summary(*resume(config), config.data_dir)
        if was_finished and said.text and (config.more, config.steps, config.seconds) == (None, None, None):
            further = command_on(config.run, "resume", "--more", "10", data_dir=config.data_dir)
            return said._replace(text=f"{said.text}\nIt was finished before; to train for longer: {further}")
        return said


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


def _left(last: dict[str, Any]) -> str:
    """Return a line with the sizes after pruning; empty for a run without pruning."""
    if last.get("num_latents") is None:
        return ""
    return f"pruning left {last['num_latents']} latents of {last['num_categories']} categories\n"


def _summary(run: Path, done: Fit, data_dir: Path) -> Said:
    """Write the report of a run and return the text to print.

    Raises:
        PartlyFailedError: if training diverged.
    """
    if not is_main():
        return Said("", {})
    last = done.history[-1]
    elbos = (f"{part} {last[f'{part}_elbo']:.2f}" for part in ("train", "test") if last[f"{part}_elbo"] is not None)
    text = (
        f"discrete ELBO ({last['elbo_is']}, nats per datum): {', '.join(elbos) or 'unknown'}\n"
        f"{done.steps} step{'s' * (done.steps != 1)} in {done.seconds:.1f} s, the end of {done.reason}\n{_left(last)}\n"
        f"run: {run}\n"
    )
    said = {"run": run, "steps": done.steps, "seconds": done.seconds, "ended_by": done.reason, "last": last}
    try:
        page = write_train_report(run, data_dir=data_dir)
        text, said = f"{text}report: {page}\n", said | {"report": page}
    except (OSError, ValueError) as error:  # training is done and saved, even if its page fails
        text += f"report: none: {str(error).splitlines()[0]}\n"
    before, after = done.history[0]["train_elbo"], last["train_elbo"]
    is_judged = before is not None and after is not None and math.isfinite(before)
    if is_judged and not after >= before - DIVERGED * abs(before):  # also true if it is NaN
        raise PartlyFailedError(
            f"Expected training to raise the ELBO of the training data, but found that it fell from {before:.2f} to "
            f"{after:.2f}: training diverged. Try a lower learning rate, or --clip-norm.",
            Said(text.rstrip(), said),
        )
    return Said(f"{text}next: {command_on(run, 'evaluate', data_dir=data_dir)}", said)
