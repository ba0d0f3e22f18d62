"""What a run is told, as frozen dataclasses, checked when made; no torch, so that `--help` is instant."""

import dataclasses
from pathlib import Path
from typing import Any, Literal, Self

import tyro

DatasetName = Literal["digits", "mnist", "fashion_mnist", "kmnist", "omniglot", "teacher"]
EstimatorName = Literal[
    "gumbel-softmax",
    "straight-through",
    "st-gumbel-softmax",
    "decoupled-st-gumbel-softmax",
    "gumbel-rao",
    "gapped-straight-through",
    "reinmax",
    "reinmax-rao",
    "reinforce",
    "reinforce-baseline",
    "reinforce-loo",
    "vimco",
    "reweighted-wake-sleep",
    "local-expectation",
    "disarm",
    "disarm-iw",
    "rebar",
    "relax",
    "exact",
    "exact-evidence",
]
Binarization = Literal["none", "threshold", "dynamic"]


@dataclasses.dataclass(frozen=True)
class CompareConfig:
    """Train the same network by several estimators and compare the discrete models that result.

    Every estimator starts from the same initial weights and sees the same batches in the same order.

    Args:
        dataset: What to train on; digits and teacher need no files.
        data_dir: The folder of the data sets that have files, as torchvision lays them out.
        download: Fetch absent files into the data folder.
        binarize: Grey pixels as they are, black or white at 1/2, or drawn anew for every batch.
        estimators: Which ones to compare.
        seeds: Each seed gives initial weights and an order of the data.
        num_latents: N, one-hots in the code.
        num_categories: K, categories of each.
        hidden: Widths of the encoder's hidden layers; the decoder has them in reverse.
        epochs: Passes over the training data.
        batch_size: B, images in a batch.
        learning_rate: Of Adam.
        kl: The KL of gumbel-softmax: of Concrete densities (a bound of the relaxed model), or of the categoricals.
        temperature: Of the guide's relaxation.
        prior_temperature: Of the model's relaxation.
        evaluations: How many times to evaluate the discrete model while training.
        max_memory: Gigabytes that an exact sum may take; a quarter of the free memory if not given.
        output: The run folder, which must not exist; runs/compare-DATE-TIME if not given.
    """

    dataset: DatasetName = "digits"
    data_dir: Path = Path("data")
    download: bool = False
    binarize: Binarization = "threshold"
    estimators: tuple[EstimatorName, ...] = ("gumbel-softmax", "exact")
    seeds: tuple[int, ...] = (0, 1)
    num_latents: int = 4
    num_categories: int = 8
    hidden: tuple[int, ...] = (128,)
    epochs: int = 100
    batch_size: int = 64
    learning_rate: float = 3e-3
    kl: Literal["relaxed", "categorical"] = "relaxed"
    temperature: float = 2 / 3
    prior_temperature: float = 2 / 5
    evaluations: int = 20
    max_memory: float | None = None
    output: Path | None = None

    def __post_init__(self) -> None:
        for name in ("num_latents", "epochs", "batch_size", "evaluations"):
            _at_least(name, getattr(self, name), 1)
        _at_least("num_categories", self.num_categories, 2)
        for width in self.hidden:
            _at_least("hidden", width, 1)
        for seed in self.seeds:
            _at_least("seeds", seed, 0)
            if seed >= 2**32:
                raise ValueError(f"Expected seeds below 2^32, but found {seed}.")
        for name in ("learning_rate", "temperature", "prior_temperature", "max_memory"):
            value = getattr(self, name)
            if value is not None:
                _positive(name, value)
        for name in ("estimators", "seeds"):
            _all_different(name, getattr(self, name))

    @classmethod
    def from_json(cls, written: dict[str, Any]) -> Self:
        """The configuration that `as_json` wrote; what else is written is left out.

        Raises:
            ValueError: if a setting cannot be.
        """
        known = {field.name: written[field.name] for field in dataclasses.fields(cls) if field.name in written}
        for name, value in known.items():
            if isinstance(value, list):
                known[name] = tuple(value)
            elif name in ("data_dir", "output") and value is not None:
                known[name] = Path(value)
        return cls(**known)

    def as_json(self) -> dict[str, Any]:
        """The configuration as JSON writes it."""
        return {
            name: str(value) if isinstance(value, Path) else value for name, value in dataclasses.asdict(self).items()
        }


@dataclasses.dataclass(frozen=True)
class GapsConfig:
    """How far training objectives are from log p(x): relaxation, amortization and mean-field gaps of a run.

    Args:
        run: A run folder of compare or train.
        num_data: How many test data to take, from the first on.
        num_particles: P, relaxed samples per datum.
        max_memory: Gigabytes that an exact sum may take; a quarter of the free memory if not given.
    """

    run: tyro.conf.Positional[Path]
    num_data: int = 1000
    num_particles: int = 100
    max_memory: float | None = None

    def __post_init__(self) -> None:
        _at_least("num_data", self.num_data, 2)
        _at_least("num_particles", self.num_particles, 1)


@dataclasses.dataclass(frozen=True)
class ReportConfig:
    """Draw the figures of a run and write one self-contained page, report.html, into its folder.

    Args:
        run: A run folder of compare or train, finished or not.
    """

    run: tyro.conf.Positional[Path]


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Which trained model to look at.

    Args:
        run: A run folder of compare or train, the latter finished or not.
        estimator: Whose model, in a run of several estimators.
        seed: Which model, in a run of several seeds.
        output: The folder to write to; one inside the run folder if not given.
    """

    run: tyro.conf.Positional[Path]
    estimator: str | None = None
    seed: int | None = None
    output: Path | None = None


@dataclasses.dataclass(frozen=True)
class EvaluateConfig(ModelConfig):
    """What a trained model is worth as a discrete model, on train and test data: bounds of log p(x), use of codes.

    Args:
        num_data: How many data of each part, from the first on.
        evidence: How log p(x) is judged; auto sums over all codes where that takes less than a minute.
        particles: P, samples for each datum where codes are too many to be summed.
        max_memory: Gigabytes that a sum may take; a quarter of the free memory if not given.
        random_seed: Seed of the samples.
    """

    num_data: int = 10_000
    evidence: Literal["auto", "exact", "importance-weighted"] = "auto"
    particles: int = 1000
    max_memory: float | None = None
    random_seed: int = 0

    def __post_init__(self) -> None:
        _at_least("num_data", self.num_data, 2)
        _at_least("particles", self.particles, 1)


@dataclasses.dataclass(frozen=True)
class EncodeConfig(ModelConfig):
    """The codes of data, as CSV of category numbers and as safetensors.

    Args:
        part: Which part of the data.
        kind: The guide's most probable code, one drawn from the guide, or the exact posterior's most probable one.
        num_data: How many data, from the first on; all if not given.
        max_memory: Gigabytes that an exact sum may take; a quarter of the free memory if not given.
        random_seed: Seed of codes that are drawn.
    """

    part: Literal["train", "test"] = "test"
    kind: Literal["map", "sample", "exact"] = "map"
    num_data: int | None = None
    max_memory: float | None = None
    random_seed: int = 0

    def __post_init__(self) -> None:
        if self.num_data is not None:
            _at_least("num_data", self.num_data, 1)


@dataclasses.dataclass(frozen=True)
class ReconstructConfig(EncodeConfig):
    """Images and their reconstructions E[x | z], as PNG and as safetensors.

    Args:
        num_data: How many images, from the first on.
    """

    num_data: int = 20


@dataclasses.dataclass(frozen=True)
class SampleConfig(ModelConfig):
    """Images of codes drawn from the prior, as PNG and as safetensors.

    Args:
        num_samples: How many images.
        pixels: Draw the pixels too; else their means are shown.
        random_seed: Seed of the codes and pixels.
    """

    num_samples: int = 100
    pixels: bool = False
    random_seed: int = 0

    def __post_init__(self) -> None:
        _at_least("num_samples", self.num_samples, 1)


def _positive(name: str, value: float) -> None:
    if not 0 < value < float("inf"):
        raise ValueError(f"Expected a positive {name}, but found {value}.")


def _all_different(name: str, values: tuple[Any, ...]) -> None:
    if not values or len(set(values)) < len(values):
        raise ValueError(f"Expected one or more different {name}, but found {list(values)}.")


def _at_least(name: str, value: int, least: int) -> None:
    if value < least:
        raise ValueError(f"Expected {name} of at least {least}, but found {value}.")
