"""A configuration held against program and data: what it trains by, and what cannot be, refused before it is begun."""

import inspect
from typing import Any

import pyro
import torch
from torch import Tensor

from ..config.stages import Stage
from ..config.train import TrainConfig
from ..config.units import in_bytes
from ..data.batches import check_batch_size
from ..data.dataset import Dataset, check_finite
from ..estimators import ESTIMATORS, Estimator, estimator, with_free_bits, with_kl_weight
from ..models.observations import Observation
from ..programs.modes import judging
from ..programs.tensor_elbo import TensorELBO
from ..runtime.distributed import Share, share
from ..schedules import Schedule, schedule
from .optimizers import new_optimizer

#: What follows a schedule, by its name in the configuration: the tensor, and its value at each step.
Annealed = dict[str, tuple[Tensor, Schedule]]


def check_training(vae: Any, data: Dataset | Tensor, config: TrainConfig) -> None:
    """Refuses what cannot be trained, of a configuration with this program and these data; trains and writes nothing.

    Raises:
        ValueError: if data, program, stages or optimizer do not fit; the sentence says what was expected.
    """
    check_data(vae, data, config)
    kl_weight = torch.ones(())
    train = data.train if isinstance(data, Dataset) else data
    for stage in config.plan:
        _check_loss(vae, stage_estimator(stage, config, kl_weight, share()), train[: config.batch_size])
    annealed_tensors(vae, config, kl_weight)
    name, options = config.named_optimizer
    new_optimizer(name, list(vae.parameters()), **options)


@judging
@torch.no_grad()
def _check_loss(vae: Any, chosen: Estimator, x: Tensor) -> None:
    """Refuse codes that the loss is not made for, and a sum over them that cannot be taken."""
    found = getattr(vae, "num_categories", None)
    if None not in (found, chosen.num_categories) and found != chosen.num_categories:
        raise ValueError(
            f"Expected latents of K={chosen.num_categories} categories for '{chosen.name}', but found K={found}."
        )
    model, _, elbo = chosen.bind(vae)
    if isinstance(elbo, TensorELBO):
        with pyro.get_param_store().scope():
            elbo.why_not_recordable(model, x)  # sums look at their codes for that


def check_data(vae: Any, data: Dataset | Tensor, config: TrainConfig) -> None:
    """Refuses data that do not fit the program, the batches, or the processes that divide them.

    Raises:
        ValueError: if values are out of the program's range, data are fewer than a batch or than processes in some
            batch, or `patience` has no test data to watch.
    """
    train = data.train if isinstance(data, Dataset) else data
    check_finite(train)
    observation = getattr(vae, "observation", None)
    if isinstance(observation, Observation):
        observation.check(train, "training data")
    if config.patience is not None and not isinstance(data, Dataset):
        raise ValueError("Expected a Dataset with test images for patience, but found a tensor. Try Dataset(..).")
    check_batch_size(config.batch_size, len(train))
    smallest = len(train) % config.batch_size or config.batch_size
    processes = share().world_size
    if config.shard == "data" and smallest < processes:
        raise ValueError(
            f"Expected data for each of {processes} processes in every batch, but found a last batch of {smallest}. "
            "Try another batch_size."
        )


def stage_estimator(stage: Stage, config: TrainConfig, kl_weight: Tensor, part: Share) -> Estimator:
    """The estimator of a stage, with what the configuration says of all stages.

    Args:
        stage: its name and options.
        config: memory, what processes divide, beta and free bits.
        kl_weight: a tensor of shape () that holds beta, if there is one.
        part: of the codes, where processes divide them.

    Raises:
        ValueError: if it has no such option, has no codes to divide, or no KL to weigh.
    """
    options, known = dict(stage.options), inspect.signature(ESTIMATORS[stage.estimator]).parameters
    if "max_memory" in known:
        options.setdefault("max_memory", in_bytes(config.max_memory))
    if config.shard == "codes":
        if "share" not in known:
            raise ValueError(
                f"Expected estimators that sum over codes to divide, but found '{stage.estimator}'. Try exact, or "
                "shard='data'."
            )
        options["share"] = part
    chosen = estimator(stage.estimator, **options)
    if config.beta is not None:
        chosen = with_kl_weight(chosen, kl_weight)
    return chosen if config.free_bits is None else with_free_bits(chosen, config.free_bits)


def annealed_tensors(vae: Any, config: TrainConfig, kl_weight: Tensor) -> Annealed:
    """Which tensors follow a schedule: buffers of a program, and beta. A recorded step reads them as they are then.

    Raises:
        ValueError: if the program has no buffer of that name.
    """
    found: Annealed = {}
    if config.beta is not None:
        found["beta"] = kl_weight, schedule(str(config.beta), positive=False)
    for name in ("temperature", "prior_temperature"):
        text = getattr(config, name)
        if text is None:
            continue
        buffer = getattr(vae, name, None)
        if not isinstance(buffer, Tensor):
            raise ValueError(f"Expected a program with a buffer '{name}' to anneal, but found none. Try {name}=None.")
        if not any(map(keeps_temperatures, config.plan)):
            raise ValueError(
                f"Expected a stage that reads the program's {name}, but found that each of "
                f"{', '.join(stage.estimator for stage in config.plan)} has none, or one of its own. Try an option of "
                "the stage, such as reinmax[temperature=1.3], or temperature=None there, which keeps the program's."
            )
        found[name] = buffer, schedule(str(text))
    return found


def keeps_temperatures(stage: Stage) -> bool:
    """Whether the estimator of a stage relaxes by the temperatures that the program has."""
    known = inspect.signature(ESTIMATORS[stage.estimator]).parameters
    return "temperature" in known and stage.options.get("temperature", known["temperature"].default) is None
