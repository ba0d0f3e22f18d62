"""Describe data in a run folder (shape, columns, file hash, how they were read), and read them again."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from ..config.compare import CompareConfig
from ..config.data import DataConfig
from ..config.json import fits
from ..config.train import TrainConfig
from ..config.units import in_bytes
from ..data.files import file_digest
from ..data.parquet import ParquetTable
from ..data.shares import Shares
from ..data.sliced import AnyDataset, SlicedDataset, split_rows
from ..models.table import Column
from ..runs.config import read_config
from ..runs.records import ColumnRecord
from ..runtime.distributed import own_device
from .setup import load_data, widths


def source_of(config: TrainConfig | CompareConfig, data: AnyDataset) -> dict[str, Any]:
    """Return the entries of a config.json that describe the data, and the widths that are guessed from them."""
    guessed = widths(replace(config, hidden=None), data)
    found: dict[str, Any] = {"image_shape": data.image_shape, "default_hidden": list(guessed)}
    if data.columns is not None:
        found["columns_of_data"] = [column._asdict() for column in data.columns]
    if config.data is not None:
        found["data_sha256"] = file_digest(config.data)
        found["data_in_slices"] = isinstance(data, SlicedDataset)
    if isinstance(data, SlicedDataset) and data.label is not None:
        found |= {"label_of_data": data.label._asdict(), "labelled_rows": list(data.labelled or ())}
    return found


def check_source(run: Path, config: DataConfig) -> None:
    """Refuse a file of data that is not the one that a run was begun with.

    Raises:
        ValueError: if it has changed.
        OSError: if it is missing.
    """
    if config.data is not None and read_config(run).get("data_sha256") != file_digest(config.data):
        raise ValueError(
            f"Expected '{config.data}' as it was when '{run}' was begun, but found that it has changed. Try a copy of "
            "the file as it was, or a new run."
        )


def read_again(run: Path, config: TrainConfig) -> AnyDataset:
    """Read the data of a run folder of a command, as they were read when it was begun.

    Raises:
        ValueError: if data or device are unusable, or the folder does not describe their columns.
        OSError: if data files are missing.
    """
    written = read_config(run)
    if config.data is None or written.get("data_in_slices") is not True:
        return load_data(config)
    columns, label, counts = (written.get(name) for name in ("columns_of_data", "label_of_data", "labelled_rows"))
    return split_rows(
        ParquetTable(config.data),
        tuple(map(column_of, columns)) if isinstance(columns, list) else (),
        None if label is None else column_of(label),
        Shares(config.test_share, config.validation_share, config.split_seed, config.labelled_share),
        memory=in_bytes(config.data_memory),
        device=own_device(config.device),
        labelled=tuple(counts) if isinstance(counts, list) and all(type(count) is int for count in counts) else None,
    )


def column_of(written: Any) -> Column:
    """Read the description of a column in a run folder.

    Raises:
        ValueError: if it is invalid.
    """
    if not fits(ColumnRecord, written) or not all(isinstance(level, str) for level in written["levels"]):
        raise ValueError(f"Expected a column of a table in a config.json, but found {written!r:.60}. Try a copy of it.")
    return Column(**{name: written[name] for name in Column._fields} | {"levels": tuple(written["levels"])})
