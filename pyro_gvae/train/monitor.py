"""Monitor a training run by the ELBO of the discrete model, whichever estimator trains it."""

import warnings
from typing import Any

import pyro
import torch
from pyro.infer import Trace_ELBO

from .. import exact
from ..config.names import ElboIs, Judge
from ..config.train import TrainConfig
from ..config.units import in_bytes
from ..data.columns import Data, chunks, first, mean_of, num_data
from ..data.labels import given
from ..data.rows import Rows
from ..data.sliced import AnyDataset
from ..exact.endless import plan_to_end
from ..exact.plan import Plan
from ..handlers import discretize
from ..programs.batches import arguments
from ..programs.chains import Chains
from ..programs.latents import TooManyCodesError
from ..programs.modes import judging
from ..programs.runs import bind_pair
from ..runtime.distributed import from_main
from ..runtime.rng import own_randomness

#: Most operations of an exact evaluation, about ten seconds on two cores. Longer ones would dominate the training time.
MOST_OPERATIONS = 1e12
#: Number of training data on which the discrete ELBO is evaluated: enough for a mean, cheap enough to repeat.
NUM_TRAIN_WATCHED = 2000
#: Number of data whose ELBO is sampled at once.
CHUNK = 1000
#: Number of rows whose ELBO is computed at once, where they are read in slices.
AT_A_TIME = 10_000
#: Errors of programs that cannot be summed or sampled.
_NOT_POSSIBLE = (ValueError, RuntimeError, NotImplementedError)


def judge_of(vae: Any, data: AnyDataset | Data, config: TrainConfig) -> Judge:
    """Return how a run evaluates the discrete ELBO: as configured, or as rank 0 chooses.

    Raises:
        ValueError: if the configured evaluation is impossible, or `patience` is set and no evaluation is possible.
    """
    held = given(vae, data)
    x: Data | Rows = first(held.watched, NUM_TRAIN_WATCHED) if held.test is None else held.test
    max_memory = in_bytes(config.max_memory)
    if config.judge == "auto":
        found: Judge = from_main(lambda: choose_judge(vae, x, max_memory=max_memory))
    else:
        if config.judge == "exact":
            _plan(vae, x, max_memory)
        discrete_elbo(vae, first(x, 1), config.judge, max_memory=max_memory)
        found = config.judge
    if found == "none" and config.patience is not None:
        raise ValueError(
            "Expected a program whose discrete ELBO can be evaluated for patience, but found one that can be neither "
            "summed nor sampled. Try without patience."
        )
    return found


def elbo_is(judge: Judge, vae: Any, x: Data | Rows, config: TrainConfig) -> ElboIs:
    """Say what the evaluations of a run are: a sum over codes is not exact where continuous latents are drawn."""
    if judge != "exact":
        return judge
    return "codes summed" if _plan(vae, first(x, 1), in_bytes(config.max_memory)).has_continuous else "exact"


@judging
@own_randomness(0)
def _plan(vae: Any, x: Data | Rows, max_memory: float | None) -> Plan | Chains:
    """Plan the sum over codes, or refuse one over more codes than can be summed."""
    with pyro.get_param_store().scope():
        given = arguments(first(x, AT_A_TIME) if isinstance(x, Rows) else x)
        return plan_to_end(bind_pair(vae, *given.args, **given.kwargs), max_memory=max_memory)


@judging
@own_randomness(0)
def choose_judge(vae: Any, x: Data | Rows, *, max_memory: float | None = None) -> Judge:
    """Choose how to evaluate the discrete ELBO: "exact" if the sum takes seconds. Warn if the programs allow no sum.

    The choice depends on counted operations and not on a clock: the evaluation ends stages by `patience`, and the same
    configuration must give the same weights on a busier machine. (The clock decides only where a user asks for seconds,
    as in `exact:30s` or `--seconds`.)

    Args:
        vae: a module with `.model(x)` and `.guide(x)`, whose sites may be other than one-hots.
        x: data (B, D), or a tuple or dictionary of all arguments of the programs.
        max_memory: bytes that a slice may take.

    Returns:
        "exact", "sampled" if only that is possible or affordable, or "none".
    """
    reason = None
    try:
        some = first(x, AT_A_TIME) if isinstance(x, Rows) else x
        operations = exact.sum_cost(vae, some, max_memory=max_memory).operations
        if operations * num_data(x) / num_data(some) < MOST_OPERATIONS:
            exact.elbo(vae, first(x, 1), max_memory=max_memory)
            return "exact"
    except TooManyCodesError:
        pass
    except _NOT_POSSIBLE as error:
        reason = error
    try:
        discrete_elbo(vae, first(x, 1), "sampled")
    except _NOT_POSSIBLE as error:
        _warn("The discrete ELBO is not evaluated during training, since it can be neither summed nor sampled", error)
        return "none"
    if reason is not None:
        _warn("The discrete ELBO is sampled during training, since it cannot be summed", reason)
    return "sampled"


def _warn(said: str, reason: Exception) -> None:
    warnings.warn(f"{said}: {str(reason).splitlines()[0]}", RuntimeWarning, stacklevel=4)


@judging
@torch.no_grad()
def discrete_elbo(vae: Any, x: Data | Rows, judge: Judge, *, max_memory: float | None = None) -> float | None:
    """Compute the mean ELBO of the discrete model over B data, in nats per datum.

    Args:
        vae: a module with `.model(x)` and `.guide(x)`.
        x: data (B, D), or a tuple or dictionary of all arguments of the programs, or rows that are read in slices.
        judge: "exact" sums over all joint codes, with one draw of continuous latents for each. "sampled" draws one code
            for each datum. Both use the same random numbers in each call, and are unbiased. "none" returns None.
        max_memory: bytes that a slice may take.

    Returns:
        The mean ELBO in nats per datum, or None if `judge` is "none".
    """
    if judge == "none":
        return None
    if isinstance(x, Rows):
        return mean_of(lambda rows: discrete_elbo(vae, rows, judge, max_memory=max_memory) or 0.0, x, AT_A_TIME)
    with pyro.get_param_store().scope(), pyro.validation_enabled(False), own_randomness(0):
        if judge == "exact":
            return (exact.elbo(vae, x, max_memory=max_memory).sum() / num_data(x)).item()
        model, guide = discretize(vae.model), discretize(vae.guide)
        parts = map(arguments, chunks(x, CHUNK))
        return -sum(Trace_ELBO().loss(model, guide, *part.args, **part.kwargs) for part in parts) / num_data(x)
