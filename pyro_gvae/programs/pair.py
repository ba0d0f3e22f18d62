"""A model and its guide."""

from collections.abc import Iterator
from typing import NamedTuple, Protocol

from torch import Tensor, nn

from ..handlers.sites import Program


class Pair(NamedTuple):
    """A model and its guide: two Pyro programs that take the same data.

    Latents have the same names in both. Discrete ones are one-hots (`OneHotCategorical`, with `.to_event(1)` for N of
    them, `RelaxedOneHotCategorical` or `FactorizedOneHotCategorical`), bits (`Bernoulli`, `RelaxedBernoulli`), integers
    (`Categorical`) or counts (`Binomial`, `BetaBinomial`). The guide may lack discrete ones, which exact losses sum
    out. Each estimator says which kinds of latents it accepts.

    Args:
        model: the model p(x, z), a function of the data.
        guide: the guide q(z | x), a function of the same data.

    Example:
        >>> import pyro, torch, pyro.distributions as dist
        >>> from pyro_gvae import exact
        >>> def model(x):
        ...     with pyro.plate("data", len(x)):
        ...         z = pyro.sample("z", dist.Bernoulli(0.5))
        ...         pyro.sample("x", dist.Normal(4 * z, 1.0), obs=x)
        >>> exact.log_evidence(Pair(model, lambda x: None), torch.zeros(2)).round(decimals=3)
        tensor([-1.6120, -1.6120])
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


class TrainableProgram(HasPair, Protocol):
    """A module with a Pyro model and guide."""

    def parameters(self) -> Iterator[nn.Parameter]:
        """Yield the parameters that a step optimizes."""

    def buffers(self) -> Iterator[Tensor]:
        """Yield the buffers that a step may change."""


def check_pair(pair: object) -> None:
    """Refuse what has no model and guide, such as a tuple of two functions.

    Raises:
        ValueError: if it is no pair.
    """
    if not (callable(getattr(pair, "model", None)) and callable(getattr(pair, "guide", None))):
        raise ValueError(
            f"Expected a model and its guide, but found a {type(pair).__name__}. Try exact.Pair(model, guide), or a "
            "module with these two methods."
        )


def check_trainable(pair: object) -> None:
    """Refuse a pair of functions, whose parameters are in Pyro's param store.

    Raises:
        ValueError: if it is no module with a model and a guide.
    """
    check_pair(pair)
    if not hasattr(pair, "parameters"):
        raise ValueError(
            f"Expected a module with a model and a guide, but found a {type(pair).__name__}, whose parameters are in "
            "Pyro's param store. Try fit(pair, x), or stock SVI with what estimator(..).bind(pair) returns."
        )
