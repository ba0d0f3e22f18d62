"""Find where a loss became infinite or NaN: the first such site or parameter, in the order of execution."""

import warnings
from collections.abc import Iterator
from typing import Any, final

import pyro
import torch
from pyro import poutine
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor, nn

from ..data.columns import Data, columns
from ..estimators import Estimator
from ..exact import Pair
from ..handlers import discretize
from ..models.observations import takes_missing
from ..programs.batches import Arguments, arguments
from .state import State


def not_finite(vae: Any) -> dict[str, int]:
    """Count the elements of each parameter of a module that are not finite."""
    named = {name: parameter.detach() for name, parameter in vae.named_parameters()}
    counts = [(~parameter.isfinite()).sum() for parameter in named.values()]
    return dict(zip(named, torch.stack(counts).tolist(), strict=True)) if counts else {}


def check_weights(vae: Any, before: dict[str, int], state: State) -> None:
    """Refuse to save weights that are no longer finite, so that they do not replace the last good checkpoint.

    Args:
        vae: the module.
        before: what :func:`not_finite` counted when the run began: logits of -inf, for example, exclude categories.
        state: the progress of the run.

    Raises:
        ValueError: if a parameter has more elements that are not finite than when the run began.
    """
    for name, count in not_finite(vae).items():
        if count > before[name]:
            raise ValueError(
                f"Expected finite weights, but found others in '{name}' at step {state.step}. The last checkpoint is "
                f"that of step {state.kept_step}. Try a lower learning rate."
            )


@torch.no_grad()
def first_non_finite(vae: Any, estimator: Estimator, batch: Data) -> str | None:
    """Name the first value that is not finite: in the data, a parameter, or a site of guide or model.

    Args:
        vae: a module with `.model(x)` and `.guide(x)`.
        estimator: the estimator, whose handler is applied. Each program runs once, with the next random numbers.
        batch: data (B, D), or a tuple or dictionary of all arguments of the programs.

    Returns:
        For example "the log-probability of site 'x' of the model"; None if everything is finite, or if a program fails
        for another reason.
    """
    if not takes_missing(vae) and not all(torch.isfinite(column).all() for column in columns(batch)):
        return "the batch"
    for name, tensor in [*vae.named_parameters(), *vae.named_buffers()]:
        if not torch.isfinite(tensor).all():
            return f"the {'parameter' if isinstance(tensor, nn.Parameter) else 'buffer'} '{name}'"
    # Without a handler, the loss reads the programs with exact one-hots, so discretize them here.
    model, guide, _ = estimator.bind(Pair(discretize(vae.model), discretize(vae.guide)))
    with pyro.get_param_store().scope(), pyro.validation_enabled(False), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        of_guide, given = poutine.trace(guide), arguments(batch)
        found = _first_site(of_guide, given, "guide")
        return found or _first_site(poutine.trace(poutine.replay(model, of_guide.trace)), given, "model")


@final
class _Parameters(Messenger):
    """Checks the parameters of each site before it is sampled, because torch may refuse to sample."""

    def __init__(self) -> None:
        super().__init__()
        self.not_finite: str | None = None

    def _pyro_sample(self, msg: Any) -> None:
        if self.not_finite is None and not all(map(_has_no_nan, _tensors(msg["fn"]))):
            self.not_finite = msg["name"]


def _first_site(traced: Any, given: Arguments, program: str) -> str | None:
    """Name the first site that is not finite; return None if there is none or the program fails for another reason."""
    parameters = _Parameters()
    try:
        with parameters:
            traced(*given.args, **given.kwargs)
    except Exception:  # for example torch.multinomial, if probabilities are NaN
        if parameters.not_finite is None:
            return None
    for name, site in traced.trace.nodes.items():
        if name == parameters.not_finite:
            break
        if site["type"] != "sample" or site_is_subsample(site):
            continue
        if not _all_finite(site["value"]):
            return f"the value of site '{name}' of the {program}"
        if not _all_finite(site["fn"].log_prob(site["value"])):
            return f"the log-probability of site '{name}' of the {program}"
    if parameters.not_finite is not None:
        return f"a parameter of the distribution of site '{parameters.not_finite}' of the {program}"
    return None


def _tensors(distribution: Any) -> Iterator[Tensor]:
    """Yield the tensors of a distribution, including those of distributions that it wraps."""
    for value in vars(distribution).values():
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, torch.distributions.Distribution):
            yield from _tensors(value)


def _has_no_nan(tensor: Tensor) -> bool:
    """Return whether there is neither NaN nor inf. A logit of -inf is allowed: it excludes a category."""
    return not bool(torch.isnan(tensor).any() | (tensor == torch.inf).any())


def _all_finite(value: Any) -> bool:
    return not isinstance(value, Tensor) or bool(torch.isfinite(value).all())
