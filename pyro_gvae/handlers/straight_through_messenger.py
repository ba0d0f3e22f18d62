"""The messenger behind `straight_through`."""

from torch import Tensor

from ..distributions.straight_through import StraightThroughOneHotCategorical
from ..distributions.surrogates import Kind
from .one_hot_messenger import OneHotMessenger, refuse_integers, temperature_of, without_enumeration
from .sites import Messages, OneHotSite


class StraightThroughMessenger(OneHotMessenger):
    """Samples one-hot sites as exact one-hots with a surrogate gradient."""

    def __init__(self, kind: Kind, temperature: float | Tensor | None) -> None:
        super().__init__()
        self.kind = kind
        self.temperature = temperature

    def leave(self, msg: Messages) -> None:
        """Refuse integers, which would otherwise be sampled and scored silently."""
        refuse_integers(msg)

    def declare(self, msg: Messages, site: OneHotSite) -> None:
        """Replace the site's distribution by exact one-hots with the surrogate's gradient."""
        temperature = temperature_of(msg, site, self.temperature, "straight_through(program, temperature=0.5)")
        msg["fn"] = site.distribution(
            lambda logits: StraightThroughOneHotCategorical(temperature, logits=logits.to(site.dtype), kind=self.kind)
        )
        msg["infer"] = without_enumeration(msg)
