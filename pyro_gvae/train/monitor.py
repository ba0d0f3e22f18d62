"""What is watched while a program trains: the ELBO of the discrete model, whatever it is trained by."""

from typing import Any, Literal

import pyro
import torch
from pyro.infer import Trace_ELBO
from torch import Tensor

from .. import exact
from ..handlers import discretize
from ..runtime.rng import own_randomness

#: How the discrete ELBO is found: summed over all codes, from one sample for each datum, or not at all.
Judge = Literal["exact", "sampled", "none"]
#: A sum that takes longer than this many seconds would take longer than the training that it watches.
MOST_SECONDS = 10
#: Data whose ELBO is sampled at once.
CHUNK = 1000


def choose_judge(vae: Any, x: Tensor, *, max_memory: float | None = None) -> Judge:
    """How the discrete ELBO of a program is found for data x (B, D): "exact" where that takes seconds.

    Args:
        vae: a module with `.model(x)` and `.guide(x)`, which may have no one-hot sites, or others than can be summed.
        x: data (B, D).
        max_memory: bytes that a sum may take.
    """
    try:
        if exact.cost(vae, x, max_memory=max_memory).seconds < MOST_SECONDS:
            exact.elbo(vae, x[:1], max_memory=max_memory)
            return "exact"
    except (ValueError, RuntimeError, NotImplementedError):
        pass
    try:
        discrete_elbo(vae, x[:1], "sampled")
    except (ValueError, RuntimeError, NotImplementedError):
        return "none"
    return "sampled"


@torch.no_grad()
def discrete_elbo(vae: Any, x: Tensor, judge: Judge, *, max_memory: float | None = None) -> float | None:
    """The mean ELBO of the discrete model over data x (B, D), in nats per datum.

    Args:
        vae: a module with `.model(x)` and `.guide(x)`.
        x: data (B, D).
        judge: "exact" sums over all K^N codes; "sampled" draws one code for each datum, the same random numbers each
            time, and is unbiased; "none" is None.
        max_memory: bytes that the sum may take.
    """
    if judge == "none":
        return None
    with pyro.get_param_store().scope(), pyro.validation_enabled(False), own_randomness(0):
        if judge == "exact":
            return exact.elbo(vae, x, max_memory=max_memory).mean().item()
        model, guide = discretize(vae.model), discretize(vae.guide)
        return -sum(Trace_ELBO().loss(model, guide, part) for part in x.split(CHUNK)) / len(x)
