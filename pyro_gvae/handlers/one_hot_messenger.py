"""The base class of all handlers of discrete latents; the outermost of them decides what a site is."""

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

from pyro.poutine.messenger import Messenger
from torch import Tensor

from ..runtime.compat.pyro import handlers_on_stack, is_random
from .sites import Discrete, Kind, Messages, Program, discrete, kind_of


def temperature_of(msg: Messages, site: Discrete, given: float | Tensor | None, attempt: str) -> float | Tensor:
    """Return the handler's temperature if it has one, or else the site's own, from its distribution or its settings.

    Raises:
        ValueError: if there is none.
    """
    own = msg["infer"].get("temperature") if site.temperature is None else site.temperature
    temperature: float | Tensor | None = own if given is None else given
    if temperature is None:
        raise ValueError(
            f"Expected a temperature for the discrete site '{msg['name']}', but found none. Try {attempt}, or "
            'infer={"temperature": 0.5} at the site.'
        )
    return temperature


def without_enumeration(msg: Messages) -> Any:
    """Return a site's settings without the request to enumerate it, because it will be sampled."""
    return {key: value for key, value in msg["infer"].items() if key != "enumerate"}


def has_relaxation(msg: Messages, site: Discrete) -> bool:
    """Return whether a site can be relaxed: an integer has no values between its categories.

    Raises:
        ValueError: if it is an integer that stock Pyro would sample, not one that is marked for enumeration.
    """
    if site.kind is Kind.INTEGER and not msg["infer"].get("enumerate"):
        raise ValueError(
            f"Expected one-hots or bits to relax, but found '{msg['name']}', a Categorical: an integer has no "
            "relaxation. Try OneHotCategorical, or remove this handler and use an estimator that scores or sums."
        )
    return site.kind is not Kind.INTEGER


class ProgramMessenger(Messenger):
    """A messenger for a single run of a program."""

    def check(self, program: Program, args: Any, kwargs: Any) -> None:
        """Check the program by another run, if the messenger's own run left a doubt."""


class OneHotMessenger(ProgramMessenger):
    """Abstract base: decides what the discrete latents of a program are. Observed sites remain as written."""

    def __enter__(self) -> Any:
        self.sites: dict[str, Discrete] = {}
        self.observed: set[str] = set()  # one-hots alone: an observed bit may be a pixel
        return super().__enter__()

    def outside(self) -> Sequence[Messenger]:
        """Return the handlers outside this one."""
        handlers = handlers_on_stack()
        return handlers[: handlers.index(self)]

    def decides(self) -> bool:
        """Return whether this handler is the outermost of those that decide what a site is."""
        return not any(isinstance(handler, OneHotMessenger) for handler in self.outside())

    def _pyro_sample(self, msg: Messages) -> None:
        if msg["done"] or not is_random(msg) or not self.decides():
            return
        if msg["is_observed"] or msg["value"] is not None:
            if kind_of(msg["fn"]) is Kind.ONE_HOT:
                self.observed.add(msg["name"])
            return
        site = discrete(msg["fn"])
        if site is None:
            return
        if site.kind is Kind.ONE_HOT and site.num_event_dims > 1:
            raise ValueError(
                f"Expected one-hot site '{msg['name']}' to have event shape (K,) or (N, K), but found "
                f"{tuple(msg['fn'].event_shape)}. Try flattening its latents into one dimension."
            )
        self.sites[msg["name"]] = site
        self.declare(msg, site)

    @abstractmethod
    def declare(self, msg: Messages, site: Discrete) -> None:
        """Edit the message of a discrete latent so that it is what this handler wants."""
