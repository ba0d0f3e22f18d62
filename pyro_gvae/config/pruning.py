"""The setting that says when to prune during training, and with which thresholds; no torch."""

import math
from typing import NamedTuple

from .stages import Amount, Named

STAGES = "stages"


class Pruning(NamedTuple):
    """When to remove latents and categories during training, and the thresholds.

    Attributes:
        every: training between two prunings, in epochs or steps; None prunes at the start of every stage but the first.
        information: the mutual information with the data, in nats, below which a latent is removed.
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
        limits = {"information": math.inf, "usage": 1}  # mutual information is at most log K nats, and shares at most 1
        for option, value in options.items():
            if option not in known or not isinstance(value, int | float) or not 0 <= value < limits[option]:
                raise ValueError(
                    "Expected information (at least 0 nats) and usage (a share from 0 to below 1) as options of prune, "
                    f"but found {option}={value}. "
                    f"Try {name}[information=0.01,usage=0.001]."
                )
        return cls(every, **(known | options))

    def is_due(self, step: int, stage_step: int, per_epoch: int) -> bool:
        """Tell whether to prune before the next step.

        Args:
            step: steps taken.
            stage_step: steps taken when the current stage began.
            per_epoch: steps per epoch.
        """
        between = None if self.every is None else self.every.steps(per_epoch)
        return step > 0 and (step == stage_step if between is None else step % between == 0)
