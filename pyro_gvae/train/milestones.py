"""Milestones: amounts of training at which a run is measured, in addition to its evaluations."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from ..config.stages import Amount
from ..runtime.rng import own_randomness
from .training import Training

#: A caller's measurements of a run: name -> number.
Measure = Callable[[Training], dict[str, Any]]


class Milestones(NamedTuple):
    """Amounts of training at which a run is measured, in addition to its evaluations.

    Each measurement is a line: `milestone`, the amount as text; `step`, `epoch`, `seconds`; `stage`, that of
    the next step; `train_objective`, the mean of minus the losses since the last evaluation before this step; and the
    results of `measure`.

    Attributes:
        amounts: total amounts of training, from the beginning of the run.
        measure: called at each of them with the :class:`~pyro_gvae.train.training.Training`, like the `measure` of
            `fit` at each evaluation.
    """

    amounts: Sequence[Amount]
    measure: Measure

    def ahead(self, training: Training) -> list[Amount]:
        """Return the milestones not reached yet, without duplicates."""
        return [amount for amount in dict.fromkeys(self.amounts) if not training.has_had(amount)]

    def are_over(self, training: Training) -> bool:
        """Whether the last milestone is reached; False if there are none."""
        return bool(self.amounts) and not self.ahead(training)

    def total(self, training: Training) -> int | None:
        """Return the steps until the last milestone or the end of the run, if known."""
        in_steps = [amount.steps(training.per_epoch) for amount in self.amounts]
        known = max(filter(None, in_steps), default=None) if None not in in_steps else None
        return min((total for total in (known, training.total) if total is not None), default=None)

    def check(self, training: Training) -> None:
        """Refuse a milestone that the run has passed without being measured: a run cannot go back.

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
        """Measure the run at milestones that were ahead and are now reached; checkpoints keep the lines in the state.

        Returns:
            Whether a milestone was reached.
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


#: No milestones: the run goes to its end.
NO_MILESTONES = Milestones((), lambda _: {})


def measured(training: Training, measure: Measure) -> dict[str, Any]:
    """Return a caller's measurements; the random states of the training do not change."""
    with own_randomness(training.state.step):
        return measure(training)
