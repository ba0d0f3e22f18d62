"""Run coordinate ascent: sweep over all digits until no datum's ELBO increases."""

from collections.abc import Callable
from typing import Any, Protocol, TypeVar

from torch import Tensor


class Swept(Protocol):
    """The result of a sweep: the logits of all digits, and their ELBO."""

    @property
    def logits(self) -> Any:
        """The logits of all digits."""

    @property
    def elbo(self) -> Tensor:
        """The ELBO of each datum."""


S = TypeVar("S", bound=Swept)


def ascend(update: Callable[[Any], S], log_q: Any, *, max_sweeps: int, tolerance: float) -> S:
    """Sweep over the digits until no datum gains more than the tolerance.

    Args:
        update: one sweep, from the current logits to new logits and their ELBO.
        log_q: the initial logits.
        max_sweeps: the largest number of sweeps over all digits, at least one.
        tolerance: the largest gain that counts as none, in nats.
    """
    found = update(log_q)
    for _ in range(max_sweeps - 1):
        before, found = found, update(found.logits)
        if not bool((found.elbo - before.elbo > tolerance).any()):
            break
    return found
