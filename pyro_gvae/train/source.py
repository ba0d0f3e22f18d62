"""What a run folder says of its data: their shape, the columns of a table, the hash of a file."""

from pathlib import Path
from typing import Any

from ..config.data import DataConfig
from ..data.dataset import Dataset
from ..data.files import file_digest
from ..runs.config import read_config


def source_of(config: DataConfig, data: Dataset) -> dict[str, Any]:
    """Return the entries of a config.json that describe the data."""
    found: dict[str, Any] = {"image_shape": data.image_shape}
    if data.columns is not None:
        found["columns_of_data"] = [column._asdict() for column in data.columns]
    if config.data is not None:
        found["data_sha256"] = file_digest(config.data)
    return found


def check_source(run: Path, config: DataConfig) -> None:
    """Refuse a file of data that is not the one that a run was begun with.

    Raises:
        ValueError: if it has changed.
        OSError: if it is absent.
    """
    if config.data is not None and read_config(run).get("data_sha256") != file_digest(config.data):
        raise ValueError(
            f"Expected '{config.data}' as it was when '{run}' was begun, but found that it has changed. Try a copy of "
            "the file as it was, or a new run."
        )
