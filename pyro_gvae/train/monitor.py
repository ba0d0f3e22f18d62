"""What is watched while a program trains: the ELBO of the discrete model, whatever it is trained by."""

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

#: Operations of a sum, about ten seconds on two cores: more would take longer than the training that it watches.
MOST_OPERATIONS = 1e12
#: Training data on which the discrete ELBO is watched: enough for a mean, cheap enough to repeat.
NUM_TRAIN_WATCHED = 2000
#: Data whose ELBO is sampled at once.
CHUNK = 1000


def judge_of(vae: Any, data: Dataset | Tensor, config: TrainConfig) -> Judge:
    """The judge of a training run: what its configuration says, or rank 0's choice.

    Raises:
        ValueError: if the configuration's cannot be.
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
            "Expected a program whose discrete ELBO can be watched for patience, but found that it can neither be "
            "summed nor sampled. Try without patience."
        )
    return found


@judging
def choose_judge(vae: Any, x: Tensor, *, max_memory: float | None = None) -> Judge:
    """How the discrete ELBO of a program is found for data x (B, D): "exact" where a sum takes seconds.

    Operations are counted, and no clock is read: what is judged ends stages by `patience`, and the same configuration
    gives the same weights on a busier machine. (Only where a user asks for seconds, as in `exact:30s` or `--seconds`,
    does the clock decide.)

    Args:
        vae: a module with `.model(x)` and `.guide(x)`, which may have no one-hot sites, or others than can be summed.
        x: data (B, D).
        max_memory: bytes that a sum may take.
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
