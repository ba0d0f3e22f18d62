"""The base class of all handlers of one-hot sites; the outermost of them decides what a site is."""

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from pyro.poutine.messenger import Messenger
from torch import Tensor

from ..runtime.compat.pyro import handlers_on_stack
from .sites import Messages, OneHotSite, Program, one_hot_site


def temperature_of(msg: Messages, site: OneHotSite, given: float | Tensor | None, attempt: str) -> float | Tensor:
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


def refuse_integers(msg: Messages) -> None:
    """Refuse a latent integer `Categorical`, which has no values between its categories.

    A site marked for enumeration is allowed: stock Pyro sums over it.

    Raises:
        ValueError: if the site is one.
    """
    innermost = msg["fn"]
    while hasattr(innermost, "base_dist"):
        innermost = innermost.base_dist
    is_latent = not msg["is_observed"] and msg["value"] is None
    if is_latent and isinstance(innermost, torch.distributions.Categorical) and not msg["infer"].get("enumerate"):
        raise ValueError(
            f"Expected one-hot sites to relax, but found '{msg['name']}', a Categorical: an integer has no relaxation. "
            "Try OneHotCategorical, or remove this handler and use an estimator that scores or sums."
        )


class ProgramMessenger(Messenger):
    """A messenger for a single run of a program."""

    def check(self, program: Program, args: Any, kwargs: Any) -> None:
        """Check the program by another run, if the messenger's own run left a doubt."""


class OneHotMessenger(ProgramMessenger):
    """Abstract base: decides what the latent one-hot sites of a program are. Observed sites remain as written."""

    def __enter__(self) -> Any:
        self.sites: dict[str, OneHotSite] = {}
        self.observed: set[str] = set()
        return super().__enter__()

    def outside(self) -> Sequence[Messenger]:
        """Return the handlers outside this one."""
        handlers = handlers_on_stack()
        return handlers[: handlers.index(self)]

    def decides(self) -> bool:
        """Return whether this handler is the outermost of those that decide what a site is."""
        return not any(isinstance(handler, OneHotMessenger) for handler in self.outside())

    def _pyro_sample(self, msg: Messages) -> None:
        if msg["done"] or not self.decides():
            return
        site = one_hot_site(msg["fn"])
        if site is None:
            self.leave(msg)
            return
        if msg["is_observed"] or msg["value"] is not None:
            self.observed.add(msg["name"])
            return
        if site.num_event_dims > 2:
            raise ValueError(
                f"Expected one-hot site '{msg['name']}' to have event shape (K,) or (N, K), but found "
                f"{tuple(msg['fn'].event_shape)}. Try flattening its latents into one dimension."
            )
        self.sites[msg["name"]] = site
        self.declare(msg, site)

    def leave(self, msg: Messages) -> None:
        """Look at a site that is not a one-hot. It remains as written, unless the handler refuses it."""

    @abstractmethod
    def declare(self, msg: Messages, site: OneHotSite) -> None:
        """Edit the message of a latent one-hot site so that it is what this handler wants."""
