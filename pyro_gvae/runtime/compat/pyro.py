"""Questions that Pyro's public interface does not answer, one function for each, by names that any release may change.

`tests/runtime/test_compat.py` asks each question about a small stock program.
"""

import sys
import weakref
from collections.abc import Callable, Iterator, Sequence
from inspect import unwrap
from itertools import islice
from types import CodeType, FrameType
from typing import Any, NamedTuple

import torch
from pyro.distributions import MaskedDistribution
from pyro.infer import ELBO, EnergyDistance, RenyiELBO, TraceEnum_ELBO, TraceTMC_ELBO
from pyro.infer.discrete import (
    SamplePosteriorMessenger,
    TraceEnumSample_ELBO,
    _sample_posterior,
    _sample_posterior_from_trace,
)
from pyro.infer.traceenum_elbo import BackwardSampleMessenger
from pyro.infer.util import Dice, torch_item
from pyro.params import module_from_param_with_module_name
from pyro.poutine.messenger import Messenger
from pyro.poutine.runtime import _PYRO_STACK
from pyro.poutine.subsample_messenger import SubsampleMessenger
from pyro.poutine.trace_messenger import TraceMessenger
from pyro.poutine.util import site_is_subsample
from pyro.util import warn_if_nan
from torch import Tensor

# Handlers.


def handlers_on_stack() -> Sequence[Messenger]:
    """Return the active handlers, the outermost first.

    Pyro does not export its list of them. The package needs it because the outermost handler of one-hot sites decides,
    and because a recording made without handlers cannot replace a call inside one.
    """
    return tuple(_PYRO_STACK)


def only_records_parameters(handler: Messenger) -> bool:
    """Return whether a handler is `poutine.trace(param_only=True)`, by which `SVI` finds the parameters to train.

    It changes no value, so a recording can replace a call inside it.
    """
    return isinstance(handler, TraceMessenger) and handler.param_only


# Sites.


def is_random(msg: Any) -> bool:
    """Return whether a sample site is a random variable, latent or observed.

    Two kinds of sample sites are not, and count in no density: the indices that a plate draws, and sites of
    `pyro.deterministic`, which Pyro marks by a private key of their settings.
    """
    return not site_is_subsample(msg) and not msg["infer"].get("_deterministic")


def is_intervened_on(msg: Any) -> bool:
    """Return whether `poutine.do` has replaced this site's value in the program. Pyro still samples the site itself."""
    return msg.get("_intervener_id") is not None and not msg["name"].endswith("__CF")


def settings_of_deterministic_site() -> dict[str, Any]:
    """Return the `infer` settings that mark a site of `pyro.deterministic`.

    A handler that turns a sample into a function of another one is inside the site, so it cannot call
    `pyro.deterministic`. With these settings, Pyro's ELBOs neither score the site nor require it in the other program.
    """
    return {"_deterministic": True}


def state_of_plate(thing: Any) -> tuple[Any, ...] | None:
    """Return the settings of a plate, or None for any other object.

    Autoguides make new plates in each call. Plates also count how often they are entered, and keep the indices that
    they drew, but two plates with the same settings do the same.
    """
    if not isinstance(thing, SubsampleMessenger):
        return None
    return thing.name, thing.size, thing.subsample_size, thing.dim, thing._vectorized, thing.device


def indices_of_full_plate(thing: Any) -> Tensor | None:
    """Return the indices 0, 1, .. of a plate that does not subsample; None for any other object."""
    is_full = isinstance(thing, SubsampleMessenger) and thing.size == thing.subsample_size
    return thing._indices if is_full and isinstance(thing._indices, Tensor) else None


def mask_of(distribution: MaskedDistribution) -> bool | Tensor:
    """Return the mask of a masked distribution, which wraps another distribution."""
    mask: bool | Tensor = distribution._mask
    return mask


# Parameters.


def is_of_module(name: str) -> bool:
    """Return whether a parameter's name comes from `pyro.module`: a module's name, a divider, the parameter's name."""
    return module_from_param_with_module_name(name) != name


def give_leaf(value: Tensor, leaf: Tensor) -> None:
    """Let a parameter outside Pyro's store be trained: `SVI` calls `unconstrained()` of each parameter's value.

    Pyro attaches a weak reference to the unconstrained tensor to the values in its store, and PyroModule to the values
    of local parameters. Without a constraint, a parameter is its own leaf.
    """
    value.unconstrained = weakref.ref(leaf)  # type: ignore[attr-defined]


def forget_leaf(parameter: Tensor) -> None:
    """Remove the weak reference to a parameter's leaf, which cannot be pickled. Pyro creates it again when it runs."""
    vars(parameter).pop("unconstrained", None)


def leaf_of(value: Tensor) -> Tensor:
    """Return the unconstrained tensor behind a parameter's value, which the optimizer updates."""
    leaf: Tensor = value.unconstrained() if hasattr(value, "unconstrained") else value
    return leaf


# ELBOs.


class LossOnlyELBO(ELBO):
    """Abstract base: an ELBO that only computes losses.

    `SVI` accepts only subclasses of Pyro's `ELBO`, which requires a private method that returns traces of model and
    guide.
    """

    def _get_trace(self, *_: Any) -> Any:
        raise TypeError(
            f"Expected a call of {type(self).__name__} for its loss, but found one for a trace. Try loss()."
        )


class Request(NamedTuple):
    """The ELBO that is running a program.

    Attributes:
        elbo: the stock ELBO, or stock `EnergyDistance`, which is not an ELBO.
        wants_gradient: whether a loss with gradients is computed, and not only its value.
    """

    elbo: ELBO | EnergyDistance
    wants_gradient: bool


def running_elbo() -> Request | None:
    """Return the stock ELBO that is running the current program to trace it, or None if there is none.

    Pyro does not tell handlers. So look for the ELBO's methods on Python's stack, by their names: `_get_trace` or
    `_get_traces`, called by `loss` if no gradient is computed. `discretize` refuses ELBOs that leave out the score of a
    discrete site.
    """
    frames = _outwards(sys._getframe(1))
    runs = (_elbo_that_runs(frame, "_get_trace", "_get_traces") for frame in frames)
    if (elbo := next((found for found in runs if found is not None), None)) is None:
        return None
    return Request(elbo, wants_gradient=all(_elbo_that_runs(frame, "loss") is not elbo for frame in frames))


def _elbo_that_runs(frame: FrameType, *methods: str) -> ELBO | EnergyDistance | None:
    """Return the ELBO if the frame is a call of one of these methods."""
    owner = frame.f_locals.get("self") if frame.f_code.co_name in methods else None
    return owner if isinstance(owner, ELBO | EnergyDistance) else None


def runs_for_a_loss() -> bool:
    """Return whether an ELBO is running the current program for its loss, and not only to see its shapes.

    Only Python's stack shows it. `TraceEnum_ELBO` counts nested plates in `_guess_max_plate_nesting`, and an autoguide
    reads its model in `_setup_prototype`; both sample sites that will be enumerated later. `enumerated` refuses a loss
    that samples them.
    """
    for frame in _outwards(sys._getframe(1)):
        if frame.f_code.co_name in ("_guess_max_plate_nesting", "_setup_prototype"):
            return False
        if isinstance(frame.f_locals.get("self"), ELBO):
            return True
    return False


def computes_marginals() -> bool:
    """Return whether `TraceEnum_ELBO.compute_marginals` is running the program.

    It builds each posterior from the site's distribution, by `type(fn)(logits=...)`, with one logit for each enumerated
    value.
    """
    return _on_stack(_MARGINALS)


def samples_posterior() -> bool:
    """Return whether the program runs for posterior samples of its enumerated sites.

    This is the case for `infer_discrete`, `TraceEnum_ELBO.sample_posterior` and `TraceEnumSample_ELBO`. They run a
    program twice, first enumerated and then with samples; the answer is the same both times.
    """
    return _on_stack(_POSTERIOR_SAMPLES)


def replayed_number(name: str) -> Tensor | None:
    """Return the value that `infer_discrete` drew for a site, in its run with samples; None otherwise.

    Its handler has the values in a trace. It gives them only to sites that are marked for enumeration.
    """
    traces = (handler.trace for handler in handlers_on_stack() if isinstance(handler, SamplePosteriorMessenger))
    nodes: Any = next((trace.nodes for trace in traces if trace is not None and name in trace.nodes), {})
    return nodes[name]["value"] if nodes else None


def outside_of_backward_sampling() -> Sequence[Messenger]:
    """Return the handlers outside of `TraceEnum_ELBO.sample_posterior` in the run that draws samples; else none."""
    handlers = handlers_on_stack()
    inside = [index for index, handler in enumerate(handlers) if isinstance(handler, BackwardSampleMessenger)]
    return handlers[: inside[0]] if inside else ()


def _on_stack(codes: frozenset[CodeType]) -> bool:
    return any(frame.f_code in codes for frame in _outwards(sys._getframe(2)))


# Where Pyro's own code reads the values of tensors, which are unknown during a recording.


def answer_without_value(question: Callable[..., Any]) -> Callable[..., Any] | None:
    """Return a replacement for a call in Pyro's code that reads a tensor's value; None for other callers.

    Call this in `__torch_function__`. It compares the code of the caller with that of Pyro's functions.

    Args:
        question: the function that reads a value, such as `Tensor.item`.
    """
    return _ANSWERS.get((question, sys._getframe(2).f_code))


def looks_for_nan() -> bool:
    """Return whether `warn_if_nan` is reading a tensor's value, perhaps through functions of torch.

    Call this in `__torch_dispatch__`: as a hook of a backward pass, `warn_if_nan` is not seen by function modes.
    """
    return any(frame.f_code is warn_if_nan.__code__ for frame in islice(_outwards(sys._getframe(2)), 4))


def _outwards(frame: FrameType | None) -> Iterator[FrameType]:
    """Yield a frame of Python's stack, and then its callers."""
    while frame is not None:
        yield frame
        frame = frame.f_back


#: Functions in which stock ELBOs convert a loss to a number.
_TO_NUMBERS: tuple[Callable[..., Any], ...] = (
    torch_item,
    *(method for kind in (RenyiELBO, TraceEnum_ELBO, TraceTMC_ELBO) for method in (kind.loss, kind.loss_and_grads)),
)


def _code(function: Any) -> CodeType:
    code: CodeType = unwrap(function).__code__  # `torch.no_grad()` wraps some
    return code


_MARGINALS = frozenset({_code(TraceEnum_ELBO.compute_marginals)})
_POSTERIOR_SAMPLES = frozenset(
    {
        _code(_sample_posterior),
        _code(_sample_posterior_from_trace),
        _code(TraceEnum_ELBO.sample_posterior),
        _code(TraceEnumSample_ELBO._get_trace),
    }
)

_ANSWERS: dict[tuple[Any, CodeType], Callable[..., Any]] = {
    (Tensor.__bool__, _code(warn_if_nan)): lambda is_nan: False,  # each replay checks for NaN itself
    # TraceEnum_ELBO leaves out terms of probability zero. Kept as zeros, they do not change a sum.
    (Tensor.__bool__, _code(Dice.compute_expectation)): lambda nothing_to_leave_out: False,
    (Tensor.masked_select, _code(Dice.compute_expectation)): lambda term, mask: torch.where(mask, term, 0.0),
    **{(Tensor.item, _code(function)): Tensor.detach for function in _TO_NUMBERS},
}
