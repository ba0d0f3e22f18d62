"""A model and its guide."""

from typing import NamedTuple, Protocol

from ..handlers.sites import Program


class Pair(NamedTuple):
    """A model and its guide: two Pyro programs that take the same data.

    Latents have the same names in both. Discrete ones are one-hots (`OneHotCategorical`, with `.to_event(1)` for N of
    them, `RelaxedOneHotCategorical` or `FactorizedOneHotCategorical`), bits (`Bernoulli`, `RelaxedBernoulli`) or
    integers (`Categorical`). The guide may lack discrete ones, which exact losses sum out. Each estimator says how many
    of them it accepts, and which other latents.
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
