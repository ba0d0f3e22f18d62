"""Milestones: amounts of training at which a run is measured, besides its evaluations."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from ..config.stages import Amount
from ..runtime.rng import own_randomness
from .training import Training

#: What a caller wants to know of a run: name -> number.
Measure = Callable[[Training], dict[str, Any]]


class Milestones(NamedTuple):
    """Amounts of training at which a run is measured, besides its evaluations.

    What was measured is a line for each: `milestone`, the amount as text; `step`, `epoch`, `seconds`; `stage`, that of
    the next step; `train_objective`, the mean of minus the losses since the last evaluation before this step; and what
    `measure` returned.

    Attributes:
        amounts: of training in all, from the beginning of the run.
        measure: called at each of them with the :class:`~pyro_gvae.train.training.Training`, as that of `fit` is at
            each evaluation.
    """

    amounts: Sequence[Amount]
    measure: Measure

    def ahead(self, training: Training) -> list[Amount]:
        """Those that the run has not come to yet, each once."""
        return [amount for amount in dict.fromkeys(self.amounts) if not training.has_had(amount)]

    def are_over(self, training: Training) -> bool:
        """Whether the last of them is reached; never where there are none."""
        return bool(self.amounts) and not self.ahead(training)

    def total(self, training: Training) -> int | None:
        """Steps until the last of them, or until the end of the run, where that is known."""
        in_steps = [amount.steps(training.per_epoch) for amount in self.amounts]
        known = max(filter(None, in_steps), default=None) if None not in in_steps else None
        return min((total for total in (known, training.total) if total is not None), default=None)

    def check(self, training: Training) -> None:
        """Refuse a milestone that lies behind the run and was not measured: a run cannot go back.

        Raises:
            ValueError: if there is one.
        """
        state = training.state
        measured = {line["milestone"] for line in state.milestones}
        for amount in self.amounts:
            if training.has_had(amount) and str(amount) not in measured:
                raise ValueError(
                    f"Expected milestones ahead of the run, but found that it is at step {state.step} and was not "
                    f"measured at '{amount}'. Try later ones, or another folder."
                )

    def record(self, training: Training, ahead: Sequence[Amount]) -> bool:
        """Measure the run at those that were ahead and no longer are: lines of its state, which checkpoints keep.

        Returns:
            Whether there was any.
        """
        state = training.state
        reached = [amount for amount in ahead if training.has_had(amount)]
        for amount in reached:
            line = {
                "milestone": str(amount),
                "step": state.step,
                "epoch": state.step / training.per_epoch,
                "seconds": state.seconds,
                "stage": state.stage,
                "train_objective": training.objective,
            }
            state.milestones.append(line | measured(training, self.measure))
        return bool(reached)


#: A run to its end.
NO_MILESTONES = Milestones((), lambda _: {})


def measured(training: Training, measure: Measure) -> dict[str, Any]:
    """What a caller wants to know; the random numbers of the training stay as they are."""
    with own_randomness(training.state.step):
        return measure(training)
