"""The result of `fit`, and the exception it raises when a signal stops it."""

from pathlib import Path
from signal import Signals
from typing import TYPE_CHECKING, Any, NamedTuple, final

from ..runs.config import CONFIG
from .described import is_of_code

if TYPE_CHECKING:
    import pandas as pd


class Fit(NamedTuple):
    """The result of `fit`.

    Attributes:
        steps: number of batches taken, including those of skipped steps.
        seconds: seconds of training, without evaluations.
        reason: why training ended.
        history: one dictionary for each evaluation; see `Training.judge`.
        milestones: one dictionary for each milestone measured, including earlier calls; see `Milestones`.

    Example:
        >>> line = {"step": 9, "train_elbo": -3.25, "test_elbo": None, "elbo_is": "exact", "skipped": 0}
        >>> Fit(9, 0.5, "all stages", [line], [])
        Fit(9 steps in 0.5 s, the end of all stages, train ELBO -3.25 (exact))
    """

    steps: int
    seconds: float
    reason: str
    history: list[dict[str, Any]]
    milestones: list[dict[str, Any]]

    def to_pandas(self) -> "pd.DataFrame":
        """Return the history as a table, one row for each evaluation."""
        import pandas as pd  # imported here, since training does not need it

        return pd.DataFrame(self.history)

    def __repr__(self) -> str:
        last = self.history[-1] if self.history else {}
        elbos = [f"{part} ELBO {last[f'{part}_elbo']:.2f}" for part in ("train", "test") if _is_known(last, part)]
        judged = [f"{', '.join(elbos)} ({last['elbo_is']})"] if elbos else []
        skipped = [f"{last['skipped']} steps skipped"] if last.get("skipped") else []
        said = [f"{self.steps} steps in {self.seconds:.1f} s", f"the end of {self.reason}", *judged, *skipped]
        return f"Fit({', '.join(said)})"

    def _repr_html_(self) -> str:
        table = self.to_pandas()
        shown = [
            name for name in ("step", "estimator", "seconds", "train_elbo", "test_elbo", "skipped") if name in table
        ]
        return f"<p>{self!r}</p>{table[shown].tail(10).to_html(index=False, border=0)}"


def _is_known(line: dict[str, Any], part: str) -> bool:
    return line.get(f"{part}_elbo") is not None


@final
class Interrupted(KeyboardInterrupt):
    """A signal stopped a run after a step. Its checkpoint has been written.

    The message says how to continue: by the command, if the folder has a configuration, else by the same call.

    Attributes:
        run: the run folder.
        signal: the signal.
    """

    def __init__(self, run: Path, number: Signals) -> None:
        by_command = (run / CONFIG).exists() and not is_of_code(run)
        command = f"pyro-gvae resume {run}" if by_command else "the same call of fit and resume=True"
        super().__init__(f"stopped by {number.name}; resume with: {command}")
        self.run = run
        self.signal = number

    def __reduce__(self) -> tuple[Any, ...]:
        return Interrupted, (self.run, self.signal)  # pickles the arguments, for other processes
