"""The progress of a training run."""

from dataclasses import dataclass, field
from typing import Any

from ..config.names import Judge


@dataclass
class State:
    """The progress of a run, as plain numbers for JSON. Everything else is derived from it, or is a tensor."""

    step: int = 0  # batches taken so far, including skipped steps; determines the epoch and the order of data
    seconds: float = 0.0  # time of training, without evaluations
    stage: int = 0
    stage_step: int = 0  # step at which the stage started
    stage_seconds: float = 0.0
    skipped: int = 0
    skipped_in_a_row: int = 0
    loss_sum: float = 0.0  # since the last evaluation before this step
    num_losses: int = 0
    judge: Judge = "none"
    judged_step: int = 0
    judged_seconds: float = 0.0
    kept_step: int = 0
    kept_seconds: float = 0.0
    best: float | None = None  # best discrete test ELBO of this stage
    stale: int = 0  # evaluations since the best one
    milestones: list[dict[str, Any]] = field(default_factory=list)  # what was measured at them, a line each
    done: str | None = None  # why the run is over
