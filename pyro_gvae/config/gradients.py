"""Configurations of the commands that measure gradients: frozen dataclasses; no torch, so `--help` is instant."""

import dataclasses
from pathlib import Path
from typing import Literal

from .checks import all_different, at_least, positive
from .data import DataConfig
from .names import Binarization, EstimatorName, ImagesName, ModelName, Positional
from .train import TrainConfig


@dataclasses.dataclass(frozen=True)
class GradientsConfig:
    """Measure bias, variance and direction of estimators' gradients against the exact one; write a table and figures.

    Gradients are measured on a new model at given epochs of its training, or on the trained models of a run folder.
    A second call with the same output measures only what is missing there. Where there is no exact gradient, as with
    a Gaussian latent, the mean of many unbiased estimates replaces it.

    Args:
        run: A run folder of compare or train, whose models are measured on their test sets; by default a new model.
        dataset: What to measure on; digits and teacher need no files.
        data_dir: The folder of the data sets that have files, as torchvision lays them out.
        download: Download missing files into the data folder.
        binarize: Keep grey pixels (none), round them to black or white at 1/2 (threshold), or sample them for every
            batch (dynamic).
        model: The program: N one-hots (categorical) or N bits (bernoulli); layers of N one-hots (hierarchical); N
            one-hots and a Gaussian (joint); a component and a Gaussian that depends on it (gaussian-mixture); a
            class, known for labelled rows, and a Gaussian (semi-supervised); or N one-hots given the label
            (conditional). Each program has its own default sizes; `--model NAME --help` shows them.
        num_latents: N, the number of one-hots (per layer, if there are several) or of bits; 1 for gaussian-mixture
            and semi-supervised.
        num_categories: K, the number of categories of each one-hot, or of components; 2 for bits; for
            semi-supervised, by default the number of classes of the labels.
        num_layers: The number of layers of hierarchical; 1 for other programs.
        latent_dim: The dimension of the Gaussian of joint, gaussian-mixture and semi-supervised; 0 for other programs.
        hidden: Widths of the encoder's hidden layers; the decoder has them in reverse order. By default one layer of
            twice as many units as the encoder has inputs, rounded to a power of two from 32 to 256.
        estimators: The estimators to measure.
        temperatures: Temperatures at which to measure the estimators that have one.
        kl: The KL of gumbel-softmax: of the relaxed or of the categorical distributions (not for hierarchical).
        wrt: Measure gradients with respect to the guide's logits, to all parameters, or both.
        protocol: Measure the gradient of the ELBO, with standard errors (elbo), or that of the reconstruction term, as
            in the ReinMax paper (reinmax).
        epochs: Epochs of training after which to measure; 0 is the initialization.
        train_by: The estimator that trains the new model.
        batch_size: B, the number of images in a training batch.
        learning_rate: Learning rate of Adam.
        seed: Seed of the new model, its batches and the samples.
        num_data: Number of images to measure on, starting with the first.
        num_samples: Number of estimates of the logits' gradient.
        num_parameter_samples: Number of estimates of the parameters' gradient.
        double: Compute gradients in float64.
        max_memory: Gigabytes that an exact sum may use.
        output: The folder, a new one or one to continue; by default runs/gradients-DATE-TIME.
    """

    run: Positional[Path | None] = None
    dataset: ImagesName = "digits"
    data_dir: Path = Path("data")
    download: bool = False
    binarize: Binarization = "threshold"
    model: ModelName = "categorical"
    num_latents: int = 4
    num_categories: int = 8
    num_layers: int = 1
    latent_dim: int = 0
    hidden: tuple[int, ...] | None = None
    estimators: tuple[EstimatorName, ...] = ("gumbel-softmax", "exact")
    temperatures: tuple[float, ...] = (0.2, 0.5, 1.0, 2.0)
    kl: Literal["relaxed", "categorical"] = "categorical"
    wrt: tuple[Literal["logits", "parameters"], ...] = ("logits",)
    protocol: Literal["elbo", "reinmax"] = "elbo"
    epochs: tuple[int, ...] = (0,)
    train_by: EstimatorName = "gumbel-softmax"
    batch_size: int = 64
    learning_rate: float = 3e-3
    seed: int = 0
    num_data: int = 100
    num_samples: int = 1024
    num_parameter_samples: int = 64
    double: bool = False
    max_memory: float = 4.0
    output: Path | None = None

    def __post_init__(self) -> None:
        for name in ("batch_size", "num_data"):
            at_least(name, getattr(self, name), 1)
        for name in ("num_samples", "num_parameter_samples"):
            at_least(name, getattr(self, name), 32)
        for epoch in self.epochs:
            at_least("epochs", epoch, 0)
        for temperature in self.temperatures:
            positive("temperatures", temperature)
        positive("learning_rate", self.learning_rate)
        for name in ("estimators", "wrt", "epochs"):
            all_different(name, getattr(self, name))
        if self.run is not None and self.epochs != (0,):
            raise ValueError(
                "Expected epochs only for a new model, but found them for a run, whose models are trained already."
            )
        if self.protocol == "reinmax" and self.wrt != ("logits",):
            raise ValueError("Expected the ReinMax protocol with wrt=logits alone, but found others. Try --wrt logits.")
        self.training()  # refuses sizes that the program does not have

    def training(self) -> TrainConfig:
        """Return the settings of the new model and its data."""
        return _training(self)


@dataclasses.dataclass(frozen=True)
class AdviseConfig(DataConfig):
    """Recommend an estimator: measure the candidates for a short time on a model of your size and data.

    Args:
        data_dir: The folder of the data sets that have files, as torchvision lays them out.
        download: Download missing files into the data folder.
        binarize: Keep grey pixels (none), round them to black or white at 1/2 (threshold), or sample them for every
            batch (dynamic).
        model: The program: N one-hots (categorical) or N bits (bernoulli); layers of N one-hots (hierarchical); N
            one-hots and a Gaussian (joint); a component and a Gaussian that depends on it (gaussian-mixture); a
            class, known for labelled rows, and a Gaussian (semi-supervised); or N one-hots given the label
            (conditional). Each program has its own default sizes; `--model NAME --help` shows them.
        num_latents: N, the number of one-hots (per layer, if there are several) or of bits; 1 for gaussian-mixture
            and semi-supervised.
        num_categories: K, the number of categories of each one-hot, or of components; 2 for bits; for
            semi-supervised, by default the number of classes of the labels.
        num_layers: The number of layers of hierarchical; 1 for other programs.
        latent_dim: The dimension of the Gaussian of joint, gaussian-mixture and semi-supervised; 0 for other programs.
        hidden: Widths of the encoder's hidden layers; the decoder has them in reverse order. By default one layer of
            twice as many units as the encoder has inputs, rounded to a power of two from 32 to 256.
        batch_size: B, the number of data in a batch.
        learning_rate: Learning rate of the short training that precedes the measurements.
        estimators: The estimators to consider; by default all.
        temperatures: Temperatures at which to measure the estimators that have one.
        seconds: How long the whole command may take, roughly; at least about four, since importing torch's optimizers
            takes two, and two estimators are always measured.
        seed: Seed of the model, the batch and the samples.
        max_memory: Gigabytes that an exact sum may use.
        output: A folder for the table; by default nothing is written.
    """

    data_dir: Path = Path("data")
    download: bool = False
    binarize: Binarization = "threshold"
    model: ModelName = "categorical"
    num_latents: int = 4
    num_categories: int = 8
    num_layers: int = 1
    latent_dim: int = 0
    hidden: tuple[int, ...] | None = None
    batch_size: int = 64
    learning_rate: float = 3e-3
    estimators: tuple[EstimatorName, ...] = ()
    temperatures: tuple[float, ...] = (0.5, 1.0)
    seconds: float = 60.0
    seed: int = 0
    max_memory: float = 4.0
    output: Path | None = None

    def __post_init__(self) -> None:
        for temperature in self.temperatures:
            positive("temperatures", temperature)
        for name in ("learning_rate", "seconds"):
            positive(name, getattr(self, name))
        if self.estimators:
            all_different("estimators", self.estimators)
        self.training()  # refuses sizes that the program does not have

    def training(self) -> TrainConfig:
        """Return the settings of the model and its data."""
        return _training(self)


def _training(config: GradientsConfig | AdviseConfig) -> TrainConfig:
    """Return the settings shared with a training run; seconds and folders belong to the command alone.

    Raises:
        ValueError: if there is no such program.
    """
    names = TrainConfig.__dataclass_fields__.keys() & config.__dataclass_fields__.keys() - {"seconds", "output"}
    return TrainConfig(**{name: getattr(config, name) for name in names})
