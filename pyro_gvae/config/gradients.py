"""What the laboratory's commands are told, as frozen dataclasses; no torch, so that `--help` is instant."""

import dataclasses
from pathlib import Path
from typing import Literal

from .checks import all_different, at_least, positive
from .names import Binarization, DatasetName, EstimatorName


@dataclasses.dataclass(frozen=True)
class GradientsConfig:
    """Bias, variance and direction of estimators' gradients against the exact one: a table and figures.

    The model is a new one, at initialization and along its training, or those of a run folder. Called again with the
    same output, it measures what is missing there.

    Args:
        run: A run folder of compare or train, whose models are measured on their test sets; else a new model is.
        dataset: What to measure on; digits and teacher need no files.
        data_dir: The folder of the data sets that have files, as torchvision lays them out.
        download: Fetch absent files into the data folder.
        binarize: Grey pixels as they are, black or white at 1/2, or drawn anew for every batch.
        num_latents: N, one-hots in the code.
        num_categories: K, categories of each.
        hidden: Widths of the encoder's hidden layers; the decoder has them in reverse.
        estimators: Which ones to measure.
        temperatures: A grid, for estimators that have one.
        kl: The KL of gumbel-softmax.
        wrt: Gradients with respect to the guide's logits, or to all parameters.
        protocol: The gradient of the ELBO with standard errors, or of the reconstruction term as the ReinMax paper
            has it.
        epochs: When to measure along the training; 0 is the initialization.
        train_by: The estimator that trains the new model.
        batch_size: B, images in a batch of the training.
        learning_rate: Of Adam.
        seed: Of the new model and its batches, and of the samples.
        num_data: How many images to measure on, from the first on.
        num_samples: Estimates of the logits' gradient.
        num_parameter_samples: Estimates of the parameters' gradient.
        double: Compute gradients in float64.
        max_memory: Gigabytes that an exact sum may take.
        output: The folder, new or to be continued; runs/gradients-DATE-TIME if not given.
    """

    run: Path | None = None
    dataset: DatasetName = "digits"
    data_dir: Path = Path("data")
    download: bool = False
    binarize: Binarization = "threshold"
    num_latents: int = 4
    num_categories: int = 8
    hidden: tuple[int, ...] = (128,)
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
        _check_model(self)
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
            raise ValueError("Expected epochs with a new model, but found them with a run, whose models are trained.")
        if self.protocol == "reinmax" and self.wrt != ("logits",):
            raise ValueError("Expected wrt logits alone in the ReinMax protocol, but found others. Try --wrt logits.")


@dataclasses.dataclass(frozen=True)
class AdviseConfig:
    """Should I relax or enumerate? Measures estimators for a short time on a model of yours, and recommends one.

    Args:
        dataset: What you train on; digits and teacher need no files.
        data_dir: The folder of the data sets that have files, as torchvision lays them out.
        download: Fetch absent files into the data folder.
        binarize: Grey pixels as they are, black or white at 1/2, or drawn anew for every batch.
        num_latents: N, one-hots in the code.
        num_categories: K, categories of each.
        hidden: Widths of the encoder's hidden layers; the decoder has them in reverse.
        batch_size: B, images in a batch.
        learning_rate: Of the short training before anything is measured.
        estimators: Which ones to consider; all of them if not given.
        temperatures: A grid, for estimators that have one.
        seconds: How long all of it may take, about.
        seed: Of the model, the batch and the samples.
        max_memory: Gigabytes that an exact sum may take.
        output: A folder for the table; nothing is written if not given.
    """

    dataset: DatasetName = "digits"
    data_dir: Path = Path("data")
    download: bool = False
    binarize: Binarization = "threshold"
    num_latents: int = 4
    num_categories: int = 8
    hidden: tuple[int, ...] = (128,)
    batch_size: int = 64
    learning_rate: float = 3e-3
    estimators: tuple[EstimatorName, ...] = ()
    temperatures: tuple[float, ...] = (0.5, 1.0)
    seconds: float = 60.0
    seed: int = 0
    max_memory: float = 4.0
    output: Path | None = None

    def __post_init__(self) -> None:
        _check_model(self)
        at_least("batch_size", self.batch_size, 1)
        for temperature in self.temperatures:
            positive("temperatures", temperature)
        for name in ("learning_rate", "seconds"):
            positive(name, getattr(self, name))
        if self.estimators:
            all_different("estimators", self.estimators)


def _check_model(config: GradientsConfig | AdviseConfig) -> None:
    """What these two have in common."""
    at_least("num_latents", config.num_latents, 1)
    at_least("num_categories", config.num_categories, 2)
    for width in config.hidden:
        at_least("hidden", width, 1)
    at_least("seed", config.seed, 0)
    if config.max_memory is not None:
        positive("max_memory", config.max_memory)
