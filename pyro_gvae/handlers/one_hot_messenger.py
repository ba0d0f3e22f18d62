"""The base class of all handlers of discrete latents; the outermost of them decides what a site is."""

from abc import abstractmethod
from collections.abc import Container, Iterator, Sequence
from typing import Any

from pyro.distributions import ExpandedDistribution, Independent, MaskedDistribution
from pyro.infer import EnergyDistance, Trace_MMD
from pyro.poutine.block_messenger import BlockMessenger
from pyro.poutine.messenger import Messenger
from pyro.poutine.replay_messenger import ReplayMessenger
from torch import Tensor
from typing_extensions import override

from ..runtime.compat.enumeration import enumerated_dim
from ..runtime.compat.pyro import handlers_on_stack, is_random, running_elbo
from .chosen import EVERY_SITE
from .sites import Discrete, Kind, Messages, Program, discrete, kind_of


def temperature_of(
    msg: Messages,
    site: Discrete,
    given: float | Tensor | None,
    otherwise: float | Tensor | None = None,
    *,
    attempt: str,
) -> float | Tensor:
    """Return a handler's temperature for a site.

    Args:
        msg: the site's message.
        site: its distribution as digits.
        given: the temperature for all sites; if None, the site's own is used, from its distribution or its settings.
        otherwise: the temperature of sites without one of their own.
        attempt: what the error suggests to try.

    Raises:
        ValueError: if there is none.
    """
    own = msg["infer"].get("temperature") if site.temperature is None else site.temperature
    found = (temperature for temperature in (given, own, otherwise) if temperature is not None)
    temperature: float | Tensor | None = next(found, None)
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
        family = type(innermost(msg["fn"])).__name__
        raise ValueError(
            f"Expected one-hots or bits to relax, but found '{msg['name']}', a {family}: an integer has no relaxation. "
            "Try OneHotCategorical, or remove this handler and use an estimator that scores or sums."
        )
    return site.kind is not Kind.INTEGER


def in_model_alone(name: str) -> ValueError:
    """Return the error for a latent that the guide lacks, under a loss that draws latents from the guide."""
    return ValueError(
        f"Expected the guide to have all discrete latents of the model, but found '{name}' in the model alone, so that "
        'no value of it can be drawn from the guide. Try ExactELBO or estimator("exact"), which sum such latents, or '
        "add it to the guide."
    )


def in_guide_alone(name: str) -> ValueError:
    """Return the error for a discrete latent of the guide that the model lacks."""
    return ValueError(
        f"Expected the model to have all discrete latents of the guide, but found '{name}' in the guide alone. Its "
        "entropy would be added to the ELBO, which would then be no bound of log p(x). Try adding it to the model, "
        "with a distribution that may depend on the other latents."
    )


def no_discrete_site() -> ValueError:
    """Return the error for a model without any discrete site, under a handler or a loss of discrete latents."""
    return ValueError(
        "Expected the model to have a discrete site, latent or observed, but found none. Try OneHotCategorical, "
        "Bernoulli or Categorical latents, or Trace_ELBO without a handler."
    )


def coupled_guide(name: str) -> ValueError:
    """Return the error for a guide whose digits a prior couples."""
    return ValueError(
        f"Expected a guide whose digits are drawn one by one, but found a prior that couples those of '{name}'. "
        "Try FactorizedOneHotCategorical, or a site for each digit, whose logits depend on earlier digits."
    )


class ProgramMessenger(Messenger):
    """A messenger for a single run of a program."""

    def check(self, program: Program, args: Any, kwargs: Any) -> None:
        """Check the program, by another run if the messenger's own run left doubts."""


class OneHotMessenger(ProgramMessenger):
    """Abstract base: decides what discrete latents of a program are. Observed sites remain as written.

    Args:
        on: the names of the sites that it acts on.
    """

    def __init__(self, on: Container[str] = EVERY_SITE) -> None:
        super().__init__()
        self.on = on

    def __enter__(self) -> Any:
        self.sites: dict[str, Discrete] = {}
        self.names: list[str] = []  # of all its random sites
        self.present: set[str] = set()  # of all its sites; what another handler has relaxed is no longer random
        self.observes = False  # whether anything is observed, so that the program is a model
        self.has_label = False  # whether a discrete site is observed
        result = super().__enter__()
        self.is_alone = self.is_outermost() and self.on == EVERY_SITE
        return result

    def outside(self) -> Sequence[Messenger]:
        """Return the handlers outside this one."""
        handlers = handlers_on_stack()
        return handlers[: handlers.index(self)]

    def is_outermost(self) -> bool:
        """Return whether no handler outside this one decides what any site is."""
        return not any(isinstance(handler, OneHotMessenger) for handler in self.outside())

    def decides(self, name: str) -> bool:
        """Return whether this handler is the outermost of those that decide what this site is."""
        outside = (handler for handler in self.outside() if isinstance(handler, OneHotMessenger))
        return name in self.on and not any(name in handler.on for handler in outside)

    def _pyro_sample(self, msg: Messages) -> None:
        self.present.add(msg["name"])
        if not is_random(msg):
            return
        self.names.append(msg["name"])
        if msg["done"] or not self.decides(msg["name"]):
            return
        if msg["is_observed"] or msg["value"] is not None:
            self.has_label |= kind_of(msg["fn"]) is not None
            return
        site = discrete(msg["fn"])
        if site is None:
            if isinstance(self.on, frozenset):
                self.refuse(msg)
            return
        if site.kind is Kind.ONE_HOT and site.num_event_dims > 1:
            raise ValueError(
                f"Expected one-hot site '{msg['name']}' to have event shape (K,) or (N, K), but found "
                f"{tuple(msg['fn'].event_shape)}. Try flattening its latents into one dimension."
            )
        self.sites[msg["name"]] = site
        self.declare(msg, site)

    def _pyro_post_sample(self, msg: Messages) -> None:
        self.observes |= is_random(msg) and bool(msg["is_observed"]) and not msg["infer"].get("is_auxiliary")

    @abstractmethod
    def declare(self, msg: Messages, site: Discrete) -> None:
        """Edit the message of a discrete latent so that it is what this handler wants."""

    def refuse(self, msg: Messages) -> None:
        """Refuse a latent that was named for this handler but is not discrete.

        Raises:
            ValueError: if this handler cannot act on it.
        """
        raise ValueError(
            f"Expected a latent of one-hots, bits or integers at '{msg['name']}', but found a "
            f"{type(innermost(msg['fn'])).__name__}. Try only the names of discrete latents."
        )

    @override
    def check(self, program: Program, args: Any, kwargs: Any) -> None:
        """Refuse names that a model does not have, and a model without any discrete site.

        A guide need not have the observed sites, and all discrete sites of a model may be observed.

        Raises:
            ValueError: if there is no such site.
        """
        if self.observes and self.is_alone and not (self.sites or self.has_label):
            raise no_discrete_site()
        if self.observes and isinstance(self.on, frozenset):
            for name in sorted(self.on.difference(self.names)):
                found = ", ".join(f"'{own}'" for own in dict.fromkeys(self.names))
                raise ValueError(f"Expected the program to have a site '{name}', but found {found}.")


def innermost(fn: Any) -> Any:
    """Return the distribution inside `.mask`, `.expand` and `.to_event`."""
    while isinstance(fn, MaskedDistribution | ExpandedDistribution | Independent):
        fn = fn.base_dist
    return fn


class DrawingMessenger(OneHotMessenger):
    """Abstract base: draws discrete latents, and refuses those that the model or the guide lacks.

    An ELBO would draw latents of the model alone from the prior, and would then not be a bound of log p(x); nor would
    it be with latents of the guide alone. Losses that compare samples, such as `Trace_MMD`, may draw from the prior. A
    latent that stock Pyro enumerates is summed out.
    """

    def __enter__(self) -> Any:
        self.alone: list[str] = []
        return super().__enter__()

    def __exit__(self, kind: Any, value: Any, traceback: Any) -> Any:
        surplus = list(self._in_guide_alone()) if kind is None and self.observes else []
        result = super().__exit__(kind, value, traceback)
        if kind is None and self.observes and self.alone:
            raise in_model_alone(self.alone[0])
        if surplus:
            raise in_guide_alone(surplus[0])
        return result

    def _in_guide_alone(self) -> Iterator[str]:
        """Yield the discrete latents of a guide, whose values an ELBO replays, that this model lacks."""
        if not _compares_densities():
            return
        for handler in self.outside():
            trace = handler.trace if isinstance(handler, ReplayMessenger) else None
            for name, site in ({} if trace is None else trace.nodes).items():
                if site["type"] == "sample" and kind_of(site["fn"]) is not None and name not in self.present:
                    yield name

    def draws(self, name: str) -> bool:
        """Return whether this handler has drawn a site."""
        return name in self.sites

    def _pyro_post_sample(self, msg: Messages) -> None:
        super()._pyro_post_sample(msg)
        if not msg["is_observed"] and self.draws(msg["name"]) and enumerated_dim(msg) is None and _is_alone(msg):
            self.alone.append(msg["name"])


def refuse_coupled_guide(msg: Messages, site: Discrete) -> None:
    """Refuse a guide whose digits a prior couples: they have no surrogate and no relaxed density.

    Raises:
        ValueError: if an ELBO runs the program as its guide, without values to replay.
    """
    if site.prior is not None and not list(_traces_that_reach(msg)):
        request = running_elbo()
        if request is not None and not isinstance(request.elbo, Trace_MMD | EnergyDistance):
            raise coupled_guide(msg["name"])


def _is_alone(msg: Messages) -> bool:
    """Return whether an ELBO runs a model with the values of a guide that lacks this site."""
    traces = list(_traces_that_reach(msg))
    if not traces or any(msg["name"] in trace for trace in traces):
        return False
    return _compares_densities()


def _compares_densities() -> bool:
    """Return whether an ELBO runs the program, and not a loss that compares samples."""
    request = running_elbo()
    return request is not None and not isinstance(request.elbo, Trace_MMD)


def _traces_that_reach(msg: Messages) -> Iterator[Any]:
    """Yield the traces from which handlers replay a site."""
    for handler in reversed(handlers_on_stack()):
        if isinstance(handler, BlockMessenger) and handler.hide_fn(msg):
            return
        if isinstance(handler, ReplayMessenger) and handler.trace is not None:
            yield handler.trace
