"""Let statements reach latents that `pyro.markov` would not let them: those of loops that have ended."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, final

from ..handlers.sites import Messages
from ..runtime.compat.enumeration import (
    axes_in_reach,
    bring_into_reach,
    give_axes,
    in_markov,
    is_in_reach,
    leave_dims,
    loop_around,
)


class Reach(NamedTuple):
    """The latents that statements reach in addition to what `pyro.markov` allows.

    Attributes:
        beside: for a latent of the guide, those that the model reaches together with it.
        behind: latents in `pyro.markov` that a statement after the loop, or in another loop, depends on.
    """

    beside: Mapping[str, frozenset[str]]
    behind: frozenset[str]


@final
class Behind:
    """Lets statements after a loop reach what its last statement could; no other latent gets those dimensions.

    Args:
        names: the latents that are read after their loop.
        axes_of: returns the dimensions of a latent's value, each with the number of the latent that it belongs to.
    """

    def __init__(self, names: frozenset[str], axes_of: Callable[[str], dict[int, int]]) -> None:
        self._names = names
        self._axes_of = axes_of
        self._loop: Any = None
        self._last: Messages = None  # the last statement of a loop that has not ended
        self._ended: dict[str, Messages] = {}
        self._axes: dict[int, int] = {}

    def begin(self, msg: Messages, messages: Mapping[str, Messages]) -> None:
        """Register a statement before it has a value; `messages` are those before it."""
        if not self._names:
            return
        loop = loop_around()
        if loop is not self._loop and self._loop is not None:
            self._end(messages)
        self._loop, self._last = loop, msg
        for other in self._ended.values() if loop is not None else ():
            bring_into_reach(msg, other)

    def _end(self, messages: Mapping[str, Messages]) -> None:
        for name in sorted(self._names & messages.keys()):
            if name == self._last["name"] or is_in_reach(self._last, messages[name]):
                self._ended[name] = messages[name]
                self._axes |= self._axes_of(name)
        leave_dims(min(self._axes, default=0))

    def done(self, msg: Messages) -> None:
        """Let a statement outside of all loops reach the latents of loops before it."""
        if self._axes and not in_markov(msg):
            give_axes(msg, self._axes | axes_in_reach(msg))
