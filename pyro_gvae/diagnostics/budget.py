"""Divide the seconds that a user allows among estimators, by work that is counted before anything is measured.

No clock is read, so that the same seconds give the same choice of estimators, and the same number of estimates of each,
on every machine.
"""

from collections.abc import Callable, Hashable, Sequence
from typing import NamedTuple, final

from ..config.names import EstimatorName
from ..estimators import Estimator, own_state
from ..programs.batches import arguments
from ..runtime.autograd import kept_gradients
from ..runtime.memory import peak_memory
from ..runtime.rng import seeded
from ..runtime.work import OPERATIONS_PER_SECOND, Work, count_work
from .candidates import Candidate
from .gradient_report import NUM_GROUPS
from .probe import WARMUP, Problem, parameters
from .timing import TIMED_STEPS

#: The order in which estimators get time, if there is not enough for all; the others follow in their own order.
FIRST: tuple[EstimatorName, ...] = (
    *("gumbel-softmax", "exact", "reinforce-loo", "reinmax", "straight-through", "local-expectation"),
    *("st-gumbel-softmax", "gapped-straight-through", "top-c", "rebar"),
)
#: The estimators that are measured however little time there is, if their names were not given.
LEAST_MEASURED = 2
#: The fewest and the most estimates of a gradient.
FEWEST, MOST = 2 * NUM_GROUPS, 1024
#: Seconds that an operation takes besides its arithmetic, in Pyro and in torch.
SECONDS_PER_CALL = 2e-5
#: Recording a step takes as long as the calls of this many estimates of the gradient; counting, as those of this many.
RECORDING, COUNTING = 30, 6
#: Recording also runs a step this many times.
RUNS_OF_RECORDING = 5


class Counted(NamedTuple):
    """The work of one estimate of a gradient, counted.

    Attributes:
        seconds: the work in seconds of one core, within a factor of two.
        calls: the part of these seconds that is not arithmetic.
        memory: the bytes of tensors that it holds at its peak.
        warm_up: the number of estimates that precede those that count.
    """

    seconds: float
    calls: float
    memory: int
    warm_up: int

    def to_measure(self, num_samples: int) -> float:
        """Return the seconds of this many estimates, with those that precede them."""
        return (self.warm_up + num_samples) * self.seconds

    @property
    def to_time(self) -> float:
        """The seconds of timing a training step, which is recorded first."""
        return RECORDING * self.calls + (RUNS_OF_RECORDING + 2 + TIMED_STEPS) * self.seconds

    @property
    def to_count(self) -> float:
        """The seconds of counting it."""
        return COUNTING * self.calls + self.seconds


def count_gradient(problem: Problem, chosen: Estimator) -> Counted:
    """Count the work of one estimate of the gradient of all parameters.

    Raises:
        ValueError: if the estimator refuses the problem.
    """
    with seeded(0), kept_gradients(parameters(problem)), problem.opened():
        model, guide, elbo = chosen.bind(problem.pair)
        own, given = own_state(elbo), arguments(problem.x)
        found: list[Work] = []

        def run() -> None:
            found.append(count_work(lambda: elbo.loss_and_grads(model, guide, *given.args, **given.kwargs)))

        memory = peak_memory(run)
    calls = found[0].calls * SECONDS_PER_CALL
    return Counted(
        found[0].operations / OPERATIONS_PER_SECOND + calls, calls, memory, WARMUP if own.state_dict() else 0
    )


class Share(NamedTuple):
    """The time that a candidate gets.

    Attributes:
        candidate: the candidate.
        num_samples: the number of estimates of its gradient.
        counted: the work of one of them; None if the candidate refuses the problem.
    """

    candidate: Candidate
    num_samples: int
    counted: Counted | None


@final
class Budget:
    """Seconds of work to be divided among candidates.

    Args:
        count: counts the work of one estimate of a candidate; see :func:`count_gradient`.
    """

    def __init__(self, count: Callable[[Candidate], Counted]) -> None:
        self._count = count
        self._known: dict[Hashable, Counted | None] = {}

    def of(self, candidate: Candidate) -> Counted | None:
        """Return the work of one estimate; None if the candidate refuses the problem."""
        if candidate.family not in self._known:
            try:
                self._known[candidate.family] = self._count(candidate)
            except ValueError:
                self._known[candidate.family] = None
        return self._known[candidate.family]

    def affordable(self, candidate: Candidate, seconds: float) -> int:
        """Return how many estimates fit into a time, at most 1024; 0 if not as many as standard errors need."""
        counted = self.of(candidate)
        if counted is None:
            return 0
        number = round(seconds / counted.seconds) - counted.warm_up
        return 0 if number < FEWEST else min(number, MOST)

    def least(self, grid: Sequence[Candidate]) -> float:
        """Return the seconds of the fewest estimates by the cheapest of some candidates; 0 if all refuse."""
        works = [counted for one in grid if (counted := self.of(one)) is not None]
        return min((counted.to_measure(FEWEST) for counted in works), default=0.0)

    def divide(self, grid: Sequence[Candidate], seconds: float, *, all_of_them: bool) -> tuple[list[Share], list[str]]:
        """Choose the candidates that fit into a time, and divide what they leave equally.

        Args:
            grid: the candidates.
            seconds: the time for all of them.
            all_of_them: whether to measure all, however long that takes, as if their names were given.

        Returns:
            The shares of the candidates chosen, and the names of the others, both in the order of the grid.
        """
        chosen: dict[Hashable, list[Candidate]] = {}
        left, cheapest = seconds, 0.0
        for family in _in_order(grid):
            rows = [one for one in grid if one.family == family]
            must = all_of_them or len(chosen) < LEAST_MEASURED
            if not must and left < cheapest:  # not even worth counting
                continue
            counted = self.of(rows[0])
            if counted is None:  # its row will hold the error
                chosen[family] = rows
                continue
            left -= counted.to_count
            needed = counted.to_time + len(rows) * counted.to_measure(FEWEST)
            cheapest = min(cheapest or needed, needed)
            if must or needed <= left:
                chosen[family] = rows
                left -= needed
        kept = [one for one in grid if one.family in chosen]
        names = [one.name for one in grid if one.family not in chosen]
        more = max(left, 0.0) / max(len(kept), 1)
        return [self._share(one, more) for one in kept], list(dict.fromkeys(names))

    def _share(self, candidate: Candidate, seconds: float) -> Share:
        counted = self.of(candidate)
        if counted is None:
            return Share(candidate, FEWEST, None)
        return Share(candidate, min(FEWEST + int(seconds / counted.seconds), MOST), counted)


def _in_order(grid: Sequence[Candidate]) -> list[Hashable]:
    """Return the families of a grid, the most useful first."""
    ranks: dict[str, int] = {name: rank for rank, name in enumerate(FIRST)}
    ordered = sorted(grid, key=lambda one: ranks.get(one.name.partition("[")[0], len(ranks)))
    return list(dict.fromkeys(one.family for one in ordered))
