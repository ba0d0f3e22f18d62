"""Where a training run is."""

from dataclasses import dataclass, field
from typing import Any

from ..config.names import Judge


@dataclass
class State:
    """Where a run is: numbers only, so that JSON holds it. What is not here is a function of it, or a tensor."""

    step: int = 0  # batches taken so far, those of skipped steps included: epoch and data order follow from it
    seconds: float = 0.0  # of training, without evaluations
    stage: int = 0
    stage_step: int = 0  # where the stage began
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
    best: float | None = None  # discrete test ELBO of this stage
    stale: int = 0  # evaluations since then
    milestones: list[dict[str, Any]] = field(default_factory=list)  # what was measured at them, a line each
    done: str | None = None  # why the run is over
