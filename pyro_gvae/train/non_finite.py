"""Where a loss stopped being a finite number: the first site or parameter, in the order in which programs run."""

import warnings
from collections.abc import Iterator
from typing import Any, final

import pyro
import torch
from pyro import poutine
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor, nn

from ..estimators import Estimator
from ..exact import Pair
from ..handlers import discretize


def not_finite(vae: Any) -> dict[str, int]:
    """How many numbers of each parameter of a module are not finite."""
    named = {name: parameter.detach() for name, parameter in vae.named_parameters()}
    counts = [(~parameter.isfinite()).sum() for parameter in named.values()]
    return dict(zip(named, torch.stack(counts).tolist(), strict=True)) if counts else {}


@torch.no_grad()
def first_non_finite(vae: Any, estimator: Estimator, x: Tensor) -> str | None:
    """What is not finite first, in words: data, a parameter, or a site of guide or model under the estimator's handler.

    Args:
        vae: a module with `.model(x)` and `.guide(x)`.
        estimator: the handler under which they run, once, with the random numbers that come next.
        x: the batch (B, D).

    Returns:
        For example "the log-probability of site 'x' of the model"; None if all of that is finite, or a program fails
        of something else: an error is not a number.
    """
    if not torch.isfinite(x).all():
        return "the batch"
    for name, tensor in [*vae.named_parameters(), *vae.named_buffers()]:
        if not torch.isfinite(tensor).all():
            return f"the {'parameter' if isinstance(tensor, nn.Parameter) else 'buffer'} '{name}'"
    # Where the estimator has no handler, its loss reads the programs, with exact one-hots.
    model, guide, _ = estimator.bind(Pair(discretize(vae.model), discretize(vae.guide)))
    with pyro.get_param_store().scope(), pyro.validation_enabled(False), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        of_guide = poutine.trace(guide)
        found = _first_site(of_guide, x, "guide")
        return found or _first_site(poutine.trace(poutine.replay(model, of_guide.trace)), x, "model")


@final
class _Parameters(Messenger):
    """Looks at the parameters of each site before it is sampled, which torch may refuse to do."""

    def __init__(self) -> None:
        super().__init__()
        self.not_finite: str | None = None

    def _pyro_sample(self, msg: Any) -> None:
        if self.not_finite is None and not all(map(_has_no_nan, _tensors(msg["fn"]))):
            self.not_finite = msg["name"]


def _first_site(traced: Any, x: Tensor, program: str) -> str | None:
    """The first site in words; None also where the program fails of something else than of numbers."""
    parameters = _Parameters()
    try:
        with parameters:
            traced(x)
    except Exception:  # such as torch.multinomial, of probabilities that are NaN
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
    """The tensors that a distribution is made of, those of the distribution that it wraps included."""
    for value in vars(distribution).values():
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, torch.distributions.Distribution):
            yield from _tensors(value)


def _has_no_nan(tensor: Tensor) -> bool:
    """A logit of -inf excludes a category, and is as it should be."""
    return not bool(torch.isnan(tensor).any() | (tensor == torch.inf).any())


def _all_finite(value: Any) -> bool:
    return not isinstance(value, Tensor) or bool(torch.isfinite(value).all())
