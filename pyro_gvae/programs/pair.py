"""A model and its guide."""

from typing import NamedTuple, Protocol

from ..handlers.sites import Program


class Pair(NamedTuple):
    """A model and its guide: two Pyro programs that take the same data.

    Each has one latent one-hot site of event shape (N, K) or (K,), with the same name in both. It is written as
    `OneHotCategorical`, `OneHotCategorical(...).to_event(1)`, `RelaxedOneHotCategorical` or
    `FactorizedOneHotCategorical`.
    """

    model: Program
    guide: Program


class HasPair(Protocol):
    """Any object with a model and a guide, such as a :class:`Pair` or a `CategoricalVAE`."""

    @property
    def model(self) -> Program:
        """The model p(x, z)."""

    @property
    def guide(self) -> Program:
        """The guide q(z | x)."""
