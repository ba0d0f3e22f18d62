"""`--dry-run`: run the checks of `train` or `compare`, and show what the command would do. Nothing is written."""

from pathlib import Path
from typing import Any

from ..compare import run as comparison
from ..compare.gather import is_finished
from ..config.compare import CompareConfig
from ..config.models import code_in_words
from ..config.train import TrainConfig
from ..models.widths import networks_in_words
from ..runs.folder import check_writable
from ..train.launch import prepare
from ..train.plan import RunPlan, StagePlan, plan_run
from ..train.setup import initial_model
from .said import Said
from .terminal import listed, tell

NOTHING = "Dry run: nothing was trained or written."


def plan_train_command(config: TrainConfig) -> Said:
    """Return what `train` would do."""
    config, vae, data = prepare(config, tell=tell)
    output = _checked(config.output, "train")
    plan = plan_run(vae, data, config)
    networks = networks_in_words(vae)
    lines = {
        "model": f"{_code(config)}; {plan.num_weights:,} weights",
        "networks": networks,
        "an epoch": f"{plan.steps_per_epoch:,} steps with {config.batch_size} data each",
        **{stage.stage: _stage_in_words(stage) for stage in plan.stages},
        "evaluations": _evaluations_in_words(plan),
        "compiled": f"{'yes' if plan.compilation.is_compiled else 'no'}, {plan.compilation.why}",
        "altogether": _seconds_in_words(plan.seconds),
        "output": output,
    }
    return Said(f"{listed(lines)}\n\n{NOTHING}", _content(plan) | {"networks": networks, "output": output})


def plan_compare_command(config: CompareConfig) -> Said:
    """Return what `compare` would do; cells that differ only in the seed take equally long."""
    config, data, cells, earlier, _ = comparison.prepare(config, tell=tell)
    output = _checked(config.output, "compare")
    of_one_seed = [cell for cell in cells if cell.seed == cells[0].seed]
    models = {cell.label: initial_model(cell.train, data) for cell in of_one_seed}
    plans = {cell.label: plan_run(models[cell.label], data, cell.train) for cell in of_one_seed}
    left = [cell for cell in cells if earlier is None or not is_finished(earlier, cell)]
    each = [plans[cell.label].seconds for cell in left]
    seconds = None if None in each else sum(one or 0.0 for one in each)
    kinds = dict.fromkeys(_code(cell.train) for cell in of_one_seed)
    networks = dict.fromkeys(map(networks_in_words, models.values()))
    lines = {
        "model": "; ".join(kinds),
        "networks": "; or ".join(networks),
        **{label: f"{_steps_in_words(plan)}; {_seconds_in_words(plan.seconds)}" for label, plan in plans.items()},
        "seeds": ", ".join(map(str, config.seeds)),
        "cells": f"{len(left)} to train of {len(cells)}, {config.workers} at a time",
        "altogether": _seconds_in_words(seconds),
        "output": output,
    }
    content = {
        "networks": list(networks),
        "cells": {label: _content(plan) for label, plan in plans.items()},
        "left": len(left),
    }
    return Said(f"{listed(lines)}\n\n{NOTHING}", content | {"seconds": seconds, "output": output})


def _checked(output: Path | None, prefix: str) -> Path:
    """Return the folder that a command would write to; refuse one that it cannot write to."""
    folder = output or Path("runs") / f"{prefix}-DATE-TIME"
    check_writable(folder)
    return folder


def _code(config: TrainConfig) -> str:
    sizes = config.num_latents, config.num_categories, config.num_layers, config.latent_dim
    return code_in_words(config.model, *sizes)


def _stage_in_words(stage: StagePlan) -> str:
    steps = "until the clock ends it" if stage.steps is None else f"{stage.steps:,} steps"
    work = "of unknown work" if stage.operations is None else f"of {stage.operations:.2g} operations"
    return f"{steps} {work}; {_seconds_in_words(stage.seconds)}"


def _steps_in_words(plan: RunPlan) -> str:
    steps = [stage.steps for stage in plan.stages]
    return "steps until the clock ends them" if None in steps else f"{sum(filter(None, steps)):,} steps"


def _evaluations_in_words(plan: RunPlan) -> str:
    number = "as often as the clock says" if plan.evaluations is None else f"{plan.evaluations:,}"
    if plan.judge == "none":
        return "of nothing but the loss"
    work = plan.operations_of_evaluation
    return f"{number}, {plan.judge}" + ("" if work is None else f", of {work:.2g} operations")


def _seconds_in_words(seconds: float | None) -> str:
    """Format the estimated time on two cores, from counted operations; it is accurate to a factor of two."""
    if seconds is None:
        return "of unknown length"
    size, unit = next(
        (size, unit) for size, unit in ((3600, "h"), (60, "min"), (1, "s")) if seconds >= size or size == 1
    )
    return f"about {max(seconds / size, 1):.2g} {unit} on two cores"


def _content(plan: RunPlan) -> dict[str, Any]:
    return plan._asdict() | {
        "stages": [stage._asdict() for stage in plan.stages],
        "compilation": plan.compilation._asdict(),
        "seconds": plan.seconds,
    }
