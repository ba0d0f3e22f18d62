"""What relaxing, discretizing, enumerating and a straight-through do to a one-hot site, message by message."""

import inspect
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.infer import (
    ELBO,
    RenyiELBO,
    TraceMeanField_ELBO,
    TraceTailAdaptive_ELBO,
    TraceTMC_ELBO,
)
from pyro.infer.inspect import get_dependencies
from pyro.poutine.replay_messenger import ReplayMessenger
from pyro.poutine.runtime import _PYRO_STACK
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from ..distributions.concrete import ExpConcrete, RelaxedOneHotCategorical
from ..distributions.one_hot import num_codes
from ..distributions.straight_through import StraightThroughOneHotCategorical
from ..distributions.surrogates import Kind
from ..runtime.memory import in_words, memory_limit
from .sites import Messages, OneHotMessenger, OneHotSite, Program, ProgramMessenger, plates_of


class RelaxMessenger(OneHotMessenger):
    """Samples one-hot sites as Concrete variables, in log space."""

    def __init__(self, temperature: float | Tensor | None) -> None:
        super().__init__()
        self.temperature = temperature

    def __enter__(self) -> Any:
        self.samples: dict[str, Tensor] = {}
        return super().__enter__()

    def declare(self, msg: Messages, site: OneHotSite) -> None:
        name = msg["name"]
        temperature = _temperature(name, site, self.temperature, "relax(program, temperature=0.5)")
        # The log-space value is what guide and model exchange: z itself underflows at low temperature, and its density
        # with it. z is then a function of it, as in Pyro's reparameterizers.
        log_site = site.distribution(lambda logits: ExpConcrete(temperature, logits=logits))
        log_z = pyro.sample(f"{name}_log", log_site, infer=_sampled(msg))  # (..., K)
        relaxed = site.distribution(
            lambda logits: RelaxedOneHotCategorical(temperature, logits=logits, validate_args=False)
        )
        msg["fn"] = relaxed.mask(False)
        msg["value"] = self.samples[name] = log_z.exp().to(site.dtype)
        msg["is_observed"] = True
        # Auxiliary: the guide may have it although the model knows it only as a function of the log-space site.
        msg["infer"] = {"_deterministic": True, "is_auxiliary": True}

    def _pyro_post_sample(self, msg: Messages) -> None:
        expected, found = self.samples.get(msg["name"]), msg["value"]
        if expected is None or found is expected:
            return
        if found.shape != expected.shape or not torch.allclose(found, expected, atol=1e-6):
            name = msg["name"]
            raise ValueError(
                f"Expected the relaxed site '{name}' to be exp('{name}_log'), but a handler outside of relax() gave it "
                f"another value. Try relax(condition(program, ..)) to observe a one-hot, or condition '{name}_log'."
            )


class StraightThroughMessenger(OneHotMessenger):
    """Samples one-hot sites as exact one-hots with a surrogate gradient."""

    def __init__(self, kind: Kind, temperature: float | Tensor | None) -> None:
        super().__init__()
        self.kind = kind
        self.temperature = temperature

    def declare(self, msg: Messages, site: OneHotSite) -> None:
        temperature = _temperature(msg["name"], site, self.temperature, "straight_through(program, temperature=0.5)")
        msg["fn"] = site.distribution(
            lambda logits: StraightThroughOneHotCategorical(temperature, logits=logits.to(site.dtype), kind=self.kind)
        )
        msg["infer"] = _sampled(msg)


def _temperature(name: str, site: OneHotSite, given: float | Tensor | None, attempt: str) -> float | Tensor:
    """The temperature that a handler gives, or else the site's own."""
    temperature = site.temperature if given is None else given
    if temperature is None:
        raise ValueError(f"Expected a temperature for the discrete site '{name}', but found none. Try {attempt}.")
    return temperature


def _sampled(msg: Messages) -> Any:
    """A site's settings without enumeration, of which a sample knows nothing."""
    return {key: value for key, value in msg["infer"].items() if key != "enumerate"}


class WeighKLMessenger(ProgramMessenger):
    """Scales the log-densities of latent sites, whatever distribution other handlers give them."""

    def __init__(self, beta: float | Tensor) -> None:
        super().__init__()
        self.beta = beta

    def _pyro_sample(self, msg: Messages) -> None:
        if not (msg["is_observed"] or site_is_subsample(msg) or msg["infer"].get("_deterministic")):
            msg["scale"] = self.beta * msg["scale"]


class DiscretizeMessenger(OneHotMessenger):
    """Samples one-hot sites as exact one-hots."""

    def declare(self, msg: Messages, site: OneHotSite) -> None:
        if site.logits.requires_grad and torch.is_grad_enabled():
            _check_has_score(msg["name"])
        msg["fn"] = site.discrete()


class EnumeratedMessenger(OneHotMessenger):
    """Marks one-hot sites for parallel enumeration and refuses what enumeration would get wrong."""

    def __init__(self, max_memory: float | None) -> None:
        super().__init__()
        self.max_memory = max_memory

    def __enter__(self) -> Any:
        self.plates_of_dim: dict[int, tuple[str, frozenset[str]]] = {}
        self.suspects: dict[tuple[str, str], frozenset[str]] = {}
        self.others: set[bool] = set()  # whether the sites that are not latent one-hots are observed
        return super().__enter__()

    def __exit__(self, kind: Any, value: Any, traceback: Any) -> Any:
        # A guide without one-hots leaves them to the model; a model has observations.
        guide_of_others = self.others == {False}
        nothing_found = kind is None and self.decides() and not (self.sites or self.observed or guide_of_others)
        result = super().__exit__(kind, value, traceback)
        if nothing_found:
            raise ValueError(
                "Expected a one-hot site to enumerate, but found none. Try OneHotCategorical or "
                "RelaxedOneHotCategorical sites, or remove enumerated()."
            )
        return result

    def declare(self, msg: Messages, site: OneHotSite) -> None:
        check_memory(msg["name"], site, self.max_memory)
        msg["fn"] = site.discrete()
        # Settings that ask Pyro for samples of the site give way.
        kept = {key: value for key, value in msg["infer"].items() if key not in ("num_samples", "tmc", "expand")}
        msg["infer"] = kept | {"enumerate": "parallel"}

    def _pyro_post_sample(self, msg: Messages) -> None:
        name, dim = msg["name"], msg["infer"].get("_enumerate_dim")
        if name in self.sites:
            if dim is not None:
                self.plates_of_dim[dim] = name, plates_of(msg)
            elif not msg["is_observed"]:
                _check_enumerator(name)
        elif not (site_is_subsample(msg) or msg["infer"].get("_deterministic")):
            self.others.add(bool(msg["is_observed"]))
            self._check_plates(msg)

    def _check_plates(self, msg: Messages) -> None:
        batch_shape = getattr(msg["fn"], "batch_shape", ())
        for dim, (name, plates) in self.plates_of_dim.items():
            depends = len(batch_shape) >= -dim and batch_shape[dim] > 1
            left = plates - plates_of(msg)
            if depends and left:
                raise _mixes(name, msg["name"], left)
            if left:
                self.suspects[name, msg["name"]] = left

    def check(self, program: Program, args: Any, kwargs: Any) -> None:
        """Refuse sites outside of a latent's plates that depend on it, although their shapes do not tell."""
        if self.suspects:
            with poutine.block(), DiscretizeMessenger():
                upstream: Any = get_dependencies(program, args, kwargs)["prior_dependencies"]
            for (name, other), left in self.suspects.items():
                if name in upstream.get(other, ()):
                    raise _mixes(name, other, left)


def _mixes(name: str, other: str, plates: frozenset[str]) -> ValueError:
    return ValueError(
        f"Expected every site that depends on the enumerated site '{name}' to be inside its plate(s) {sorted(plates)}, "
        f"but found '{other}' outside of them: it mixes latents that enumeration would give equal values. Try one site "
        "of event shape (N, K), OneHotCategorical(...).to_event(1), in place of the plate."
    )


#: ELBOs of stock Pyro whose gradient goes through samples alone, or that drop the score of a discrete one, and what to
#: take in place of each. (Those that refuse a discrete site by themselves, as Trace_MMD does, need no row.)
WITHOUT_SCORE: dict[type[ELBO], str] = {
    RenyiELBO: "VIMCO, the same bound for alpha=0",
    TraceTMC_ELBO: "VIMCO",
    TraceMeanField_ELBO: "Trace_ELBO or ReinforceLOO",
    TraceTailAdaptive_ELBO: "ReweightedWakeSleep",
}


def _check_has_score(name: str) -> None:
    """Refuse to sample a guide's site for an ELBO that would leave its score out of the gradient, without a word.

    Which ELBO asks, and for what, only the stack tells. A model is replayed, and may be so by any.
    """
    replays = (handler.trace for handler in _PYRO_STACK if isinstance(handler, ReplayMessenger))
    if any(trace is not None and name in trace for trace in replays):
        return
    frame, elbo = inspect.currentframe(), None
    while frame is not None:
        if elbo is None and frame.f_code.co_name in ("_get_trace", "_get_traces"):
            elbo = frame.f_locals.get("self")
            if not isinstance(elbo, tuple(WITHOUT_SCORE)):
                return
        if elbo is not None and frame.f_code.co_name == "loss" and frame.f_locals.get("self") is elbo:
            return  # without gradients the loss is right
        frame = frame.f_back
    if elbo is None:
        return
    other = next(other for kind, other in WITHOUT_SCORE.items() if isinstance(elbo, kind))
    raise ValueError(
        f"Expected an ELBO that has the score of the discrete site '{name}' in its gradient, but found a "
        f"{type(elbo).__name__}, which leaves it out, so that the guide would get a wrong gradient or none. Try "
        f"{other}, or relax() in place of discretize()."
    )


def _check_enumerator(name: str) -> None:
    """Let a marked site be sampled only where `TraceEnum_ELBO` looks at shapes, which nothing but its name tells."""
    frame = inspect.currentframe()
    while frame is not None:
        if frame.f_code.co_name == "_guess_max_plate_nesting":
            return
        frame = frame.f_back
    raise ValueError(
        f"Expected site '{name}' to be enumerated, but it was sampled. Try TraceEnum_ELBO, which enumerates, "
        "or discretize() in place of enumerated()."
    )


def check_memory(name: str, site: OneHotSite, max_memory: float | None) -> None:
    """Refuse, before anything is allocated, to enumerate what cannot fit.

    The codes (S, N, K) and their log-probabilities (S, B) are the least that an enumeration holds; a decoder adds to
    it.

    Raises:
        ValueError: if they alone take more than `max_memory` bytes (a quarter of the free memory if None).
    """
    logits = site.logits
    num_latents, num_categories = logits.shape[-2:] if site.num_event_dims == 2 else (1, logits.shape[-1])
    batch_size = logits.shape[: -site.num_event_dims].numel()
    total = num_codes(num_latents, num_categories)
    needed = total * (num_latents * num_categories + batch_size) * logits.element_size()
    limit = memory_limit(max_memory, logits.device)
    if needed > limit:
        raise ValueError(
            f"Expected the joint codes of site '{name}' to fit into {in_words(limit)}, but found S = K^N = "
            f"{num_categories}^{num_latents} = {total:,} codes, at least {in_words(needed)}. Try ExactELBO, which sums "
            "them in slices, a larger max_memory, fewer latents or categories, or relax() in place of enumeration."
        )
