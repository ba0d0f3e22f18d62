"""The data and the initial networks of a configuration."""

from collections.abc import Callable
from dataclasses import replace

import psutil
import torch

from ..config.names import ModelName
from ..config.train import TrainConfig
from ..data.dataset import Dataset
from ..data.datasets import load
from ..data.observed import observed
from ..models.base import VAE
from ..models.bernoulli_vae import BernoulliVAE
from ..models.categorical_vae import CategoricalVAE
from ..models.gaussian_mixture_vae import GaussianMixtureVAE
from ..models.hierarchical_categorical_vae import HierarchicalCategoricalVAE
from ..models.joint_vae import JointVAE
from ..models.networks import NETWORKS, relu_logits
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


def initial_model(config: TrainConfig, data: Dataset) -> VAE:
    """Build the program of a configuration, with the initial weights of its seed.

    Raises:
        ValueError: if their weights do not fit into memory.
    """
    with torch.random.fork_rng():
        observation = _observation(config)
        _check_size(config, data, observation)
        torch.manual_seed(config.seed)
        vae = PROGRAMS[config.model](config, data, observation)
    return vae.to(own_device(config.device))


def _categorical(config: TrainConfig, data: Dataset, observation: Observation) -> CategoricalVAE:
    sizes = config.num_latents, config.num_categories
    encoder, decoder = NETWORKS[config.networks](
        data.image_shape, *sizes, hidden=config.hidden, natural_per_pixel=observation.natural_per_pixel
    )
    return CategoricalVAE(
        data.train.shape[1],
        *sizes,
        observation=observation,
        prior=config.prior,
        learn_prior=config.learn_prior,
        encoder=relu_logits(encoder) if config.relu_logits else encoder,
        decoder=decoder,
    )


def _bernoulli(config: TrainConfig, data: Dataset, observation: Observation) -> BernoulliVAE:
    return BernoulliVAE(data.train.shape[1], config.num_latents, config.hidden, observation=observation)


def _hierarchical(config: TrainConfig, data: Dataset, observation: Observation) -> HierarchicalCategoricalVAE:
    sizes = config.num_layers, config.num_latents, config.num_categories
    return HierarchicalCategoricalVAE(data.train.shape[1], *sizes, config.hidden, observation=observation)


def _joint(config: TrainConfig, data: Dataset, observation: Observation) -> JointVAE:
    sizes = config.num_latents, config.num_categories, config.latent_dim
    return JointVAE(data.train.shape[1], *sizes, config.hidden, observation=observation)


def _gaussian_mixture(config: TrainConfig, data: Dataset, observation: Observation) -> GaussianMixtureVAE:
    sizes = config.num_categories, config.latent_dim
    return GaussianMixtureVAE(data.train.shape[1], *sizes, config.hidden, observation=observation)


#: Name -> constructor of the program. `config/names.py` lists the names for the command line.
PROGRAMS: dict[ModelName, Callable[[TrainConfig, Dataset, Observation], VAE]] = {
    "categorical": _categorical,
    "bernoulli": _bernoulli,
    "hierarchical": _hierarchical,
    "joint": _joint,
    "gaussian-mixture": _gaussian_mixture,
}


def _check_size(config: TrainConfig, data: Dataset, observation: Observation) -> None:
    """Refuse networks that take more than half of the machine's memory, before they take any."""
    try:
        with torch.device("meta"):
            weights = list(PROGRAMS[config.model](config, data, observation).parameters())
        needed = sum(tensor.numel() * tensor.itemsize for tensor in weights)
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
