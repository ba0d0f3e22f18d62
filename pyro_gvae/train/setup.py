"""The data and the initial networks of a configuration."""

from dataclasses import replace

import torch

from ..config.train import TrainConfig
from ..data.dataset import Dataset
from ..data.datasets import load
from ..data.observed import observed
from ..models.categorical_vae import CategoricalVAE
from ..models.networks import NETWORKS, relu_logits
from ..models.observations import Observation, as_observation
from ..runtime.distributed import from_main, own_device, share


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
    """Build the networks of a configuration, with the initial weights of its seed."""
    sizes = config.num_latents, config.num_categories
    with torch.random.fork_rng():
        torch.manual_seed(config.seed)
        observation = _observation(config)
        encoder, decoder = NETWORKS[config.networks](
            data.image_shape, *sizes, hidden=config.hidden, natural_per_pixel=observation.natural_per_pixel
        )
        vae = CategoricalVAE(
            data.train.shape[1],
            *sizes,
            observation=observation,
            learn_prior=config.learn_prior,
            encoder=relu_logits(encoder) if config.relu_logits else encoder,
            decoder=decoder,
        )
    return vae.to(own_device(config.device))


def _observation(config: TrainConfig) -> Observation:
    return as_observation(config.observation, num_levels=config.num_levels)
