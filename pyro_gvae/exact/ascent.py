"""Run coordinate ascent: sweep over all digits until no datum's ELBO increases."""

from collections.abc import Callable
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

#: A gain of so many roundings of an ELBO counts as none: its sums over codes are off by about as much.
ROUNDINGS = 4


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
        if not bool(gains(found.elbo, before.elbo, tolerance).any()):
            break
    return found


def gains(elbo: Tensor, before: Tensor, tolerance: float) -> Tensor:
    """Return whether each ELBO has grown by more than the tolerance, and by more than it is rounded.

    Args:
        elbo: of each datum, in nats.
        before: the same before a sweep.
        tolerance: the largest gain that counts as none, in nats.
    """
    rounding = ROUNDINGS * torch.finfo(elbo.dtype).eps * elbo.abs()
    return elbo - before > rounding.clamp_min(tolerance)
