"""What a run is told, as frozen dataclasses, checked when made; no torch, so that `--help` is instant."""

import dataclasses
from pathlib import Path
from typing import Literal

import tyro

from .checks import at_least


@dataclasses.dataclass(frozen=True)
class GapsConfig:
    """How far training objectives are from log p(x): relaxation, amortization and mean-field gaps of a run.

    Args:
        run: A run folder of compare or train.
        num_data: How many test data to take, from the first on.
        num_particles: P, relaxed samples per datum.
        max_memory: Gigabytes that an exact sum may take.
    """

    run: tyro.conf.Positional[Path]
    num_data: int = 1000
    num_particles: int = 100
    max_memory: float = 4.0

    def __post_init__(self) -> None:
        at_least("num_data", self.num_data, 2)
        at_least("num_particles", self.num_particles, 1)


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
        max_memory: Gigabytes that a sum may take.
        random_seed: Seed of the samples.
    """

    num_data: int = 10_000
    evidence: Literal["auto", "exact", "importance-weighted"] = "auto"
    particles: int = 1000
    max_memory: float = 4.0
    random_seed: int = 0

    def __post_init__(self) -> None:
        at_least("num_data", self.num_data, 2)
        at_least("particles", self.particles, 1)


@dataclasses.dataclass(frozen=True)
class EncodeConfig(ModelConfig):
    """The codes of data, as CSV of category numbers and as safetensors.

    Args:
        part: Which part of the data.
        kind: The guide's most probable code, one drawn from the guide, or the exact posterior's most probable one.
        num_data: How many data, from the first on; all if not given.
        max_memory: Gigabytes that an exact sum may take.
        random_seed: Seed of codes that are drawn.
    """

    part: Literal["train", "test"] = "test"
    kind: Literal["map", "sample", "exact"] = "map"
    num_data: int | None = None
    max_memory: float = 4.0
    random_seed: int = 0

    def __post_init__(self) -> None:
        if self.num_data is not None:
            at_least("num_data", self.num_data, 1)


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
        at_least("num_samples", self.num_samples, 1)


@dataclasses.dataclass(frozen=True)
class ResumeConfig:
    """Go on with a run that was stopped or killed, as if nothing had happened.

    Args:
        run: A run folder of train.
    """

    run: tyro.conf.Positional[Path]
