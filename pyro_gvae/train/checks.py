"""Checks of a configuration against program and data, before training starts."""

import inspect
from collections.abc import Sequence
from typing import Any, NamedTuple

import pyro
import torch
from torch import Tensor

from ..config.stages import Named, Stage
from ..config.train import TrainConfig
from ..config.units import in_bytes
from ..data.batches import check_batch_size
from ..data.columns import Data, check_all_finite, chunks, first, num_data
from ..data.labels import given
from ..data.rows import Rows
from ..data.sliced import AnyDataset, SlicedDataset
from ..estimators import (
    ESTIMATORS,
    Estimator,
    estimator,
    with_free_bits,
    with_kl_weight,
    with_unimix,
    with_usage_entropy,
)
from ..models.observations import Observation, takes_missing
from ..models.table import TableObservation
from ..programs.batches import arguments
from ..programs.modes import judging
from ..programs.tensor_elbo import TensorELBO
from ..runtime.distributed import Share, share
from ..runtime.rng import own_randomness
from ..schedules import Schedule, schedule
from .optimizers import new_optimizer

#: Rows checked at a time, if they are read in slices.
CHECKED_AT_A_TIME = 10_000

#: Name in the configuration -> the tensor that follows a schedule, and the schedule.
Annealed = dict[str, tuple[Tensor, Schedule]]


def check_training(vae: Any, data: AnyDataset | Data, config: TrainConfig) -> None:
    """Refuse a configuration that cannot train this program on these data. Nothing is trained or written.

    Raises:
        ValueError: if data, program, stages or optimizer do not fit together.
    """
    check_data(vae, data, config)
    weights = weights_on(torch.device("cpu"))
    estimators = [stage_estimator(stage, config, weights, share()) for stage in config.plan]
    annealed_tensors(vae, config, weights)
    name, options = config.named_optimizer
    new_optimizer(name, list(vae.parameters()), **options)
    train = given(vae, data).train
    check_losses(vae, estimators, first(train, config.batch_size))
    _check_stock_losses(vae, estimators, first(train, 2))


@judging
@torch.no_grad()
@own_randomness(0)
def _check_stock_losses(vae: Any, estimators: Sequence[Estimator], batch: Data) -> None:
    """Refuse programs that a stock loss cannot handle, such as layers with an analytic KL, by calling it."""
    given = arguments(batch)
    for chosen in estimators:
        model, guide, elbo = chosen.bind(vae)
        if not isinstance(elbo, TensorELBO):
            with pyro.get_param_store().scope():
                elbo.loss(model, guide, *given.args, **given.kwargs)


@judging
@torch.no_grad()
def check_losses(vae: Any, estimators: Sequence[Estimator], batch: Data) -> None:
    """Refuse estimators that do not work with a program's codes, or cannot sum over so many.

    Args:
        vae: the program.
        estimators: the estimators that train it.
        batch: data (B, D), or a tuple or dictionary of all arguments of the programs.

    Raises:
        ValueError: if one needs another number of categories, or there are too many codes for a sum.
    """
    found, given = getattr(vae, "num_categories", None), arguments(batch)
    for chosen in estimators:
        if None not in (found, chosen.num_categories) and found != chosen.num_categories:
            raise ValueError(
                f"Expected latents of K={chosen.num_categories} categories for '{chosen.name}', but found K={found}."
            )
        model, guide, elbo = chosen.bind(vae)
        if isinstance(elbo, TensorELBO):
            with pyro.get_param_store().scope():
                elbo.why_not_recordable(model, guide, *given.args, **given.kwargs)  # this plans the slices of a sum


def check_data(vae: Any, data: AnyDataset | Data, config: TrainConfig) -> None:
    """Refuse data that do not fit the program, the batch size or the number of processes.

    Raises:
        ValueError: if values are out of the program's range, there are fewer data than in a batch, some batch has fewer
            data than there are processes, or `patience` is set without test data.
    """
    train = given(vae, data).train
    parts = {part: getattr(data, part) for part in data.parts} if isinstance(data, AnyDataset) else {"train": train}
    if not _is_own_table(vae, data):
        for part, own in parts.items():
            _check_values(vae, own, part)
    if config.patience is not None and not isinstance(data, AnyDataset):
        raise ValueError(
            "Expected a Dataset with test images for patience, but found training data alone. Try Dataset(..)."
        )
    check_batch_size(config.batch_size, num_data(train))
    smallest = num_data(train) % config.batch_size or config.batch_size
    processes = share().world_size
    if config.shard == "data" and smallest < processes:
        raise ValueError(
            f"Expected data for each of {processes} processes in every batch, but found a last batch of {smallest} "
            "data. Try another batch_size."
        )


def _is_own_table(vae: Any, data: AnyDataset | Data) -> bool:
    """Whether sliced rows have the columns that a program observes; their cells are then checked when they are read."""
    observation = getattr(vae, "observation", None)
    if not isinstance(data, SlicedDataset) or not isinstance(observation, TableObservation):
        return False
    return observation.columns == data.columns


def _check_values(vae: Any, data: Data | Rows, part: str) -> None:
    """Refuse data that the program cannot observe."""
    observation = getattr(vae, "observation", None)
    for some in chunks(data, CHECKED_AT_A_TIME) if isinstance(data, Rows) else (data,):
        if part == "train" and not takes_missing(vae):
            check_all_finite(some)
        x = _observed(some)
        if isinstance(observation, Observation) and x is not None:
            observation.check(x, f"{'training' if part == 'train' else part} data")


def _observed(data: Data) -> Tensor | None:
    """Return the data that programs with an `observation` observe: their first argument, x."""
    if isinstance(data, dict):
        return data.get("x")
    return data if isinstance(data, Tensor) else data[0]


class Weights(NamedTuple):
    """Tensors of shape () that are set before each step, and that a recorded step reads."""

    beta: Tensor  # weight of the KL
    unimix: Tensor  # share of the uniform distribution in the guide
    usage_entropy: Tensor  # weight of the entropy of code usage


def weights_on(device: torch.device) -> Weights:
    """Return weights that change nothing."""
    zero = torch.zeros((), device=device)
    return Weights(beta=torch.ones_like(zero), unimix=zero, usage_entropy=zero.clone())


def stage_estimator(stage: Stage, config: TrainConfig, weights: Weights, part: Share) -> Estimator:
    """Construct the estimator of a stage, with the settings that apply to all stages.

    Args:
        stage: the stage, with the estimator's name and options.
        config: the configuration, for its memory limit, shard, objective and free bits.
        weights: the tensors for the weights that follow a schedule.
        part: the codes that this process sums, if several divide them.

    Raises:
        ValueError: if the estimator does not have an option, does not sum over codes that could be divided, or has no
            KL to weigh, or no guide to mix or reward.
    """
    stage = stage.with_options(
        lambda named: {"max_memory": in_bytes(config.max_memory)} if lacks(named, "max_memory") else {}
    )
    options = dict(stage.options)
    if config.shard == "codes":
        if stage.parts or not _takes(Named(stage.estimator, options), "share"):
            raise ValueError(
                f"Expected estimators that sum over codes for shard='codes', but found '{stage.estimator}'. Try exact, "
                "or shard='data'."
            )
        options["share"] = part
    chosen = estimator(stage.estimator, **options)
    if config.unimix is not None:
        chosen = with_unimix(chosen, weights.unimix)
    if config.beta is not None:
        chosen = with_kl_weight(chosen, weights.beta)
    if config.free_bits is not None:
        chosen = with_free_bits(chosen, config.free_bits)
    return chosen if config.usage_entropy is None else with_usage_entropy(chosen, weights.usage_entropy)


def annealed_tensors(vae: Any, config: TrainConfig, weights: Weights) -> Annealed:
    """Return the tensors that follow a schedule: temperature buffers of the program, and weights of the objective.

    A recorded step reads their current values.

    Raises:
        ValueError: if the program has no buffer of that name, or no stage uses it.
    """
    found: Annealed = {}
    for name, weight in weights._asdict().items():
        text = getattr(config, name)
        if text is not None:
            found[name] = weight, schedule(str(text), positive=False)
    for name in ("temperature", "prior_temperature"):
        text = getattr(config, name)
        if text is None:
            continue
        buffer = getattr(vae, name, None)
        if not isinstance(buffer, Tensor):
            raise ValueError(f"Expected a program with a buffer '{name}' to anneal, but found none. Try {name}=None.")
        if not any(map(keeps_temperatures, config.plan)):
            raise ValueError(
                f"Expected a stage that reads the program's {name}, but found only "
                f"{', '.join(stage.estimator for stage in config.plan)}, with no temperature or their own. Try "
                "an option of the stage, such as reinmax[temperature=1.3], or [temperature=None] for the program's."
            )
        found[name] = buffer, schedule(str(text))
    return found


def keeps_temperatures(stage: Stage) -> bool:
    """Return whether the estimator of a stage relaxes with the program's own temperatures."""
    return any(map(_keeps_temperatures, stage.estimators))


def _keeps_temperatures(named: Named) -> bool:
    known = inspect.signature(ESTIMATORS[named.name]).parameters
    return "temperature" in known and named.options.get("temperature", known["temperature"].default) is None


def _takes(named: Named, option: str) -> bool:
    return option in inspect.signature(ESTIMATORS[named.name]).parameters


def lacks(named: Named, option: str) -> bool:
    """Return whether an estimator has an option that is not given."""
    return _takes(named, option) and option not in named.options
