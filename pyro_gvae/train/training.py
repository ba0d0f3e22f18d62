"""A training run in progress: its state, and how it takes steps, is evaluated, saved and restored."""

import math
import time
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any, final

import torch
from torch import Tensor

from ..config.stages import Amount, Stage
from ..config.train import TrainConfig
from ..config.units import in_bytes
from ..data.batches import epoch_batches, sample_of
from ..data.columns import Data, device_of, digest_of, first, mapped, num_data
from ..data.labels import given
from ..data.rows import Rows
from ..data.sliced import AnyDataset
from ..runs.weights import from_parts, in_parts
from ..runtime.distributed import copy_from_main, from_main, gathered, largest, share
from ..runtime.rng import random_states, set_random_states
from ..schedules import schedule
from .checks import annealed_tensors, check_data, check_losses, stage_estimator, weights_on
from .compilation import again, choose
from .files import check_same_run
from .monitor import NUM_TRAIN_WATCHED, discrete_elbo, elbo_is, judge_of
from .non_finite import first_non_finite, not_finite
from .optimizers import check_optimizer_state, named_shapes, new_optimizer
from .state import State, read_state
from .step import Step, make_step


@final
class Training:
    """A training run in progress: a program, its data and an optimizer in one of the stages of a configuration.

    Attributes:
        vae: the program that is trained.
        given: the data in the form that the program takes.
        watched: some of the training data, on which the discrete model is evaluated.
        estimator: the estimator of the current stage.
        state: the progress of the run.
        refused: batch and random state of the last step, if it was skipped because it was not finite.
        not_finite: how many elements of each parameter were not finite when the run began.
        share: this process's part of the work, if several train together.
        elbo_is: what evaluations are.
        compilation: whether a new run would compile steps, and why; a resumed run's choice is in the state.
    """

    def __init__(self, vae: Any, data: AnyDataset | Data, config: TrainConfig) -> None:
        self.vae, self.data, self.config = vae, data, config
        check_data(vae, data, config)
        self.given = given(vae, data)
        self.train, self.watched = self.given.train, sample_of(self.given.watched, NUM_TRAIN_WATCHED)
        self.share = share()
        copy_from_main([*vae.parameters(), *vae.buffers()])
        self.per_epoch = -(-num_data(self.train) // config.batch_size)
        weights = weights_on(device_of(self.train))  # set before each step; a recorded step reads them
        self._estimators = [stage_estimator(stage, config, weights, self.share) for stage in config.plan]
        self._learning_rate = schedule(str(config.learning_rate))
        self._annealed = annealed_tensors(vae, config, weights)
        kind = config.named_optimizer
        self.optimizer = new_optimizer(kind.name, list(vae.parameters()), self._learning_rate(0), **kind.options)
        batch = first(self.train, config.batch_size)
        check_losses(vae, self._estimators, batch)
        self.compilation = choose(vae, self._estimators, batch, config, self.per_epoch)
        self.state = State(judge=judge_of(vae, data, config), compiled=self.compilation.is_compiled)
        self.elbo_is = elbo_is(self.state.judge, vae, self.watched, config)
        self.refused: tuple[Data, Tensor] | None = None
        self._batches: Iterator[Data] = self._remaining_batches()
        self._begin_stage()
        self._anneal()  # so that the evaluation before the first step uses that step's temperatures
        self.not_finite = not_finite(vae)

    @property
    def stage(self) -> Stage:
        """The current stage."""
        return self.config.plan[self.state.stage]

    @property
    def total(self) -> int | None:
        """The number of steps of the whole run, if it is known."""
        in_stages = [stage.amount.steps(self.per_epoch) for stage in self.config.plan]
        known = sum(filter(None, in_stages)) if None not in in_stages else None
        bounds = [bound for bound in (known, self.config.steps) if bound is not None]
        return min(bounds, default=None)

    def advance(self) -> None:
        """Take one step, without any evaluation or checkpoint."""
        state = self.state
        if state.step == state.judged_step:
            state.loss_sum, state.num_losses = 0.0, 0
        self._anneal()
        start = time.perf_counter()
        batch = next(self._batches)
        before = torch.get_rng_state()
        loss = self._loss(batch)
        state.seconds += largest(time.perf_counter() - start)
        state.step += 1
        if math.isnan(loss):
            self.refused = batch, before
            state.skipped += 1
            state.skipped_in_a_row += 1
        else:
            self.refused = None
            state.skipped_in_a_row = 0
            state.loss_sum += loss
            state.num_losses += 1

    def judge(self) -> dict[str, Any]:
        """Evaluate the discrete model and return a line of the history. Weights and random states do not change."""
        state, seconds = self.state, self.state.seconds - self.state.judged_seconds
        line: dict[str, Any] = {
            "step": state.step,
            "epoch": state.step / self.per_epoch,
            "stage": state.stage,
            "estimator": self.stage.estimator,
            "seconds": state.seconds,
            "steps_per_second": (state.step - state.judged_step) / seconds if seconds > 0 else None,
            "train_objective": self.objective,
            "train_elbo": self._elbo(self.watched),
            "test_elbo": self._elbo(self.given.test),
            "elbo_is": self.elbo_is,
            "learning_rate": self._learning_rate(state.step),
            "skipped": state.skipped,
        }
        stopping = line["test_elbo"]
        if self.given.validation is not None:
            stopping = line["validation_elbo"] = self._elbo(self.given.validation)
        if self.config.pruning is not None:
            line |= {"num_latents": self.vae.num_latents, "num_categories": self.vae.num_categories}
        line |= {name: annealed(state.step) for name, (_, annealed) in self._annealed.items()}
        state.judged_step, state.judged_seconds = state.step, state.seconds
        if stopping is not None and (state.best is None or stopping > state.best):
            state.best, state.stale = stopping, 0
        else:
            state.stale += 1
        return line

    @property
    def objective(self) -> float | None:
        """The mean of minus the losses, in nats per datum, since the last evaluation before the current step."""
        return -self.state.loss_sum / self.state.num_losses if self.state.num_losses else None

    def has_had(self, amount: Amount) -> bool:
        """Whether the run has reached this amount of training in total."""
        return amount.is_over(self.state.step, self.state.seconds, self.per_epoch)

    @property
    def budget_is_spent(self) -> str | None:
        """The spent budget of the whole run, in words; None if none is spent."""
        config, state = self.config, self.state
        if config.steps is not None and state.step >= config.steps:
            return f"{config.steps} step{'s' * (config.steps != 1)}"
        if config.seconds and state.seconds >= config.seconds:
            return f"{config.seconds:g} second{'s' * (config.seconds != 1)}"
        return None

    @property
    def stage_is_over(self) -> bool:
        """Whether the stage has used its steps or seconds, or has stopped improving."""
        stale = self.config.patience is not None and self.state.stale >= self.config.patience
        return stale or self._is_over(self.stage.amount, self.state.stage_step, self.state.stage_seconds)

    def next_stage(self) -> None:
        """Move on to the next estimator, or finish. The optimizer drops only its state of the old loss."""
        state = self.state
        if state.stage + 1 == len(self.config.plan):
            state.done = "all stages"
            return
        self._end_stage()
        state.stage += 1
        state.stage_step, state.stage_seconds = state.step, state.seconds
        state.best, state.stale = None, 0
        self._begin_stage()

    def begin_stage_again(self) -> None:
        """Make the step again after the shapes of the program's parameters have changed."""
        self._end_stage()
        self._begin_stage()

    @property
    def evaluation_is_due(self) -> bool:
        """Whether an evaluation is due, by the steps or seconds since the last one."""
        return self._is_over(self.config.between_evaluations, self.state.judged_step, self.state.judged_seconds)

    @property
    def checkpoint_is_due(self) -> bool:
        """Whether a checkpoint is due, by the steps or seconds since the last one."""
        return self._is_over(self.config.between_checkpoints, self.state.kept_step, self.state.kept_seconds)

    def _is_over(self, amount: Amount, step: int, seconds: float) -> bool:
        return amount.is_over(self.state.step - step, self.state.seconds - seconds, self.per_epoch)

    def content(self) -> dict[str, Any]:
        """Return everything that the rest of the run depends on, as plain data with tensors."""
        return {
            "config": self.config.as_json(),
            "data": digest_of(self.train),
            "state": asdict(self.state),
            "vae": in_parts(self.vae.state_dict()),
            # The optimizer's settings are in the configuration, and its learning rate is a function of the step.
            "optimizer": self.optimizer.state_dict()["state"],
            "parameters": named_shapes(self.vae, self.step.own),
            "own": dict(self.step.own.state_dict()),
            "random": random_states(),
            "random_of_others": gathered(random_states())[1:],
        }

    def restore(self, content: dict[str, Any]) -> None:
        """Restore the state that :meth:`content` returned; the run may now have further stages, or another budget.

        Raises:
            ValueError: if it belongs to another program, configuration or data, or is damaged.
        """
        of_another = "Expected a checkpoint of this program, but found one of another program."
        damage = (RuntimeError, TypeError, KeyError, IndexError, AttributeError, OverflowError)
        try:
            state = self._checked(content)
        except damage as error:
            raise ValueError(of_another) from error
        try:
            self._take(state, content)
        except (ValueError, *damage) as error:
            raise ValueError(of_another) from error
        if state.done is not None:  # but plan or budget may have grown since
            state.done = self.budget_is_spent
            if state.done is None and self.stage_is_over:
                self.next_stage()

    def _checked(self, content: dict[str, Any]) -> State:
        """Return the state in a checkpoint of this run."""
        check_same_run(content, self.content())
        return read_state(content["state"], len(self.config.plan))

    def _take(self, state: State, content: dict[str, Any]) -> None:
        self._end_stage()
        state.compiled = again(state.compiled, self.config, device_of(self.train))
        self.state = state
        self._begin_stage()
        self.vae.load_state_dict(from_parts(content["vae"], self.vae.state_dict()))
        self.step.own.load_state_dict(content["own"])
        # Compare names and shapes: torch matches only by position, and a fused optimizer would write out of bounds.
        if named_shapes(self.vae, self.step.own) != content["parameters"]:
            raise ValueError("Expected the same parameters in the same order, but found others.")
        check_optimizer_state(self.optimizer, content["optimizer"])
        self.optimizer.load_state_dict(self.optimizer.state_dict() | {"state": content["optimizer"]})
        self._batches = self._remaining_batches()
        set_random_states([content["random"], *content["random_of_others"]][self.share.rank])

    def _begin_stage(self) -> None:
        self.estimator = self._estimators[self.state.stage]
        self.step: Step = make_step(
            self.vae,
            self.estimator,
            optimizer=self.optimizer,
            clip_norm=self.config.clip_norm,
            skip_non_finite=True,
            compile=self.state.compiled,
            shard=self.config.shard,
        )
        self.step.taken = self.state.step
        if own := list(self.step.own.parameters()):
            self.optimizer.add_param_group({"params": own})

    def _end_stage(self) -> None:
        """Drop the optimizer's state of the loss's own parameters, which other losses do not use."""
        if own := list(self.step.own.parameters()):
            self.optimizer.param_groups.pop()
            for parameter in own:
                self.optimizer.state.pop(parameter, None)

    def _loss(self, batch: Data) -> float:
        """Take a step and return its loss; NaN if the step was skipped because loss or gradient was not finite."""
        try:
            return self.step(mapped(self.share.rows, batch) if self.config.shard == "data" else batch).item()
        except (RuntimeError, ValueError):  # Pyro and torch may also refuse NaN with an error
            if first_non_finite(self.vae, self.estimator, batch) is None:
                raise  # all values are finite, so this is an error in the program
            return math.nan

    def _anneal(self) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = self._learning_rate(self.state.step)
        for buffer, annealed in self._annealed.values():
            buffer.fill_(annealed(self.state.step))

    def _remaining_batches(self) -> Iterator[Data]:
        """Yield the batches from the current step on. They depend only on seed and step."""
        epoch, skip = divmod(self.state.step, self.per_epoch)
        order: Any = {"seed": self.config.seed, "labels": self.given.labels}
        while True:
            data = self.train if isinstance(self.train, Rows) else self.data  # a Dataset may sample its images anew
            yield from epoch_batches(data, self.config.batch_size, epoch=epoch, skip=skip, **order)
            epoch, skip = epoch + 1, 0

    def _elbo(self, x: Data | Rows | None) -> float | None:
        judge, limit = self.state.judge, in_bytes(self.config.max_memory)
        return None if x is None else from_main(lambda: discrete_elbo(self.vae, x, judge, max_memory=limit))
