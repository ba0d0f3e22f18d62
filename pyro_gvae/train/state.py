"""The progress of a training run."""

import math
from dataclasses import dataclass, field, fields
from typing import Any

from ..config.json import read_settings
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
    compiled: bool = False  # whether steps are compiled, which changes rounding
    judged_step: int = 0
    judged_seconds: float = 0.0
    kept_step: int = 0
    kept_seconds: float = 0.0
    best: float | None = None  # best discrete test ELBO of this stage
    stale: int = 0  # evaluations since the best one
    milestones: list[dict[str, Any]] = field(default_factory=list)  # the measurements, a line per milestone
    done: str | None = None  # why the run is over


def read_state(written: Any, num_stages: int) -> State:
    """Read the state in a checkpoint.

    Args:
        written: the content of the checkpoint.
        num_stages: number of stages of the run.

    Raises:
        ValueError: if its entries differ from this release's, or one has another type or is out of range.
    """
    names = {field.name for field in fields(State)}
    others = sorted(map(str, names ^ set(written if isinstance(written, dict) else ())))
    if others:
        raise ValueError(
            f"Expected the checkpoint of this release, but found one of another: its state differs in "
            f"{', '.join(others)}. Try the release of pyro-gvae that wrote it."
        )
    state = State(**read_settings(State, written))
    for name in names - {"loss_sum", "best", "judge", "milestones", "done"}:
        if not 0 <= getattr(state, name) < math.inf:
            raise ValueError(f"Expected '{name}' of a checkpoint to be at least 0, but found {getattr(state, name)}.")
    if state.stage >= num_stages:
        raise ValueError(f"Expected a stage below {num_stages} in the checkpoint, but found {state.stage}.")
    return state
