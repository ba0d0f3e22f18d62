"""A model and its guide."""

from typing import NamedTuple, Protocol

from ..handlers.sites import Program


class Pair(NamedTuple):
    """A model and its guide: any two Pyro programs that take the same data.

    Each has one latent one-hot site, of the same name, of event shape (N, K) or (K,), written as `OneHotCategorical`,
    `OneHotCategorical(...).to_event(1)`, `RelaxedOneHotCategorical` or `FactorizedOneHotCategorical`.
    """

    model: Program
    guide: Program


class HasPair(Protocol):
    """Whatever has a model and a guide: a :class:`Pair`, a `CategoricalVAE`."""

    @property
    def model(self) -> Program:
        """The model p(x, z)."""

    @property
    def guide(self) -> Program:
        """The guide q(z | x)."""
