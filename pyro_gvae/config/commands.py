"""Configurations of the smaller commands: frozen dataclasses, checked when created; no torch, so `--help` is fast."""

import dataclasses
from pathlib import Path
from typing import Literal

from .checks import at_least, positive
from .names import LoggerName, Positional


@dataclasses.dataclass(frozen=True)
class GapsConfig:
    """Measure how far a run's training objective is from log p(x): the relaxation, amortization and mean-field gaps.

    Args:
        run: A run folder of compare or train.
        num_data: Number of test data to use, starting with the first.
        num_particles: P, the number of relaxed samples per datum.
        max_memory: Gigabytes that an exact sum may use.
        data_dir: The folder of the data sets that have files.
    """

    run: Positional[Path]
    num_data: int = 1000
    num_particles: int = 100
    max_memory: float = 4.0
    data_dir: Path = Path("data")

    def __post_init__(self) -> None:
        at_least("num_data", self.num_data, 2)
        at_least("num_particles", self.num_particles, 1)
        positive("max_memory", self.max_memory)


@dataclasses.dataclass(frozen=True)
class ReportConfig:
    """Draw the figures of a run and write a self-contained page, report.html, into its folder.

    Args:
        run: A run folder of compare or train, finished or not.
        data_dir: The folder of the data sets that have files; a run of train shows some of its data.
        open: Open the page in the browser.
    """

    run: Positional[Path]
    data_dir: Path = Path("data")
    open: bool = False


@dataclasses.dataclass(frozen=True)
class ExploreConfig:
    """Write explorer.html, a page to look at a run's codes: it runs the trained networks, and needs no server.

    Args:
        run: A run folder of compare or train, finished or not.
        data_dir: The folder of the data sets that have files; the page shows test data.
        output: The page; by default explorer.html in the run folder.
        open: Open the page in the browser.
    """

    run: Positional[Path]
    data_dir: Path = Path("data")
    output: Path | None = None
    open: bool = False


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Choose a trained model of a run folder.

    Args:
        run: A run folder of compare or train; a training run may be unfinished.
        estimator: The estimator that trained the model, if the run has several.
        model_seed: The seed that the model was trained with, if the run has several.
        output: The folder to write to; by default a folder inside the run folder.
        data_dir: The folder of the data sets that have files.
    """

    run: Positional[Path]
    estimator: str | None = None
    model_seed: int | None = None
    output: Path | None = None
    data_dir: Path = Path("data")


@dataclasses.dataclass(frozen=True)
class EvaluateConfig(ModelConfig):
    """Evaluate a trained model as a discrete model on training and test data: bounds of log p(x), use of the codes.

    Args:
        num_data: Number of data of each part, starting with the first.
        evidence: How to compute log p(x); auto sums over all codes if that takes less than about a minute.
        num_particles: P, the number of samples per datum if there are too many codes to sum over.
        max_memory: Gigabytes that a sum may use.
        seed: Seed of the samples.
        data: A file of data like those of the run, used instead of the test data.
    """

    num_data: int = 10_000
    evidence: Literal["auto", "exact", "importance-weighted"] = "auto"
    num_particles: int = 1000
    max_memory: float = 4.0
    seed: int = 0
    data: Path | None = None

    def __post_init__(self) -> None:
        at_least("num_data", self.num_data, 2)
        at_least("num_particles", self.num_particles, 1)
        positive("max_memory", self.max_memory)


@dataclasses.dataclass(frozen=True)
class EncodeConfig(ModelConfig):
    """Encode data and write their codes, with the number and the probability of each, as CSV and safetensors.

    Latents, categories and joint codes are counted from 0, as everywhere.

    Args:
        part: The part of the data to encode.
        kind: The most probable code under the guide (map), a sample of the guide (sample), or the most probable code
            under the exact posterior (exact).
        num_data: Number of data, starting with the first; by default all.
        max_memory: Gigabytes that an exact sum may use.
        seed: Seed of the sampled codes.
        data: A file of data like those of the run, encoded instead of its test data.
    """

    part: Literal["train", "validation", "test"] = "test"
    kind: Literal["map", "sample", "exact"] = "map"
    num_data: int | None = None
    max_memory: float = 4.0
    seed: int = 0
    data: Path | None = None

    def __post_init__(self) -> None:
        positive("max_memory", self.max_memory)
        if self.num_data is not None:
            at_least("num_data", self.num_data, 1)
        if self.data is not None and self.part != "test":
            raise ValueError(f"Expected a file or a part of the run's data, but found a file and part='{self.part}'.")


@dataclasses.dataclass(frozen=True)
class ImputeConfig:
    """Fill the missing cells of a table from the posterior of a trained model, with probabilities, as CSV.

    Args:
        run: A run folder of train or compare on a table.
        file: A table (.csv, .parquet or .npz) with the same columns, some of whose cells are empty.
        estimator: The estimator that trained the model, if the run has several.
        model_seed: The seed that the model was trained with, if the run has several.
        output: The folder to write to; by default a folder inside the run folder.
        data_dir: The folder of the data sets that have files.
        averaging: How to average over latents: a sum over all codes (exact), or weighted samples of the guide
            (sampled), which is approximate; auto sums if that takes less than about a minute.
        num_particles: P, the number of samples per row, if samples are used.
        max_memory: Gigabytes that an exact sum may use.
        seed: Seed of the samples.
    """

    run: Positional[Path]
    file: Positional[Path]
    estimator: str | None = None
    model_seed: int | None = None
    output: Path | None = None
    data_dir: Path = Path("data")
    averaging: Literal["auto", "exact", "sampled"] = "auto"
    num_particles: int = 1000
    max_memory: float = 4.0
    seed: int = 0

    def __post_init__(self) -> None:
        at_least("num_particles", self.num_particles, 1)
        positive("max_memory", self.max_memory)


@dataclasses.dataclass(frozen=True)
class ReconstructConfig(EncodeConfig):
    """Reconstruct data as E[x | z] and write both, as PNG (tables as CSV) and as safetensors.

    Args:
        num_data: Number of data, starting with the first.
    """

    num_data: int = 20


@dataclasses.dataclass(frozen=True)
class SampleConfig(ModelConfig):
    """Generate data from codes sampled from the prior and write them, as PNG (tables as CSV) and as safetensors.

    Args:
        num_samples: Number of samples.
        label: The class of the samples, for a model with labels; by default, conditional generates each class in turn.
        pixels: Sample the pixels (or cells) too, instead of showing their means.
        seed: Seed of the codes and pixels.
    """

    num_samples: int = 100
    label: str | None = None
    pixels: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        at_least("num_samples", self.num_samples, 1)


@dataclasses.dataclass(frozen=True)
class ListConfig:
    """List the names that commands know: estimators, data sets, models, presets, and the runs of a folder.

    Args:
        what: What to list; by default all names.
        data_dir: The folder of the data sets that have files.
        runs: The folder of the runs.
    """

    what: Positional[Literal["all", "estimators", "datasets", "models", "presets", "runs"]] = "all"
    data_dir: Path = Path("data")
    runs: Path = Path("runs")


@dataclasses.dataclass(frozen=True)
class DoctorConfig:
    """Show what a bug report needs: versions, devices, threads, memory, data sets, write access, extras.

    Args:
        data_dir: The folder of the data sets that have files.
    """

    data_dir: Path = Path("data")


@dataclasses.dataclass(frozen=True)
class ResumeConfig:
    """Resume a run that was stopped or killed, or train a finished one further.

    The result is that of an uninterrupted run, and with `--more` that of a run that was begun with all of its stages.
    Data folder, device and loggers are those of this call, whatever the run was begun with.

    Args:
        run: A run folder of train or compare.
        more: Train for longer: further stages (exact:5), or an amount for the last estimator in epochs (30), steps
            (500steps) or seconds (60s).
        steps: Stop a training run after this many steps in total, instead of its own limit.
        seconds: Stop a training run after this many seconds of training in total, instead of its own limit.
        data_dir: The folder of the data sets that have files.
        download: Download missing files into the data folder.
        device: Where to continue a training run: cpu, cuda, cuda:1.
        compile: Compile the recorded step of a training run; by default as chosen when the run began.
        max_memory: Gigabytes that an exact sum may use; by default those of the run, which this machine must have.
            Another number may change how sums round.
        log: Send further evaluations of a training run to TensorBoard, Weights & Biases or MLflow.
        workers: The number of processes of this machine that continue a comparison.
        scheduler: The address of a Dask cluster that continues a comparison.
    """

    run: Positional[Path]
    more: str | None = None
    steps: int | None = None
    seconds: float | None = None
    data_dir: Path = Path("data")
    download: bool = False
    device: str = "cpu"
    compile: bool | None = None
    max_memory: float | None = None
    log: tuple[LoggerName, ...] = ()
    workers: int = 1
    scheduler: str | None = None

    def __post_init__(self) -> None:
        positive("seconds", self.seconds)
        positive("max_memory", self.max_memory)
        at_least("steps", self.steps, 1)
