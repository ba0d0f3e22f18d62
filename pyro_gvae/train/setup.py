"""Load the data and build the initial networks of a configuration."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeVar

import psutil
import torch

from ..config.compare import CompareConfig
from ..config.models import MODELS, Labels
from ..config.names import ModelName
from ..config.train import TrainConfig
from ..config.units import in_bytes
from ..data.dataset import Dataset, binarized
from ..data.datasets import TABLES, load, table
from ..data.labels import class_names, labels_in_words, num_labelled, with_labelled_share
from ..data.observed import observed
from ..data.sliced import AnyDataset, large_table, sliced_dataset
from ..data.splits import dataset_of, described, with_validation
from ..models.base import VAE
from ..models.bernoulli_vae import BernoulliVAE
from ..models.categorical_vae import CategoricalVAE
from ..models.conditional_vae import ConditionalVAE
from ..models.gaussian_mixture_vae import GaussianMixtureVAE
from ..models.hierarchical_categorical_vae import HierarchicalCategoricalVAE
from ..models.joint_vae import JointVAE
from ..models.networks import NETWORKS, mlp_decoder, mlp_encoder, relu_logits
from ..models.observations import Observation, as_observation
from ..models.semi_supervised_vae import SemiSupervisedVAE
from ..models.table import TableObservation
from ..models.widths import guessed_hidden
from ..runtime.distributed import from_main, own_device, share
from ..runtime.memory import in_words

C = TypeVar("C", TrainConfig, CompareConfig)


def load_data(config: TrainConfig) -> Dataset:
    """Load the data set of a configuration, converted for its observation, onto its device.

    Raises:
        ValueError: if the data or the device are unusable.
        OSError: if data files are missing.
    """
    if config.download and share().world_size > 1:
        from_main(lambda: bool(_loaded(config, download=True)))  # download once
    data, device = _loaded(config, download=config.download), own_device(config.device)
    try:
        return data.mapped(lambda x: x.to(device))
    except (RuntimeError, AssertionError) as error:  # torch built without CUDA raises AssertionError
        raise ValueError(f"Expected a device of this machine, but found '{config.device}'. Try 'cpu'.") from error


def load_or_slice(config: TrainConfig) -> AnyDataset:
    """Load the data set of a configuration, or read a table in slices if it takes more than `data_memory`.

    Raises:
        ValueError: if the data or the device are unusable.
        OSError: if data files are missing.
    """
    if config.data is None or large_table(config.data, in_bytes(config.data_memory)) is None:
        return load_data(config)
    return sliced_dataset(
        config.data,
        columns=config.columns,
        labels=config.labels,
        every_label=MODELS[config.model].labels is Labels.GIVEN,
        labelled_share=config.labelled_share,
        test_share=config.test_share,
        validation_share=config.validation_share,
        seed=config.split_seed,
        memory=in_bytes(config.data_memory),
        device=own_device(config.device),
    )


def _loaded(config: TrainConfig, *, download: bool) -> Dataset:
    split: dict[str, Any] = {
        "columns": config.columns,
        "test_share": config.test_share,
        "validation_share": config.validation_share,
        "seed": config.split_seed,
        "every_label": MODELS[config.model].labels is Labels.GIVEN,
    }
    if config.data is not None:
        data = dataset_of(config.data, labels=config.labels, **split)
        data = data if data.columns is not None else binarized(data, config.binarize)
    elif config.dataset in TABLES:
        frame, labels = table(config.dataset)
        data = dataset_of(frame, name=config.dataset, labels=config.labels or labels, **split)
    else:
        data = load(config.dataset, data_dir=config.data_dir, download=download, binarize=config.binarize)
        data = with_validation(data, config.validation_share, seed=config.split_seed)
    if data.columns is None and (config.columns or config.labels):
        raise ValueError(
            f"Expected a table for kinds of columns or a column of labels, but found the images of '{data.name}'. Try "
            "without columns and labels."
        )
    if config.labelled_share != 1:
        data = with_labelled_share(data, config.labelled_share, seed=config.split_seed)
    return data if data.columns is not None else observed(data, _observation(config, data))


def read_in_words(config: TrainConfig | CompareConfig, data: AnyDataset) -> str:
    """Describe the data, and their labels if the program uses them."""
    of_labels = "" if MODELS[config.model].labels is Labels.UNUSED else f"\n{labels_in_words(data)}"
    return described(data) + of_labels


def with_classes(config: C, data: AnyDataset) -> C:
    """Return a configuration with the data's number of classes, if the program's latent is the class.

    Raises:
        ValueError: if the configuration has another number, or the data have no labels.
    """
    if MODELS[config.model].labels is not Labels.LEARNED:
        return config
    found = len(class_names(data))
    if config.num_categories not in (0, found):
        raise ValueError(
            f"Expected num_categories={found}, the number of classes of '{data.name}', but found "
            f"{config.num_categories}. Try without num_categories."
        )
    return replace(config, num_categories=found)


def with_widths(config: C, data: AnyDataset) -> C:
    """Return a configuration with the widths of its hidden layers, guessed from the data if it has none.

    Raises:
        ValueError: if a table is given an observation or networks of images.
    """
    return replace(config, hidden=widths(config, data))


def widths(config: TrainConfig | CompareConfig, data: AnyDataset) -> tuple[int, ...]:
    """Return the widths of a configuration's hidden layers: its own, or those guessed from the data.

    Raises:
        ValueError: if a table is given an observation or networks of images.
    """
    if config.hidden is not None:
        return config.hidden
    return guessed_hidden(_observation(config, data).input_dim(data.train.shape[1]))


def initial_model(config: TrainConfig, data: AnyDataset) -> VAE:
    """Build the program of a configuration, with the initial weights of its seed.

    Raises:
        ValueError: if their weights do not fit into memory.
    """
    with torch.random.fork_rng():
        observation = _observation(config, data)
        check_size(lambda: PROGRAMS[config.model](config, data, observation))
        torch.manual_seed(config.seed)
        vae = PROGRAMS[config.model](config, data, observation)
    return vae.to(own_device(config.device))


def _categorical(config: TrainConfig, data: AnyDataset, observation: Observation) -> CategoricalVAE:
    sizes = config.num_latents, config.num_categories
    data_dim, hidden = data.train.shape[1], widths(config, data)
    if data.columns is None:
        encoder, decoder = NETWORKS[config.networks](
            data.image_shape, *sizes, hidden=hidden, natural_per_pixel=observation.natural_per_pixel
        )
    else:
        encoder = mlp_encoder(observation.input_dim(data_dim), hidden, *sizes)
        decoder = mlp_decoder(*sizes, hidden[::-1], observation.natural_dim(data_dim))
    return CategoricalVAE(
        data_dim,
        *sizes,
        observation=observation,
        prior=config.prior,
        learn_prior=config.learn_prior,
        encoder=relu_logits(encoder) if config.relu_logits else encoder,
        decoder=decoder,
    )


def _bernoulli(config: TrainConfig, data: AnyDataset, observation: Observation) -> BernoulliVAE:
    return BernoulliVAE(data.train.shape[1], config.num_latents, widths(config, data), observation=observation)


def _hierarchical(config: TrainConfig, data: AnyDataset, observation: Observation) -> HierarchicalCategoricalVAE:
    sizes = config.num_layers, config.num_latents, config.num_categories
    return HierarchicalCategoricalVAE(data.train.shape[1], *sizes, widths(config, data), observation=observation)


def _joint(config: TrainConfig, data: AnyDataset, observation: Observation) -> JointVAE:
    sizes = config.num_latents, config.num_categories, config.latent_dim
    return JointVAE(data.train.shape[1], *sizes, widths(config, data), observation=observation)


def _gaussian_mixture(config: TrainConfig, data: AnyDataset, observation: Observation) -> GaussianMixtureVAE:
    sizes = config.num_categories, config.latent_dim
    return GaussianMixtureVAE(data.train.shape[1], *sizes, widths(config, data), observation=observation)


def _semi_supervised(config: TrainConfig, data: AnyDataset, observation: Observation) -> SemiSupervisedVAE:
    sizes = with_classes(config, data).num_categories, config.latent_dim
    weight = (
        config.label_weight * len(data.train) / max(1, num_labelled(data))
    )  # per row, for a mean over the labelled rows
    return SemiSupervisedVAE(
        data.train.shape[1], *sizes, widths(config, data), observation=observation, label_weight=weight
    )


def _conditional(config: TrainConfig, data: AnyDataset, observation: Observation) -> ConditionalVAE:
    sizes = len(class_names(data)), config.num_latents, config.num_categories
    return ConditionalVAE(data.train.shape[1], *sizes, widths(config, data), observation=observation)


#: Name -> constructor of the program. `config/names.py` lists the names for the command line.
PROGRAMS: dict[ModelName, Callable[[TrainConfig, AnyDataset, Observation], VAE]] = {
    "categorical": _categorical,
    "bernoulli": _bernoulli,
    "hierarchical": _hierarchical,
    "joint": _joint,
    "gaussian-mixture": _gaussian_mixture,
    "semi-supervised": _semi_supervised,
    "conditional": _conditional,
}


def check_size(make: Callable[[], VAE]) -> None:
    """Refuse a program whose networks would take more than half of the machine's memory, before they are allocated.

    Raises:
        ValueError: if they do.
    """
    try:
        with torch.device("meta"):
            weights = list(make().parameters())
        needed = sum(tensor.numel() * tensor.itemsize for tensor in weights)
    except RuntimeError:  # more elements than 64 bits can count
        needed = 2**63
    there = psutil.virtual_memory().total
    if 2 * needed > there:
        raise ValueError(
            f"Expected networks whose weights fit into half of {in_words(there)} of memory, but found that they take "
            f"{in_words(needed)} or more. Try fewer hidden units, latents or categories."
        )


def _observation(config: TrainConfig | CompareConfig, data: AnyDataset) -> Observation:
    if data.columns is not None:
        for setting, plain in {"observation": "bernoulli", "networks": "mlp"}.items():
            found = getattr(config, setting)
            if found != plain:
                of_words = "--columns '*=word' for counts of words" if found == "multinomial" else "without it"
                raise ValueError(
                    f"Expected no {setting} for the table '{data.name}', whose columns have their own families and "
                    f"no neighbours, but found '{found}'. Try {of_words}."
                )
        return TableObservation(data.columns)
    return as_observation(config.observation, num_levels=config.num_levels)
