"""Model and guide bound to their data, so that all runs use the same minibatch and the modules' own parameters."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple, final

from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from ..handlers.parameters import OwnParameters
from ..handlers.sites import Messages, Program, Run
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
        ValueError: if there are no data: the first argument is an empty tensor.
    """
    if args and isinstance(args[0], Tensor) and args[0].dim() and len(args[0]) == 0:
        raise _no_data()
    minibatch = _Minibatch()

    def bound(program: Program) -> Run:
        def run() -> None:
            with minibatch:
                program(*args, **kwargs)

        return run

    return Runs(bound(model), bound(guide), again=lambda: bind(model, guide, *args, **kwargs))


def _no_data() -> ValueError:
    return ValueError("Expected one datum or more, but found none. Try x[:1] to see the shape of a result.")


def bind_pair(pair: HasPair, *args: Any, **kwargs: Any) -> Runs:
    """Bind a pair to its arguments, with the parameters of its modules and not those in Pyro's param store.

    Args:
        pair: a model and its guide.
        *args: arguments of both, as :func:`arguments` takes them.
        **kwargs: keyword arguments of both.

    Raises:
        ValueError: if there is no pair, or there are no data.
    """
    check_pair(pair)
    found = arguments(*args, **kwargs)
    return bind(_with_own_parameters(pair.model), _with_own_parameters(pair.guide), *found.args, **found.kwargs)


class Arguments(NamedTuple):
    """Arguments of a program."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]


def arguments(*batch: Any, **others: Any) -> Arguments:
    """Return a batch as the arguments of a program.

    Args:
        *batch: the arguments; a single tuple or list, as `DataLoader` yields them, is unpacked, and a single dictionary
            is taken as keyword arguments.
        **others: keyword arguments.

    Example:
        >>> arguments({"x": 1}), arguments((1, 2))
        (Arguments(args=(), kwargs={'x': 1}), Arguments(args=(1, 2), kwargs={}))
    """
    if len(batch) == 1 and isinstance(batch[0], Mapping):
        return Arguments((), {**batch[0], **others})
    return Arguments(items(batch[0]) if len(batch) == 1 else batch, others)


def items(batch: Any) -> tuple[Any, ...]:
    """Return a batch as arguments: the items of a tuple or list, as `DataLoader` yields them, or the batch itself.

    Raises:
        ValueError: if it is a dictionary, which has no order.
    """
    if isinstance(batch, Mapping):
        raise ValueError(
            f"Expected data as a tensor, or a tuple of all arguments, but found a dictionary with {sorted(batch)}. "
            "Try a tuple of its values, in the order of the programs' arguments."
        )
    return tuple(batch) if isinstance(batch, tuple | list) else (batch,)


def split(batch: Any, size: int) -> Iterator[tuple[Any, ...]]:
    """Yield a batch in parts of at most `size` data, as arguments of a program.

    Tensors as long as the first argument are cut along their first dimension. Each part gets all other arguments.

    Raises:
        ValueError: if there are no data.
    """
    arguments = items(batch)
    length = len(arguments[0])
    if length == 0:
        raise _no_data()
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
