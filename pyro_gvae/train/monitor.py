"""The monitor of a training run: the ELBO of the discrete model, whichever estimator trains it."""

from typing import Any

import pyro
import torch
from pyro.infer import Trace_ELBO
from torch import Tensor

from .. import exact
from ..config.names import Judge
from ..config.train import TrainConfig
from ..config.units import in_bytes
from ..data.dataset import Dataset
from ..handlers import discretize
from ..programs.modes import judging
from ..runtime.distributed import from_main
from ..runtime.rng import own_randomness

#: Most operations of an exact evaluation, about ten seconds on two cores. Longer ones would dominate the training time.
MOST_OPERATIONS = 1e12
#: Number of training data on which the discrete ELBO is evaluated: enough for a mean, cheap enough to repeat.
NUM_TRAIN_WATCHED = 2000
#: Number of data whose ELBO is sampled at once.
CHUNK = 1000


def judge_of(vae: Any, data: Dataset | Tensor, config: TrainConfig) -> Judge:
    """Return how a run evaluates the discrete ELBO: as configured, or as rank 0 chooses.

    Raises:
        ValueError: if the configured evaluation is impossible, or `patience` is set and no evaluation is possible.
    """
    watched = data.test if isinstance(data, Dataset) else data[:NUM_TRAIN_WATCHED]
    max_memory = in_bytes(config.max_memory)
    if config.judge == "auto":
        found: Judge = from_main(lambda: choose_judge(vae, watched, max_memory=max_memory))
    else:
        discrete_elbo(vae, watched[:1], config.judge, max_memory=max_memory)
        found = config.judge
    if found == "none" and config.patience is not None:
        raise ValueError(
            "Expected a program whose discrete ELBO can be evaluated for patience, but found one that can be neither "
            "summed nor sampled. Try without patience."
        )
    return found


@judging
def choose_judge(vae: Any, x: Tensor, *, max_memory: float | None = None) -> Judge:
    """Choose how to evaluate the discrete ELBO for data x (B, D): "exact" if the sum takes seconds.

    The choice depends on counted operations and not on a clock: the evaluation ends stages by `patience`, and the same
    configuration must give the same weights on a busier machine. (The clock decides only where a user asks for seconds,
    as in `exact:30s` or `--seconds`.)

    Args:
        vae: a module with `.model(x)` and `.guide(x)`, whose sites need not be one-hots.
        x: data (B, D).
        max_memory: bytes that a slice may take.

    Returns:
        "exact", "sampled" if only that is possible or affordable, or "none".
    """
    try:
        if exact.cost(vae, x, max_memory=max_memory).operations < MOST_OPERATIONS:
            exact.elbo(vae, x[:1], max_memory=max_memory)
            return "exact"
    except (ValueError, RuntimeError, NotImplementedError):
        pass
    try:
        discrete_elbo(vae, x[:1], "sampled")
    except (ValueError, RuntimeError, NotImplementedError):
        return "none"
    return "sampled"


@judging
@torch.no_grad()
def discrete_elbo(vae: Any, x: Tensor, judge: Judge, *, max_memory: float | None = None) -> float | None:
    """Compute the mean ELBO of the discrete model over data x (B, D), in nats per datum.

    Args:
        vae: a module with `.model(x)` and `.guide(x)`.
        x: data (B, D).
        judge: "exact" sums over all K^N codes. "sampled" draws one code for each datum, with the same random numbers
            each time, and is unbiased. "none" returns None.
        max_memory: bytes that a slice may take.

    Returns:
        The mean ELBO in nats per datum, or None if `judge` is "none".
    """
    if judge == "none":
        return None
    with pyro.get_param_store().scope(), pyro.validation_enabled(False), own_randomness(0):
        if judge == "exact":
            return exact.elbo(vae, x, max_memory=max_memory).mean().item()
        model, guide = discretize(vae.model), discretize(vae.guide)
        return -sum(Trace_ELBO().loss(model, guide, part) for part in x.split(CHUNK)) / len(x)
