"""What a comparison is told, as a frozen dataclass, checked when made; no torch."""

import dataclasses
import re
from pathlib import Path
from typing import Any, Literal, Self

from .checks import all_different, at_least, positive
from .json import plain_settings, read_settings
from .names import Binarization, DatasetName, NetworksName, ObservationName
from .stages import Amount, Stage, parse_stages
from .train import TrainConfig


@dataclasses.dataclass(frozen=True)
class CompareConfig:
    """Train the same network by several estimators and compare the discrete models that result.

    Every estimator starts from the same initial weights and sees the same batches in the same order. Where several
    sizes, temperatures or learning rates are given, every combination is trained. The same command with the same
    `--output` goes on where an interrupted one stopped.

    Args:
        dataset: What to train on; digits and teacher need no files.
        data_dir: The folder of the data sets that have files, as torchvision lays them out.
        download: Fetch absent files into the data folder.
        binarize: Grey pixels as they are, black or white at 1/2, or drawn anew for every batch.
        estimators: Which ones to compare, with options in brackets, or plans of several stages:
            exact gumbel-softmax[kl=categorical] gumbel-softmax:20,exact:3.
        seeds: Each seed gives initial weights and an order of the data.
        num_latents: N, one-hots in the code.
        num_categories: K, categories of each.
        sizes: Several K x N, such as 8x4 4x24, in place of num_categories and num_latents.
        temperatures: Several temperatures, for the estimators that have one; the others are trained once.
        learning_rates: Several learning rates, in place of learning_rate.
        networks: Multilayer perceptrons, or convolutions below them.
        hidden: Widths of the encoder's hidden layers; the decoder has them in reverse.
        observation: Distribution of a pixel.
        num_levels: L, of categorical pixels, to whose levels 0 .. L - 1 grey ones are rounded.
        learn_prior: Learn the prior of the code, in place of a uniform one.
        epochs: Passes over the training data, where an estimator does not say how much it trains.
        batch_size: B, images in a batch.
        optimizer: A class of torch.optim, with options in brackets: SGD[momentum=0.9].
        learning_rate: A number or a schedule.
        clip_norm: The largest norm of the gradient, in nats per datum.
        temperature: Of the guide's relaxation: a number or a schedule.
        prior_temperature: Of the model's relaxation: a number or a schedule.
        evaluations: How many times to evaluate the discrete model while training.
        checkpoint_every: How often a cell, one estimator with one seed, writes a checkpoint.
        max_memory: Gigabytes that an exact sum may take.
        workers: Processes of this machine that train cells at the same time; they share its threads.
        backend: Processes of this machine, or a Dask cluster that sees the same folders.
        scheduler: The address of the Dask cluster, such as tcp://localhost:8786.
        parquet: Write results.parquet beside results.csv, for other programs; needs the extra parquet.
        output: The run folder, new or of the same comparison; runs/compare-DATE-TIME if not given.
    """

    dataset: DatasetName = "digits"
    data_dir: Path = Path("data")
    download: bool = False
    binarize: Binarization = "threshold"
    estimators: tuple[str, ...] = ("gumbel-softmax", "exact")
    seeds: tuple[int, ...] = (0, 1)
    num_latents: int = 4
    num_categories: int = 8
    sizes: tuple[str, ...] = ()
    temperatures: tuple[float, ...] = ()
    learning_rates: tuple[float, ...] = ()
    networks: NetworksName = "mlp"
    hidden: tuple[int, ...] = (128,)
    observation: ObservationName = "bernoulli"
    num_levels: int = 256
    learn_prior: bool = False
    epochs: int = 100
    batch_size: int = 64
    optimizer: str = "Adam"
    learning_rate: float | str = 3e-3
    clip_norm: float | None = None
    temperature: float | str = 2 / 3
    prior_temperature: float | str = 2 / 5
    evaluations: int = 20
    checkpoint_every: str = "30s"
    max_memory: float = 4.0
    workers: int = 1
    backend: Literal["loky", "dask"] = "loky"
    scheduler: str | None = None
    parquet: bool = False
    output: Path | None = None

    def __post_init__(self) -> None:
        for name in ("epochs", "evaluations", "workers"):
            at_least(name, getattr(self, name), 1)
        for name in ("estimators", "seeds"):
            all_different(name, getattr(self, name))
        for name in ("sizes", "temperatures", "learning_rates"):
            if getattr(self, name):
                all_different(name, getattr(self, name))
        for temperature in self.temperatures:
            positive("temperatures", temperature)
        if (self.backend == "dask") != (self.scheduler is not None):
            raise ValueError("Expected a scheduler with the backend dask, but found one without the other.")
        for estimator in self.estimators:
            self.plan(estimator)
        for num_categories, num_latents in self.each_size():
            for seed in self.seeds:
                for learning_rate in self.each_learning_rate():
                    self.training(
                        num_categories=num_categories, num_latents=num_latents, seed=seed, learning_rate=learning_rate
                    )

    def plan(self, estimator: str) -> tuple[Stage, ...]:
        """The stages that one of the estimators stands for."""
        return parse_stages(estimator, Amount.parse(self.epochs))

    def each_size(self) -> list[tuple[int, int]]:
        """(K, N) of every model."""
        return [_size(text) for text in self.sizes] or [(self.num_categories, self.num_latents)]

    def each_learning_rate(self) -> tuple[float | str, ...]:
        """The learning rates to compare: the one of all cells if there are no others."""
        return self.learning_rates or (self.learning_rate,)

    def training(self, **changed: Any) -> TrainConfig:
        """The configuration of a training run with the settings that this comparison has, and some changed."""
        names = set(TrainConfig.__dataclass_fields__) & set(self.__dataclass_fields__) - {"output"}
        own = {"judge": "exact"}  # codes that are too many for a sum are refused
        return TrainConfig(**{name: getattr(self, name) for name in names} | own | changed)

    @classmethod
    def from_json(cls, written: dict[str, Any]) -> Self:
        """The configuration that `as_json` wrote; what else is written is left out.

        Raises:
            ValueError: if a setting is of the wrong type, or cannot be.
        """
        return cls(**read_settings(cls, written))

    def as_json(self) -> dict[str, Any]:
        """The configuration as JSON writes it."""
        return plain_settings(self)


def _size(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"(\d+)x(\d+)", text)
    if found is None:
        raise ValueError(f"Expected sizes as K x N, but found '{text}'. Try 8x4, which is K = 8 and N = 4.")
    return int(found[1]), int(found[2])
