"""Where a loss stopped being a finite number: the first site or parameter, in the order in which programs run."""

import warnings
from typing import Any

import pyro
import torch
from pyro import poutine
from torch import Tensor, nn

from ..estimators import Estimator


@torch.no_grad()
def first_non_finite(vae: Any, estimator: Estimator, x: Tensor) -> str | None:
    """What is not finite first, in words: data, a parameter, or a site of guide or model under the estimator's handler.

    Args:
        vae: a module with `.model(x)` and `.guide(x)`.
        estimator: the handler under which they run, once, with the random numbers that come next.
        x: the batch (B, D).

    Returns:
        For example "the log-probability of site 'x' of the model"; None if all of that is finite.
    """
    if not torch.isfinite(x).all():
        return "the batch"
    for name, tensor in [*vae.named_parameters(), *vae.named_buffers()]:
        if not torch.isfinite(tensor).all():
            return f"the {'parameter' if isinstance(tensor, nn.Parameter) else 'buffer'} '{name}'"
    model, guide, _ = estimator.bind(vae)
    with pyro.get_param_store().scope(), pyro.validation_enabled(False), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        of_guide = poutine.trace(guide)
        found = _first_site(of_guide, x, "guide")
        return found or _first_site(poutine.trace(poutine.replay(model, of_guide.trace)), x, "model")


def _first_site(traced: Any, x: Tensor, program: str) -> str | None:
    try:
        traced(x)
    except (RuntimeError, ValueError) as error:  # such as torch.multinomial, of probabilities that are NaN
        sites = [name for name, site in traced.trace.nodes.items() if site["type"] == "sample"]
        after = f" after site '{sites[-1]}'" if sites else ""
        return f"what the {program} samples from{after} ({str(error).splitlines()[0]})"
    for name, site in traced.trace.nodes.items():
        if site["type"] != "sample" or type(site["fn"]).__name__ == "_Subsample":
            continue
        if not _all_finite(site["value"]):
            return f"the value of site '{name}' of the {program}"
        if not _all_finite(site["fn"].log_prob(site["value"])):
            return f"the log-probability of site '{name}' of the {program}"
    return None


def _all_finite(value: Any) -> bool:
    return not isinstance(value, Tensor) or bool(torch.isfinite(value).all())
