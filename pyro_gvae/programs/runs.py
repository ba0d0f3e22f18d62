"""A model and a guide bound to their data: in every run of both the same minibatch, and the modules' own parameters."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, final

from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from ..handlers.parameters import OwnParameters
from ..handlers.sites import Messages, Program, Run
from .pair import HasPair


class Runs(NamedTuple):
    """The two programs of a pair as functions without arguments, for one evaluation of one loss."""

    model: Run
    guide: Run


@final
class _Minibatch(Messenger):
    """Gives every run the rows that a subsampling plate drew in the first one.

    Stock ELBOs replay the guide's rows into the model. Here programs run several times, apart from each other, and each
    run on its own would draw rows of its own: the posterior of one datum would be scored on another.
    """

    def __init__(self) -> None:
        super().__init__()
        self.rows: dict[str, Tensor] = {}

    def _pyro_sample(self, msg: Messages) -> None:
        if site_is_subsample(msg) and msg["name"] in self.rows:
            msg["value"] = self.rows[msg["name"]]

    def _pyro_post_sample(self, msg: Messages) -> None:
        if site_is_subsample(msg):
            self.rows.setdefault(msg["name"], msg["value"])


def bind(model: Program, guide: Program, *args: Any, **kwargs: Any) -> Runs:
    """Bind a model and its guide to the arguments that both are called with."""
    minibatch = _Minibatch()

    def bound(program: Program) -> Run:
        def run() -> None:
            with minibatch:
                program(*args, **kwargs)

        return run

    return Runs(bound(model), bound(guide))


def bind_pair(pair: HasPair, *args: Any, **kwargs: Any) -> Runs:
    """Bind a pair to its arguments, with its modules' own parameters, whatever Pyro's param store holds.

    Args:
        pair: a model and its guide.
        *args: what both are called with; a single tuple or list stands for its items, as `DataLoader` gives them.
        **kwargs: likewise.
    """
    arguments = items(args[0]) if len(args) == 1 else args
    return bind(_with_own_parameters(pair.model), _with_own_parameters(pair.guide), *arguments, **kwargs)


def items(batch: Any) -> tuple[Any, ...]:
    """What a batch stands for as arguments: a tuple or list for its items, as `DataLoader` gives them, or itself."""
    return tuple(batch) if isinstance(batch, tuple | list) else (batch,)


def split(batch: Any, size: int) -> Iterator[tuple[Any, ...]]:
    """A batch in parts of at most `size` data, as arguments of a program.

    Tensors as long as the first one are cut along their first dimension; what else there is goes with each part.
    """
    arguments = items(batch)
    length = len(arguments[0])
    for start in range(0, length, size):
        rows = slice(start, start + size)
        yield tuple(
            value[rows] if isinstance(value, Tensor) and value.dim() and len(value) == length else value
            for value in arguments
        )


def _with_own_parameters(program: Program) -> Callable[..., None]:
    def run(*args: Any, **kwargs: Any) -> None:
        with OwnParameters():
            program(*args, **kwargs)

    return run
