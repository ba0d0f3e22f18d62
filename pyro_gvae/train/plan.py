"""Plan a run before it begins: steps, evaluations and counted operations."""

import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import pyro

from .. import exact
from ..config.names import Judge
from ..config.stages import Stage
from ..config.train import TrainConfig
from ..config.units import in_bytes
from ..data.columns import Data, device_of, first, num_data
from ..data.rows import Rows
from ..data.sliced import AnyDataset
from ..models.base import VAE
from ..runtime.rng import own_randomness
from ..runtime.work import OPERATIONS_PER_SECOND, count_operations
from .checks import stage_estimator, weights_on
from .compilation import PYTHON, Choice, operations_of_step
from .monitor import discrete_elbo
from .training import Training


class StagePlan(NamedTuple):
    """The work of one stage of a run.

    Attributes:
        stage: estimator, options and amount.
        steps: number of its steps; None if the clock ends it.
        operations: operations of one step, forward and backward; None if they cannot be counted.
        seconds: as configured, or estimated from the operations, on two cores; None if unknown.
    """

    stage: str
    steps: int | None
    operations: float | None
    seconds: float | None


class RunPlan(NamedTuple):
    """The work of a run. Seconds are estimated from counted operations, to a factor of two on two cores.

    Attributes:
        stages: the stages of the run.
        num_weights: number of trained weights.
        steps_per_epoch: steps in one epoch of the training data.
        judge: how the discrete ELBO would be evaluated.
        evaluations: how often; None if the clock decides.
        operations_of_evaluation: operations of one evaluation; None if they cannot be counted.
        compilation: whether steps would be compiled, and why.
        most_seconds: the configured limit of training, if there is one.
    """

    stages: tuple[StagePlan, ...]
    num_weights: int
    steps_per_epoch: int
    judge: Judge
    evaluations: int | None
    operations_of_evaluation: float | None
    compilation: Choice
    most_seconds: float | None

    @property
    def seconds(self) -> float | None:
        """Seconds of training and evaluations, on two cores; None if unknown."""
        training = [stage.seconds for stage in self.stages]
        if None in training:
            return self.most_seconds
        total = sum(filter(None, training))
        judging = (self.evaluations or 0) * (self.operations_of_evaluation or 0) / OPERATIONS_PER_SECOND
        return min(total, self.most_seconds or math.inf) + judging


@own_randomness(0)
def plan_run(vae: VAE, data: AnyDataset, config: TrainConfig) -> RunPlan:
    """Plan a run, with the checks of :func:`~pyro_gvae.train.fit.fit`. Nothing is trained or written.

    Args:
        vae: the program.
        data: its data.
        config: the configuration of the training.

    Raises:
        ValueError: if data, program and configuration do not fit together.
    """
    with pyro.get_param_store().scope():
        training = Training(vae, data, config)
        stages = _stages(training)
        steps = [stage.steps for stage in stages]
        between = config.between_evaluations.steps(training.per_epoch)
        known = None if between is None or None in steps else 1 + sum(-(-(step or 0) // between) for step in steps)
        return RunPlan(
            stages=stages,
            num_weights=sum(weights.numel() for weights in vae.parameters()),
            steps_per_epoch=training.per_epoch,
            judge=training.state.judge,
            evaluations=known,
            operations_of_evaluation=_or_none(partial(_operations_of_evaluation, training)),
            compilation=training.compilation,
            most_seconds=config.seconds,
        )


def _stages(training: Training) -> tuple[StagePlan, ...]:
    found, left = [], math.inf if training.config.steps is None else training.config.steps
    for stage in training.config.plan:
        in_steps = stage.amount.steps(training.per_epoch)
        steps = None if in_steps is None else int(min(in_steps, left))
        left -= steps or 0
        operations = _or_none(partial(_operations, training, stage))
        if steps is None:
            seconds: float | None = stage.amount.number
        else:
            seconds = None if operations is None else steps * (operations + PYTHON) / OPERATIONS_PER_SECOND
        found.append(StagePlan(str(stage), steps, operations, seconds))
    return tuple(found)


def _operations(training: Training, stage: Stage) -> float:
    """Return the operations of a step; for sums in slices, those of a gradient of the sum."""
    config, batch = training.config, first(training.train, training.config.batch_size)
    chosen = stage_estimator(stage, config, weights_on(device_of(batch)), training.share)
    return operations_of_step(training.vae, chosen, batch) or _of_sum(training, batch)


def _of_sum(training: Training, data: Data) -> float:
    """Return the operations of a sum over all codes, forward and backward."""
    limit = in_bytes(training.config.max_memory)
    return float(exact.sum_cost(training.vae, data, max_memory=limit).operations)


def _operations_of_evaluation(training: Training) -> float:
    """Return the operations of evaluating training and test data."""
    parts: list[Data | Rows] = [part for part in (training.watched, training.given.test) if part is not None]
    total = 0.0
    for part in parts:
        some = first(part, training.config.batch_size)
        if training.state.judge == "exact":
            found = _of_sum(training, some) / 3  # a backward pass takes twice as many as a forward pass
        else:
            found = count_operations(partial(discrete_elbo, training.vae, some, training.state.judge))
        total += found * num_data(part) / num_data(some)
    return total


def _or_none(count: Callable[[], float]) -> float | None:
    try:
        return count()
    except (ValueError, RuntimeError, NotImplementedError):
        return None
