"""Model and guide bound to their data, so that all runs use the same minibatch and the modules' own parameters."""

from collections.abc import Callable
from typing import Any, NamedTuple, final

from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from ..handlers.parameters import OwnParameters
from ..handlers.sites import Messages, Program, Run
from .batches import arguments, check_has_data, check_taken
from .pair import HasPair, check_pair


class Runs(NamedTuple):
    """Model and guide as functions without arguments, for one evaluation of a loss.

    Attributes:
        model: the model.
        guide: the guide.
        again: returns the same with its own minibatch, for trial runs. Trial runs restore the random states, so a
            minibatch that one of them drew would be the same for every loss.
    """

    model: Run
    guide: Run
    again: Callable[[], "Runs"]


@final
class _Minibatch(Messenger):
    """Gives each run the rows that a subsampling plate drew in the first run.

    Stock ELBOs replay the guide's rows in the model. Here the programs run separately and several times. If each run
    drew its own rows, the posterior of one datum would be scored on another.
    """

    def __init__(self) -> None:
        super().__init__()
        self.rows: dict[str, Tensor] = {}

    def _pyro_sample(self, msg: Messages) -> None:
        if site_is_subsample(msg) and msg["name"] in self.rows:
            rows, given = self.rows[msg["name"]], msg["value"]
            size = len(given) if given is not None else msg["fn"].subsample_size or msg["fn"].size
            if size != len(rows):
                raise two_plates(msg["name"], len(rows), size)
            msg["value"] = rows

    def _pyro_post_sample(self, msg: Messages) -> None:
        if site_is_subsample(msg):
            self.rows.setdefault(msg["name"], msg["value"])


def two_plates(name: str, size: int, other: int) -> ValueError:
    """Return the error for plates with the same name and different sizes."""
    return ValueError(
        f"Expected plates with the same name to have the same size, in model and guide, but found '{name}' with {size} "
        f"and with {other} data. Try another name for one of them."
    )


def bind(model: Program, guide: Program, *args: Any, **kwargs: Any) -> Runs:
    """Bind a model and its guide to their arguments.

    Raises:
        ValueError: if there are no data: the first tensor with a dimension has no rows.
    """
    check_has_data((*args, *kwargs.values()))
    minibatch = _Minibatch()

    def bound(program: Program) -> Run:
        def run() -> None:
            with minibatch:
                program(*args, **kwargs)

        return run

    return Runs(bound(model), bound(guide), again=lambda: bind(model, guide, *args, **kwargs))


def bind_pair(pair: HasPair, *args: Any, **kwargs: Any) -> Runs:
    """Bind a pair to its arguments, with the parameters of its modules and not those in Pyro's param store.

    Args:
        pair: a model and its guide.
        *args: arguments of both, as :func:`~pyro_gvae.programs.batches.arguments` takes them.
        **kwargs: keyword arguments of both.

    Raises:
        ValueError: if there is no pair, or there are no data.
    """
    check_pair(pair)
    found = arguments(*args, **kwargs)
    check_taken(pair.model, found)
    check_taken(pair.guide, found)
    return bind(_with_own_parameters(pair.model), _with_own_parameters(pair.guide), *found.args, **found.kwargs)


def _with_own_parameters(program: Program) -> Callable[..., None]:
    def run(*args: Any, **kwargs: Any) -> None:
        with OwnParameters():
            program(*args, **kwargs)

    return run
