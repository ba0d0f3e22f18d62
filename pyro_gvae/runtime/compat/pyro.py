"""What the package asks of Pyro, and Pyro's public interface does not answer: one function for each question.

No release of Pyro promises these names. `tests/runtime/test_compat.py` asks each question of a small stock program.
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
from pyro.infer import ELBO, RenyiELBO, TraceEnum_ELBO, TraceTMC_ELBO
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
from pyro.poutine.trace_messenger import TraceMessenger
from pyro.poutine.util import site_is_subsample
from pyro.util import warn_if_nan
from torch import Tensor

# Handlers.


def handlers_on_stack() -> Sequence[Messenger]:
    """Return the handlers that are entered now, the outermost first.

    Pyro keeps them in a list that it does not export. The package asks because the outermost handler of one-hot sites
    decides, and because a recording made without handlers cannot stand for a call inside of one.
    """
    return tuple(_PYRO_STACK)


def only_records_parameters(handler: Messenger) -> bool:
    """Tell whether a handler is `poutine.trace(param_only=True)`, by which `SVI` finds what to train.

    It changes no value, so a recording may stand for a call inside of it.
    """
    return isinstance(handler, TraceMessenger) and handler.param_only


# Sites.


def is_random(msg: Any) -> bool:
    """Tell whether a sample site is a random variable, latent or observed.

    Two kinds of sample sites are none: the indices that a plate draws, and what `pyro.deterministic` writes, which Pyro
    marks by a private key of the site's settings. They count in no density.
    """
    return not site_is_subsample(msg) and not msg["infer"].get("_deterministic")


def settings_of_deterministic_site() -> dict[str, Any]:
    """Return the `infer` settings by which `pyro.deterministic` marks its sites.

    A handler that turns a sample into a function of another one cannot call `pyro.deterministic`, as it is inside of
    the site. Pyro's ELBOs then neither score the site nor miss it in the other program.
    """
    return {"_deterministic": True}


def enumerated_dim(msg: Any) -> int | None:
    """Return the batch dimension that Pyro enumerates a site in, or None where it does not.

    Pyro's `EnumMessenger` allocates it and leaves it in the site's settings. `enumerated` looks there for plates that
    enumeration would get wrong.
    """
    dim: int | None = msg["infer"].get("_enumerate_dim")
    return dim


def mask_of(distribution: MaskedDistribution) -> bool | Tensor:
    """Return the mask of a masked distribution, which handlers put around another distribution in its place."""
    mask: bool | Tensor = distribution._mask
    return mask


# Parameters.


def is_of_module(name: str) -> bool:
    """Tell whether a parameter's name is one that `pyro.module` makes: a module's, a divider, and the parameter's."""
    return module_from_param_with_module_name(name) != name


def give_itself_as_leaf(parameter: Tensor) -> None:
    """Let a parameter outside of Pyro's store be trained: `SVI` asks each for its leaf by `unconstrained()`.

    Pyro hangs a weak reference to the unconstrained tensor on the values of its store; PyroModule does the same for
    parameters that are local to a module, as here.
    """
    parameter.unconstrained = weakref.ref(parameter)  # type: ignore[attr-defined]


def forget_leaf(parameter: Tensor) -> None:
    """Take away the weak reference to a parameter's leaf, which cannot be pickled; Pyro makes it anew when it runs."""
    vars(parameter).pop("unconstrained", None)


def leaf_of(value: Tensor) -> Tensor:
    """Return the unconstrained tensor behind a parameter's value, which is what an optimizer moves."""
    leaf: Tensor = value.unconstrained() if hasattr(value, "unconstrained") else value
    return leaf


# ELBOs.


class LossOnlyELBO(ELBO):
    """Abstract: an ELBO that is asked for losses alone.

    Pyro's base class, by which `SVI` knows an ELBO, demands a private method that gives traces of model and guide.
    """

    def _get_trace(self, *_: Any) -> Any:
        raise TypeError(
            f"Expected {type(self).__name__} to be asked for its loss, but found a call for a trace. Try loss()."
        )


class Request(NamedTuple):
    """An ELBO that runs a program now.

    Attributes:
        elbo: the stock ELBO.
        wants_gradient: whether a loss with gradients is asked of it, and not its value alone.
    """

    elbo: ELBO
    wants_gradient: bool


def running_elbo() -> Request | None:
    """Return the stock ELBO whose trace the program that runs now is for, or None where there is none.

    A handler is not told. The ELBO's methods on Python's stack say it, by their names: `_get_trace` or `_get_traces`,
    below `loss` where no gradient is asked for. `discretize` refuses ELBOs that leave out the score of a discrete site.
    """
    frames = _outwards(sys._getframe(1))
    elbo = next(filter(None, (_elbo_that_runs(frame, "_get_trace", "_get_traces") for frame in frames)), None)
    if elbo is None:
        return None
    return Request(elbo, wants_gradient=all(_elbo_that_runs(frame, "loss") is not elbo for frame in frames))


def _elbo_that_runs(frame: FrameType, *methods: str) -> ELBO | None:
    """The ELBO of whose methods the frame is one."""
    owner = frame.f_locals.get("self") if frame.f_code.co_name in methods else None
    return owner if isinstance(owner, ELBO) else None


def runs_for_a_loss() -> bool:
    """Tell whether a method of an ELBO runs the program now, and not only to look at its shapes.

    Only Python's stack tells. `TraceEnum_ELBO` counts nested plates in `_guess_max_plate_nesting`, an autoguide reads
    its model in `_setup_prototype`: there, sites are sampled that will be enumerated. `enumerated` refuses a loss that
    samples them.
    """
    for frame in _outwards(sys._getframe(1)):
        if frame.f_code.co_name in ("_guess_max_plate_nesting", "_setup_prototype"):
            return False
        if isinstance(frame.f_locals.get("self"), ELBO):
            return True
    return False


def computes_marginals() -> bool:
    """Tell whether `TraceEnum_ELBO.compute_marginals` runs the program.

    It makes each posterior of the site's distribution, by `type(fn)(logits=...)`, with one entry for each value that
    was enumerated.
    """
    return _on_stack(_MARGINALS)


def samples_posterior() -> bool:
    """Tell whether the program runs for posterior samples of its enumerated sites.

    `infer_discrete` and `TraceEnum_ELBO.sample_posterior` ask for them, `TraceEnumSample_ELBO` does so later. They run
    a program twice: it is enumerated, and then given samples. The answer is the same both times.
    """
    return _on_stack(_POSTERIOR_SAMPLES)


def replayed_number(name: str) -> Tensor | None:
    """Return what `infer_discrete` has drawn for a site, in the run that is given samples; else None.

    Its handler has them in a trace. It gives them to sites that are marked for enumeration, and to no others.
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


# What Pyro's own code asks of the values of tensors, which a recording does not know.


def answer_without_value(question: Callable[..., Any]) -> Callable[..., Any] | None:
    """Return what answers a question of Pyro's about a tensor's value, whatever the value is; None if another asks.

    To be called in `__torch_function__`, of whose caller the code is compared with that of Pyro's functions.

    Args:
        question: a function of tensors that gives something else, such as `Tensor.item`.
    """
    return _ANSWERS.get((question, sys._getframe(2).f_code))


def looks_for_nan() -> bool:
    """Tell whether `warn_if_nan` asks for a tensor's value, perhaps with functions of torch between.

    To be called in `__torch_dispatch__`: as a hook of a backward pass, `warn_if_nan` is out of reach of function modes.
    """
    return any(frame.f_code is warn_if_nan.__code__ for frame in islice(_outwards(sys._getframe(2)), 4))


def _outwards(frame: FrameType | None) -> Iterator[FrameType]:
    """A frame of Python's stack, and those that called it."""
    while frame is not None:
        yield frame
        frame = frame.f_back


#: Where stock ELBOs turn a loss into a number.
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
    (Tensor.__bool__, _code(warn_if_nan)): lambda is_nan: False,  # it is looked for in each replay
    # TraceEnum_ELBO leaves out terms of probability zero; as zeros they do not change a sum.
    (Tensor.__bool__, _code(Dice.compute_expectation)): lambda nothing_to_leave_out: False,
    (Tensor.masked_select, _code(Dice.compute_expectation)): lambda term, mask: torch.where(mask, term, 0.0),
    **{(Tensor.item, _code(function)): Tensor.detach for function in _TO_NUMBERS},
}
