"""What statements reach beyond what `pyro.markov` says: latents of loops that have ended."""

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
    """What statements reach beyond what `pyro.markov` says.

    Attributes:
        beside: for a latent of the guide, those that the model reaches together with it.
        behind: latents in `pyro.markov` on which a statement behind the loop, or in another one, depends.
    """

    beside: Mapping[str, frozenset[str]]
    behind: frozenset[str]


@final
class Behind:
    """Lets statements behind a loop reach what its last statement could, whose dimensions no other latent gets.

    Args:
        names: the latents that are read so.
        axes_of: returns the dimensions of a latent's value, and the numbers of the latents that they belong to.
    """

    def __init__(self, names: frozenset[str], axes_of: Callable[[str], dict[int, int]]) -> None:
        self._names = names
        self._axes_of = axes_of
        self._loop: Any = None
        self._last: Messages = None  # the last statement of a loop that has not ended
        self._ended: dict[str, Messages] = {}
        self._axes: dict[int, int] = {}

    def begin(self, msg: Messages, messages: Mapping[str, Messages]) -> None:
        """Take notice of a statement before it has a value, after others."""
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
        """Let a statement outside of all loops reach what is behind it."""
        if self._axes and not in_markov(msg):
            give_axes(msg, self._axes | axes_in_reach(msg))
