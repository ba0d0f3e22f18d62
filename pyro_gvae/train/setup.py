"""The data and the initial networks of a configuration."""

from dataclasses import replace

import psutil
import torch

from ..config.train import TrainConfig
from ..data.dataset import Dataset
from ..data.datasets import load
from ..data.observed import observed
from ..models.categorical_vae import CategoricalVAE
from ..models.networks import NETWORKS, Networks, relu_logits
from ..models.observations import Observation, as_observation
from ..runtime.distributed import from_main, own_device, share
from ..runtime.memory import in_words


def load_data(config: TrainConfig) -> Dataset:
    """Load the data set of a configuration, converted for its observation, onto its device.

    Raises:
        ValueError: if the data or the device are unusable.
        OSError: if data files are missing.
    """
    observation = _observation(config)

    def loaded(download: bool) -> Dataset:
        images = load(config.dataset, data_dir=config.data_dir, download=download, binarize=config.binarize)
        return observed(images, observation)

    if config.download and share().world_size > 1:
        from_main(lambda: bool(loaded(True)))  # download once
    data, device = loaded(config.download), own_device(config.device)
    try:
        return replace(data, train=data.train.to(device), test=data.test.to(device))
    except (RuntimeError, AssertionError) as error:  # torch built without CUDA raises AssertionError
        raise ValueError(f"Expected a device of this machine, but found '{config.device}'. Try 'cpu'.") from error


def initial_model(config: TrainConfig, data: Dataset) -> CategoricalVAE:
    """Build the networks of a configuration, with the initial weights of its seed.

    Raises:
        ValueError: if their weights do not fit into memory.
    """
    sizes = config.num_latents, config.num_categories
    with torch.random.fork_rng():
        observation = _observation(config)
        _check_size(config, data, observation)
        torch.manual_seed(config.seed)
        encoder, decoder = _networks(config, data, observation)
        vae = CategoricalVAE(
            data.train.shape[1],
            *sizes,
            observation=observation,
            learn_prior=config.learn_prior,
            encoder=relu_logits(encoder) if config.relu_logits else encoder,
            decoder=decoder,
        )
    return vae.to(own_device(config.device))


def _networks(config: TrainConfig, data: Dataset, observation: Observation) -> Networks:
    sizes = config.num_latents, config.num_categories
    return NETWORKS[config.networks](
        data.image_shape, *sizes, hidden=config.hidden, natural_per_pixel=observation.natural_per_pixel
    )


def _check_size(config: TrainConfig, data: Dataset, observation: Observation) -> None:
    """Refuse networks that take more than half of the machine's memory, before they take any."""
    try:
        with torch.device("meta"):
            tensors = [each for network in _networks(config, data, observation) for each in network.parameters()]
        needed = sum(tensor.numel() * tensor.itemsize for tensor in tensors)
    except RuntimeError:  # more elements than 64 bits count
        needed = 2**63
    there = psutil.virtual_memory().total
    if 2 * needed > there:
        raise ValueError(
            f"Expected networks whose weights fit into half of {in_words(there)} of memory, but found that they take "
            f"{in_words(needed)} or more. Try fewer hidden units, latents or categories."
        )


def _observation(config: TrainConfig) -> Observation:
    return as_observation(config.observation, num_levels=config.num_levels)
