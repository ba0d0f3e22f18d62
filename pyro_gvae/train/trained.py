"""Load the trained models of a run folder of any command."""

import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from ..config.models import Labels
from ..config.train import TrainConfig
from ..config.units import in_bytes
from ..data.blocks import ParquetRows
from ..data.dataset import Dataset, binarized
from ..data.files import read_file
from ..data.labels import class_names, use_of_labels
from ..data.observed import observed
from ..data.rows import Rows
from ..data.shares import Shares
from ..data.sliced import AnyDataset, SlicedDataset, large_table
from ..data.splits import as_frame, as_images, numbers_among
from ..data.tables import encoded
from ..models.base import VAE
from ..models.table import Column
from ..runs.checkpoint import load_checkpoint, load_tensors
from ..runs.config import is_train_run, read_train_config
from ..runs.folder import cell_folder
from ..runs.frames import read_lines
from ..runs.records import TrainLine
from .described import untrained
from .files import CHECKPOINT, METRICS, WEIGHTS
from .kept_data import as_dataset
from .prune import shrink_to


class Which(NamedTuple):
    """The identity of a trained model in a run folder.

    Attributes:
        estimator: the estimator that trained it, or the text of all stages if there were several.
        seed: the seed of its initial weights and order of data.
        epoch: number of epochs that it was trained.
    """

    estimator: str
    seed: int
    epoch: float

    @property
    def name(self) -> str:
        """The name of its files."""
        return cell_folder(Path(), self.estimator, self.seed).name


class Trained(NamedTuple):
    """A trained model.

    Attributes:
        name: the name of its files.
        vae: the model.
        data: its training data, and its test data if there are any.
        finished: whether it was trained to its end.
        config: the configuration of its training.
    """

    name: str
    vae: VAE
    data: AnyDataset
    finished: bool
    config: TrainConfig


def trained_models(run: Path) -> list[Which]:
    """List the models of a run folder: the finished cells of `compare`, or the one of `train`, finished or not.

    Raises:
        ValueError: if the folder is not a run folder.
    """
    if is_train_run(run):
        try:
            last = read_lines(run / METRICS, TrainLine)[0][-1]
        except (OSError, IndexError) as error:
            raise ValueError(f"Expected a run with evaluations, but found none in '{run}'. Try resume.") from error
        config = read_train_config(run)
        estimator = str(last["estimator"]) if len(config.plan) == 1 else config.stages  # as `compare` names its cells
        return [Which(estimator, config.seed, float(last["epoch"]))]
    from ..runs.contents import read_run  # imported here, since a single run needs no pandas

    contents = read_run(run)
    return [Which(str(row.estimator), int(row.seed), float(row.epoch)) for row in contents.final.itertuples()]


def load_model(
    run: Path, estimator: str | None = None, seed: int | None = None, *, data_dir: Path = Path("data")
) -> Trained:
    """Load the one trained model of a run folder with this estimator and seed, onto the CPU; None matches any.

    The folder need not be trusted: nothing outside of it but the data is read, and nothing is downloaded.

    Args:
        run: a run folder of any command.
        estimator: the estimator that trained the model.
        seed: the seed of the model.
        data_dir: the folder of the data sets that have files.

    Raises:
        ValueError: if the folder is not a run folder, does not have exactly one such model, or its weights cannot be
            read.
        OSError: if the data files are missing.
    """
    models = trained_models(run)
    found = [which for which in models if estimator in (None, which.estimator) and seed in (None, which.seed)]
    if len(found) != 1:
        tried = "without --estimator and --model-seed" if len(models) == 1 else "--estimator and --model-seed"
        known = ", ".join(f"{which.estimator} with seed {which.seed}" for which in models) or "none"
        raise ValueError(f"Expected one matching model in '{run}', but found {len(found)} among {known}. Try {tried}.")
    [which] = found
    folder = run if is_train_run(run) else cell_folder(run, which.estimator, which.seed)
    config = replace(read_train_config(folder), data_dir=data_dir)
    weights, finished = read_weights(folder)
    vae, data = untrained(folder, config)
    if config.pruning is not None:
        shrink_to(vae, weights)
    try:
        vae.load_state_dict(weights)
    except (RuntimeError, TypeError, AttributeError) as error:
        raise ValueError(f"Expected the weights in '{folder}' to fit its config.json, but found others.") from error
    if not finished:
        said = f"'{folder}' is not finished: the weights are those of its last checkpoint."
        warnings.warn(said, RuntimeWarning, stacklevel=2)
    return Trained(which.name, vae, as_dataset(data), finished, config)


def rows_of_file(trained: Trained, path: Path | None) -> Rows | None:
    """Return the rows of a table that takes more memory than the run allows for data; None for other files."""
    table = large_table(path, in_bytes(trained.config.data_memory))
    if table is None or trained.data.columns is None:
        return None
    memory, label = in_bytes(trained.config.data_memory), label_among(trained, table.names)
    return ParquetRows(table, trained.data.columns, label, Shares(1.0), "test", memory=memory)


def label_among(trained: Trained, names: Sequence[str]) -> Column | None:
    """Return the column of a run's labels, with the run's classes, if a table has it and the program takes labels."""
    data = trained.data
    own = data.label if isinstance(data, SlicedDataset) else None
    name = trained.config.labels if own is None else own.name
    if name is None or name not in names or use_of_labels(trained.vae) is Labels.UNUSED:
        return None
    return Column(name, "categorical", class_names(data))


def on_file(trained: Trained, path: Path | None, num_data: int) -> Trained:
    """Replace a trained model's test data by those of a file, encoded like its training data; None keeps them.

    Args:
        trained: the model.
        path: the file; if it has a split, its test data are used.
        num_data: the most data to read, if the file or the run's data are read in slices.

    Raises:
        ValueError: if the file is damaged, or its data do not match those of the run.
        OSError: if it cannot be read.
    """
    if path is None:
        return trained
    data, rows = trained.data, rows_of_file(trained, path)
    new, labels = _test_data(trained, path) if rows is None else rows.first(num_data)
    if not isinstance(data, SlicedDataset):
        return trained._replace(data=replace(data, test=new, test_labels=labels))
    train = data.train.first(num_data)
    own = Dataset(
        data.name,
        train.x,
        new,
        data.image_shape,
        train_labels=train.labels,
        test_labels=labels,
        columns=data.columns,
        classes=None if data.label is None else data.label.levels,
    )
    return trained._replace(data=own)


def _test_data(trained: Trained, path: Path) -> tuple[Tensor, Tensor | None]:
    data, file = trained.data, read_file(path)
    found = file.held_out
    labels = None if file.labels is None else file.labels[-len(found) :]
    if data.columns is None:
        x = as_images(found).flatten(1)
        if tuple(found.shape[-2:]) != tuple(data.image_shape):
            raise ValueError(
                f"Expected images of shape {tuple(data.image_shape)} in '{path}', but found {tuple(found.shape[-2:])}."
            )
        own = Dataset(path.name, x, x, data.image_shape)
        new = observed(binarized(own, trained.config.binarize), trained.vae.observation).test
    else:
        frame = as_frame(found)
        if frame is None:
            raise ValueError(f"Expected a table in '{path}', but found images.")
        new, labels = encoded(frame, data.columns), frame.get(trained.config.labels, labels)
    use = use_of_labels(trained.vae)
    if labels is None or use is Labels.UNUSED:
        return new, None
    return new, numbers_among(labels, class_names(data), every_label=use is Labels.GIVEN)


def read_weights(folder: Path) -> tuple[dict[str, Tensor], bool]:
    """Read the weights of a run, or those of its checkpoint if they are lost; also return whether it is finished."""
    path = folder / WEIGHTS
    damaged = None
    if path.exists():
        try:
            return load_tensors(path), True
        except ValueError as error:
            damaged = error
    try:
        content = load_checkpoint(folder / CHECKPOINT)
        weights, done = content["vae"], content["state"]["done"]
    except ValueError as error:
        raise damaged or error from error
    except (TypeError, KeyError) as error:
        raise ValueError(f"Expected the checkpoint of a run, but found none in '{folder}'. Try a copy.") from error
    if damaged is None and done is not None:
        damaged = ValueError(f"Expected the weights of a finished run in '{path}', but found no such file.")
    if damaged is not None:
        warnings.warn(f"{damaged} The weights of the checkpoint are used.", RuntimeWarning, stacklevel=2)
    return weights, done is not None
