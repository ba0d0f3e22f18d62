"""The text that says when latents and categories are removed in training, and which; no torch."""

from typing import NamedTuple

from .stages import Amount, Named

STAGES = "stages"


class Pruning(NamedTuple):
    """When latents and categories are removed, and which.

    Attributes:
        every: the training between two times, in epochs or steps; None removes them where a stage begins.
        information: in nats of mutual information with the data, below which a latent is removed.
        usage: share of the data below which a category counts as unused.

    Example:
        >>> Pruning.parse("5[usage=0.01]")
        Pruning(every=Amount(number=5, unit='epochs'), information=0.01, usage=0.01)
    """

    every: Amount | None = None
    information: float = 0.01
    usage: float = 0.001

    @classmethod
    def parse(cls, text: str) -> "Pruning":
        """Parse `stages`, `5` (epochs) or `500steps`, with `[information=..,usage=..]` or without.

        Raises:
            ValueError: if the text has another form, or a threshold is out of range.
        """
        name, options = Named.parse(text)
        every = None if name == STAGES else Amount.parse(name)
        if every is not None and every.unit == "seconds":
            raise ValueError(f"Expected epochs or steps between two prunings, but found '{name}'. Try 5 or 500steps.")
        plain = cls(every)
        known = {"information": plain.information, "usage": plain.usage}
        for option, value in options.items():
            if option not in known or not isinstance(value, int | float) or not 0 <= value < 1:
                raise ValueError(
                    f"Expected information and usage between 0 and 1 as options of prune, but found {option}={value}. "
                    f"Try {name}[information=0.01,usage=0.001]."
                )
        return cls(every, **(known | options))

    def is_due(self, step: int, stage_step: int, per_epoch: int) -> bool:
        """Tell whether it is time, before a step that is the first of its stage or of an epoch.

        Args:
            step: steps taken.
            stage_step: those taken when the current stage began.
            per_epoch: steps of an epoch.
        """
        between = None if self.every is None else self.every.steps(per_epoch)
        return step > 0 and (step == stage_step if between is None else step % between == 0)
