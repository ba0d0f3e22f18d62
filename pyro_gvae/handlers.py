"""Effect handlers that say what the one-hot sites of a Pyro program are: relaxed, discrete, or enumerated.

A program is written once, with `OneHotCategorical`, `OneHotCategorical(...).to_event(1)`, `RelaxedOneHotCategorical`
or our factorized sites. Where handlers are nested, the outermost one decides: `discretize(relax(program))` is
discrete.
"""

import functools
import inspect
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, overload

import pyro
import torch
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from .distributions.concrete import ExpConcrete, RelaxedOneHotCategorical, check_temperature
from .distributions.one_hot import num_codes
from .memory import in_words, memory_limit
from .sites import Messages, OneHotMessenger, OneHotSite, plates_of

Program = Callable[..., Any]


class RelaxMessenger(OneHotMessenger):
    """Samples one-hot sites as Concrete variables, in log space."""

    def __init__(self, temperature: float | Tensor | None) -> None:
        super().__init__()
        self.temperature = temperature

    def __enter__(self) -> Any:
        self.samples: dict[str, Tensor] = {}
        return super().__enter__()

    def declare(self, msg: Messages, site: OneHotSite) -> None:
        temperature = site.temperature if self.temperature is None else self.temperature
        name = msg["name"]
        if temperature is None:
            raise ValueError(
                f"Expected a temperature for the discrete site '{name}', but found none. "
                "Try relax(program, temperature=0.5)."
            )
        # The log-space value is what guide and model exchange: z itself underflows at low temperature, and its density
        # with it. z is then a function of it, as in Pyro's reparameterizers.
        log_site = site.distribution(lambda logits: ExpConcrete(temperature, logits=logits))
        infer: Any = {key: value for key, value in msg["infer"].items() if key != "enumerate"}
        log_z = pyro.sample(f"{name}_log", log_site, infer=infer)  # (..., K)
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


class DiscretizeMessenger(OneHotMessenger):
    """Samples one-hot sites as exact one-hots."""

    def declare(self, msg: Messages, site: OneHotSite) -> None:
        msg["fn"] = site.discrete()


class EnumeratedMessenger(OneHotMessenger):
    """Marks one-hot sites for parallel enumeration and refuses what enumeration would get wrong."""

    def __init__(self, max_memory: float | None) -> None:
        super().__init__()
        self.max_memory = max_memory

    def __enter__(self) -> Any:
        self.plates_of_dim: dict[int, tuple[str, frozenset[str]]] = {}
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
                raise ValueError(
                    f"Expected every site that depends on the enumerated site '{name}' to be inside its plate(s) "
                    f"{sorted(left)}, but found '{msg['name']}' outside of them: it mixes latents that enumeration "
                    "would give equal values. Try one site of event shape (N, K), OneHotCategorical(...).to_event(1), "
                    "in place of the plate."
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


def _handler(make: Callable[[], OneHotMessenger], program: Program | None) -> Any:
    """One messenger for each call of the program, so that a handled program may call itself or run in two places."""
    if program is None:
        return _DecoratorOrContext(make)

    @functools.wraps(program)
    def handled(*args: Any, **kwargs: Any) -> Any:
        with make():
            return program(*args, **kwargs)

    return handled


class _DecoratorOrContext(AbstractContextManager[None]):
    """`relax(temperature=0.5)` before its program is known: a decorator, or a context manager."""

    def __init__(self, make: Callable[[], OneHotMessenger]) -> None:
        self._make = make
        self._entered: list[OneHotMessenger] = []

    def __call__(self, program: Program) -> Program:
        handled: Program = _handler(self._make, program)
        return handled

    def __enter__(self) -> None:
        self._entered.append(self._make())
        self._entered[-1].__enter__()

    def __exit__(self, *exception: Any) -> None:
        self._entered.pop().__exit__(*exception)


@overload
def relax(program: Program, *, temperature: float | Tensor | None = None) -> Program: ...
@overload
def relax(program: None = None, *, temperature: float | Tensor | None = None) -> _DecoratorOrContext: ...
def relax(program: Program | None = None, *, temperature: float | Tensor | None = None) -> Any:
    """Replace every latent one-hot of a program by a Concrete (Gumbel-Softmax) sample that gradients flow through.

    A site "z" is sampled and scored in log space at the auxiliary site "z_log", where no temperature underflows, and
    z = exp(z_log) is a deterministic site. Model and guide are both relaxed, each at its own temperature if you like,
    and then train with stock `Trace_ELBO` (the relaxed bound: Maddison et al. 2017, arXiv 1611.00712) or
    `TraceMeanField_ELBO` (the categorical KL: Jang et al. 2017, arXiv 1611.01144; not a bound while samples are
    soft).

    Args:
        program: a model or guide; without it, a decorator and context manager is returned.
        temperature: t > 0 for all sites; None keeps the temperatures of sites that are relaxed already.

    Returns:
        The relaxed program.

    Raises:
        ValueError: if the temperature is not one positive number, or is missing where a site is discrete.

    Example:
        >>> import pyro.distributions as dist
        >>> @relax(temperature=0.5)
        ... def model():
        ...     return pyro.sample("z", dist.OneHotCategorical(logits=torch.zeros(3)))
        >>> bool(model().max() < 1)
        True
    """
    if temperature is not None:
        check_temperature(temperature)
    return _handler(lambda: RelaxMessenger(temperature), program)


@overload
def discretize(program: Program) -> Program: ...
@overload
def discretize(program: None = None) -> _DecoratorOrContext: ...
def discretize(program: Program | None = None) -> Any:
    """Make every latent one-hot of a program exact: relaxed sites become one-hots of the same logits.

    `OneHotCategorical(...).to_event(1)` sites become one :class:`FactorizedOneHotCategorical`, which can be enumerated.

    Args:
        program: a model or guide; without it, a decorator and context manager is returned.

    Returns:
        The discrete program.

    Example:
        >>> import pyro.distributions as dist
        >>> with discretize():
        ...     z = pyro.sample("z", dist.RelaxedOneHotCategorical(torch.tensor(0.5), logits=torch.zeros(3)))
        >>> float(z.max())
        1.0
    """
    return _handler(DiscretizeMessenger, program)


@overload
def enumerated(program: Program, *, max_memory: float | None = None) -> Program: ...
@overload
def enumerated(program: None = None, *, max_memory: float | None = None) -> _DecoratorOrContext: ...
def enumerated(program: Program | None = None, *, max_memory: float | None = None) -> Any:
    """Sum over all joint codes of a program's one-hot sites, with stock `TraceEnum_ELBO`; never sample them silently.

    `TraceEnum_ELBO().loss(enumerated(model), enumerated(guide), x)` is minus the exact ELBO of the discrete model,
    and with an empty guide minus the exact log-evidence.

    Args:
        program: a model or guide; without it, a decorator and context manager is returned.
        max_memory: bytes that the codes may take; a quarter of the free memory if None.

    Returns:
        The enumerated program.

    Raises:
        ValueError: when the program runs, if there is nothing to enumerate; if codes do not fit into `max_memory`; if a
            plate of latents meets a decoder that mixes them; if an ELBO samples the site in place of enumerating it.

    Example:
        >>> import pyro.distributions as dist
        >>> from pyro.infer import TraceEnum_ELBO
        >>> def model():
        ...     z = pyro.sample("z", dist.OneHotCategorical(logits=torch.zeros(2, 3)).to_event(1))  # (N, K)
        ...     pyro.sample("x", dist.Normal(z[..., 0].sum(-1), 1.0), obs=torch.tensor(1.0))
        >>> loss = TraceEnum_ELBO(max_plate_nesting=0).loss(enumerated(model), lambda: None)
        >>> round(loss, 4)  # -log p(x), summed over 9 codes
        1.1656
    """
    return _handler(lambda: EnumeratedMessenger(max_memory), program)
