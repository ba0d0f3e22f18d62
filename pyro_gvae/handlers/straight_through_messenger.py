"""The messenger behind `straight_through`."""

from collections.abc import Container

from torch import Tensor

from ..distributions.surrogates import Kind
from .chosen import EVERY_SITE
from .one_hot_messenger import (
    DrawingMessenger,
    has_relaxation,
    refuse_coupled_guide,
    temperature_of,
    without_enumeration,
)
from .sites import Discrete, Messages


class StraightThroughMessenger(DrawingMessenger):
    """Samples one-hots and bits exactly, with a surrogate gradient."""

    def __init__(self, kind: Kind, temperature: float | Tensor | None, on: Container[str] = EVERY_SITE) -> None:
        super().__init__(on)
        self.kind = kind
        self.temperature = temperature

    def declare(self, msg: Messages, site: Discrete) -> None:
        """Replace the site's distribution by exact values with the surrogate's gradient."""
        if not has_relaxation(msg, site):
            return
        refuse_coupled_guide(msg, site)
        temperature = temperature_of(msg, site, self.temperature, attempt="straight_through(program, temperature=0.5)")
        msg["fn"] = site.straight_through(self.kind, temperature)
        msg["infer"] = without_enumeration(msg)
