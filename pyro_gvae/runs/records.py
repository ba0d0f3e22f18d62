"""Declare the entries of a run folder's files that are read back: their names and types, checked when they are read."""

from typing import TypedDict

from ..config.names import ColumnKind, ModelName


class TrainLine(TypedDict):
    """An evaluation of a training run, in its metrics.jsonl; entries that may be None may be absent."""

    step: int
    epoch: float
    seconds: float
    stage: int
    estimator: str
    skipped: int
    elbo_is: str  # one of `ElboIs`
    steps_per_second: float | None
    train_objective: float | None
    train_elbo: float | None
    test_elbo: float | None
    validation_elbo: float | None
    learning_rate: float | None
    temperature: float | None
    prior_temperature: float | None
    beta: float | None
    unimix: float | None
    usage_entropy: float | None
    num_latents: int | None
    num_categories: int | None


class ProgramRecord(TypedDict):
    """A program in the config.json of a run of `fit`; the arguments are None if it is the caller's own code."""

    name: str
    arguments: dict | None  # type: ignore[type-arg]
    dtype: str | None


class ColumnRecord(TypedDict):
    """A column of a table."""

    name: str
    kind: ColumnKind
    levels: list  # type: ignore[type-arg]
    centre: float
    spread: float


class DataRecord(TypedDict):
    """The data of a run of `fit`; `columns` are the keys of a dictionary, and only a `Dataset` has the last seven."""

    kind: str
    file: str | None
    bytes: dict  # type: ignore[type-arg]
    digest: str
    columns: list | None  # type: ignore[type-arg]
    name: str | None
    binarize: str | None
    image_shape: list | None  # type: ignore[type-arg]
    value_range: list | None  # type: ignore[type-arg]
    table: list | None  # type: ignore[type-arg]
    vocabulary: list | None  # type: ignore[type-arg]
    classes: list | None  # type: ignore[type-arg]


class CompareLine(TypedDict):
    """An evaluation of a cell, in the metrics.jsonl of its comparison."""

    estimator: str
    setting: str | None
    seed: int
    finished: bool
    step: int
    epoch: float
    seconds: float
    train_objective: float | None
    train_elbo: float | None
    test_objective: float | None
    test_elbo: float | None
    test_log_evidence: float | None
    test_collapsed_iwae_bound: float | None


class CellRecord(TypedDict):
    """A cell, as the config.json of its comparison lists it."""

    estimator: str
    setting: str
    seed: int


class CompareRecord(TypedDict):
    """The entries of a comparison's config.json that a report reads."""

    dataset: str
    data: str | None
    cells: list  # type: ignore[type-arg]
    seeds: list  # type: ignore[type-arg]
    sizes: list | None  # type: ignore[type-arg]
    model: ModelName | None
    num_latents: int
    num_categories: int
    num_layers: int | None
    latent_dim: int | None
    epochs: int
    image_shape: list  # type: ignore[type-arg]
    command: str | None
    versions: dict | None  # type: ignore[type-arg]
