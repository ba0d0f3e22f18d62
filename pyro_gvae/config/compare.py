"""The configuration of a comparison: a frozen dataclass, checked when created; no torch."""

import dataclasses
import math
import re
from pathlib import Path
from typing import Any, Literal, Self

from .checks import MOST_CELLS, all_different, at_least, at_most, positive
from .data import DataConfig
from .json import plain_settings, read_settings
from .models import MODELS, RELAXED, check_stages
from .names import Binarization, ModelName, NetworksName, ObservationName
from .stages import Amount, Stage, parse_stages
from .train import TrainConfig

#: Settings of the machine, not of the run: each call gives them, and they are never read from a run folder.
OUTSIDE = frozenset({"data_dir", "download", "workers", "backend", "scheduler", "output"})


@dataclasses.dataclass(frozen=True)
class CompareConfig(DataConfig):
    """Train the same network with several estimators and compare the resulting discrete models.

    Every estimator starts from the same initial weights and sees the same batches in the same order. If several sizes,
    temperatures or learning rates are given, every combination is trained. To continue an interrupted comparison,
    repeat the command with the same `--output`; with further estimators, seeds or epochs, it trains only what is new.
    Settings that are not given are those of that folder.

    Args:
        data_dir: The folder of the data sets that have files, as torchvision lays them out.
        download: Download missing files into the data folder.
        binarize: For images: keep grey pixels (none), round them to black or white at 1/2 (threshold), or sample them
            for every batch (dynamic).
        estimators: The estimators to compare, with options in brackets, or training plans of several stages:
            exact gumbel-softmax[kl=relaxed] gumbel-softmax:20,exact:3. The default is gumbel-softmax with the KL of
            the relaxed distributions, and with that of the categorical distributions (not for hierarchical), exact, and
            gumbel-softmax followed by exact for the last sixth of the epochs (not for a single epoch).
        seeds: Each seed determines initial weights and an order of the data.
        model: The program: N one-hots (categorical) or N bits (bernoulli); layers of N one-hots (hierarchical); N
            one-hots and a Gaussian (joint); a component and a Gaussian that depends on it (gaussian-mixture); a
            class, known for labelled rows, and a Gaussian (semi-supervised); or N one-hots given the label
            (conditional). Programs with a Gaussian are compared by a bound of log p(x). Each program has its own
            default sizes; `--model NAME --help` shows them.
        num_latents: N, the number of one-hots (per layer, if there are several) or of bits; 1 for gaussian-mixture
            and semi-supervised.
        num_categories: K, the number of categories of each one-hot, or of components; 2 for bits; for
            semi-supervised, by default the number of classes of the labels.
        num_layers: The number of layers of hierarchical; 1 for other programs.
        latent_dim: The dimension of the Gaussian of joint, gaussian-mixture and semi-supervised; 0 for other programs.
        sizes: Several sizes K x N, such as 8x4 4x24, in place of a single one.
        temperatures: Several temperatures, for the estimators that have one; the others are trained once.
        learning_rates: Several learning rates, in place of a single one.
        label_weight: For semi-supervised: weight of the mean cross-entropy of the labelled rows, which trains the
            classifier, in nats per row.
        networks: Multilayer perceptrons (mlp), or convolutions followed by multilayer perceptrons (conv).
        hidden: Widths of the encoder's hidden layers; the decoder has them in reverse order. By default one layer of
            twice as many units as the encoder has inputs, rounded to a power of two from 32 to 256.
        observation: Distribution of a pixel; the columns of a table have distributions of their own.
        num_levels: L, the number of levels of a categorical pixel; grey values are rounded to the levels 0 .. L - 1.
        prior: The prior of a categorical code: uniform or independent digits, or digits that depend on each other by a
            joint, markov, tree, autoregressive or mixture prior, with options in brackets:
            autoregressive[network=transformer], mixture[num_components=32].
        learn_prior: The same as --prior independent.
        epochs: Passes over the training data, for estimators given without an amount of training.
        batch_size: B, the number of data in a batch.
        optimizer: A class of torch.optim, with options in brackets: SGD[momentum=0.9].
        learning_rate: A number or a schedule.
        clip_norm: The largest norm of the gradient, in nats per datum.
        temperature: Temperature of the guide's relaxation: a number or a schedule.
        prior_temperature: Temperature of the model's relaxation: a number or a schedule.
        unimix: Share of the uniform distribution that is mixed into the guide: a schedule that ends at 0, such as
            linear:0.01,0,2000.
        usage_entropy: Weight of a reward for using all categories: a schedule that ends at 0, such as linear:1,0,2000.
        revive: Share of the training data below which a category counts as unused, and gets new weights after an epoch.
        evaluations: Number of times to evaluate the discrete model during training.
        checkpoint_every: How often a cell (one estimator with one seed) writes a checkpoint.
        max_memory: Gigabytes that an exact sum may use.
        workers: Number of processes of this machine that train cells at the same time; they share its threads.
        backend: Train in processes of this machine (loky), or on a Dask cluster that sees the same folders (dask).
        scheduler: The address of the Dask cluster, such as tcp://localhost:8786.
        parquet: Also write results.parquet, for other programs; needs the extra parquet.
        output: The run folder, a new one or one of the same comparison, which can get further estimators, seeds and
            epochs; by default runs/compare-DATE-TIME.
    """

    data_dir: Path = Path("data")
    download: bool = False
    binarize: Binarization = "threshold"
    estimators: tuple[str, ...] | None = None
    seeds: tuple[int, ...] = (0, 1, 2)
    model: ModelName = "categorical"
    num_latents: int = 4
    num_categories: int = 8
    num_layers: int = 1
    latent_dim: int = 0
    label_weight: float = 10.0
    sizes: tuple[str, ...] = ()
    temperatures: tuple[float, ...] = ()
    learning_rates: tuple[float, ...] = ()
    networks: NetworksName = "mlp"
    hidden: tuple[int, ...] | None = None
    observation: ObservationName = "bernoulli"
    num_levels: int = 256
    prior: str = "uniform"
    learn_prior: bool = False
    epochs: int = 60
    batch_size: int = 64
    optimizer: str = "Adam"
    learning_rate: float | str = 3e-3
    clip_norm: float | None = None
    temperature: float | str = 2 / 3
    prior_temperature: float | str = 2 / 5
    unimix: float | str | None = None
    usage_entropy: float | str | None = None
    revive: float | None = None
    evaluations: int = 20
    checkpoint_every: str = "30s"
    max_memory: float = 4.0
    workers: int = 1
    backend: Literal["loky", "dask"] = "loky"
    scheduler: str | None = None
    parquet: bool = False
    output: Path | None = None

    def __post_init__(self) -> None:
        self.check_data()
        for name in ("epochs", "evaluations", "workers"):
            at_least(name, getattr(self, name), 1)
        all_different("seeds", self.seeds)
        if self.estimators is not None:
            all_different("estimators", self.estimators)
        for name in ("sizes", "temperatures", "learning_rates"):
            if getattr(self, name):
                all_different(name, getattr(self, name))
        for temperature in self.temperatures:
            positive("temperatures", temperature)
        grids = (self.each_estimator(), self.seeds, self.sizes, self.temperatures, self.learning_rates)
        at_most("cells", math.prod(max(1, len(values)) for values in grids), MOST_CELLS)
        if (self.backend == "dask") != (self.scheduler is not None):
            raise ValueError("Expected a scheduler with the backend dask, but found one without the other.")
        for estimator in self.each_estimator():
            self.plan(estimator)
        for num_categories, num_latents in self.each_size():
            for seed in self.seeds:
                for learning_rate in self.each_learning_rate():
                    self.training(
                        num_categories=num_categories, num_latents=num_latents, seed=seed, learning_rate=learning_rate
                    )

    def each_estimator(self) -> tuple[str, ...]:
        """Return the estimators to compare: `estimators`, or relaxed, exact, and relaxed followed by exact training."""
        return default_estimators(self.model, self.epochs) if self.estimators is None else self.estimators

    def plan(self, estimator: str) -> tuple[Stage, ...]:
        """Parse one of the estimators into its stages."""
        return parse_stages(estimator, Amount.parse(self.epochs))

    def check_estimators(self) -> None:
        """Refuse estimators that do not work with the program.

        Raises:
            ValueError: if there is one.
        """
        for num_categories, num_latents in self.each_size():
            sized = self.training(num_categories=num_categories, num_latents=num_latents)
            for estimator in self.each_estimator():
                check_stages(sized, self.plan(estimator))

    def each_size(self) -> list[tuple[int, int]]:
        """Return (K, N) of every model size."""
        return [_size(text) for text in self.sizes] or [(self.num_categories, self.num_latents)]

    def each_learning_rate(self) -> tuple[float | str, ...]:
        """Return the learning rates to compare: `learning_rates`, or `learning_rate` alone."""
        return self.learning_rates or (self.learning_rate,)

    def training(self, **changed: Any) -> TrainConfig:
        """Return the configuration of a training run: this comparison's settings, with some changed."""
        names = set(TrainConfig.__dataclass_fields__) & set(self.__dataclass_fields__) - {"output"}
        own = {"judge": "exact"}  # refuses models with too many codes to sum over
        return TrainConfig(**{name: getattr(self, name) for name in names} | own | changed)

    @classmethod
    def from_json(cls, written: dict[str, Any]) -> Self:
        """Read the configuration that `as_json` wrote; unknown entries are ignored.

        Raises:
            ValueError: if a setting has the wrong type or an invalid value.
        """
        return cls(**read_settings(cls, written))

    def as_json(self) -> dict[str, Any]:
        """Convert the configuration to values that JSON can write, with the estimators that a default stands for."""
        return plain_settings(self) | {"estimators": list(self.each_estimator())}


def default_estimators(model: ModelName, epochs: int) -> tuple[str, ...]:
    """Return the estimators that are compared unless others are given.

    Example:
        >>> default_estimators("categorical", 60)
        ('gumbel-softmax[kl=relaxed]', 'gumbel-softmax', 'exact', 'gumbel-softmax:50,exact:10')
    """
    last = -(-epochs // 6)
    soft = MODELS[model].soft
    # A single epoch cannot be divided, and a plan of two epochs would train for longer than the others.
    staged = (f"{soft}:{epochs - last},exact:{last}",) if epochs > 1 else ()
    return tuple(dict.fromkeys((RELAXED, soft, "exact", *staged)))


def _size(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"(\d+)x(\d+)", text)
    if found is None:
        raise ValueError(f"Expected a size KxN, but found '{text}'. Try 8x4, which means K = 8 and N = 4.")
    return int(found[1][:9]), int(found[2][:9])  # longer numbers are refused anyway
