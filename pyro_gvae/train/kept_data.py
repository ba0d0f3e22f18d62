"""Keep the data of a run of `fit` as a file of tensors with a checksum, or only their hash if they are large."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..config.json import fits
from ..data.columns import Data, columns, digest_of, num_data
from ..data.dataset import Dataset
from ..data.datasets import DATASETS, load
from ..data.sliced import AnyDataset, SlicedDataset
from ..runs.checkpoint import load_tensors, save_tensors
from ..runs.config import read_config
from ..runs.records import DataRecord
from ..runtime.memory import in_words
from .source import column_of

DATA = "data.safetensors"
#: A run folder keeps a copy of at most this many bytes of data.
MOST_BYTES = 2**28


def keep_data(folder: Path, data: AnyDataset | Data) -> dict[str, Any]:
    """Write data into a run folder, and describe them. Whole numbers below 256 take one byte each.

    Example:
        >>> from tempfile import mkdtemp
        >>> keep_data(Path(mkdtemp()), torch.ones(2, 3))["kind"]
        'tensor'
    """
    if isinstance(data, SlicedDataset):
        table = [column._asdict() for column in data.columns]
        digest = digest_of(data.train)
        return {"kind": "slices", "file": None, "bytes": {}, "digest": digest, "name": data.name, "table": table}
    tensors = _tensors(data)
    record: dict[str, Any] = {"kind": _kind(data), "file": DATA, "bytes": {}}
    record["columns"] = list(data) if isinstance(data, dict) else None
    record["digest"] = digest_of(data.train if isinstance(data, Dataset) else data)
    if isinstance(data, Dataset):
        record |= {"name": data.name, "binarize": data.binarize}
        record |= {"image_shape": list(data.image_shape), "value_range": list(data.value_range)}
        record["classes"] = None if data.classes is None else list(data.classes)
        record["table"] = None if data.columns is None else [column._asdict() for column in data.columns]
        record["vocabulary"] = data.vocabulary and list(data.vocabulary)
    small = {name: _as_bytes(tensor) for name, tensor in tensors.items()}
    if sum(tensor.numel() * tensor.itemsize for tensor in small.values()) > MOST_BYTES:
        return record | {"file": None}
    record["bytes"] = {
        name: str(tensors[name].dtype).removeprefix("torch.")
        for name, tensor in small.items()
        if tensor.dtype != tensors[name].dtype
    }
    save_tensors(folder / DATA, small)
    return record


def read_data(run: Path, data_dir: Path = Path("data")) -> Dataset | Data:
    """Read the data that :func:`keep_data` wrote, in the form in which `fit` was given them.

    Args:
        run: the run folder.
        data_dir: the folder of the data sets that have files; large data are read from there, if they are a named set.

    Raises:
        ValueError: if the description or the file are damaged, or the data are too large to be kept.
        OSError: if files of a data set are missing.
    """
    record = read_config(run).get("data")
    if not fits(DataRecord, record):
        raise ValueError(f"Expected data of a run in the config.json of '{run}', but found none. Try a copy of it.")
    assert isinstance(record, dict)
    if record["file"] is None:
        return _large(run, record, data_dir)
    tensors = load_tensors(run / DATA)
    of_another = f"Expected the data of the run in '{run / DATA}', but found others. Try a copy of it."
    try:
        for name, dtype in record["bytes"].items():
            tensors[name] = tensors[name].to(getattr(torch, dtype))
        found = _from_tensors(tensors, record)
    except (KeyError, TypeError, AttributeError, RuntimeError, IndexError) as error:
        raise ValueError(of_another) from error
    if digest_of(found.train if isinstance(found, Dataset) else found) != record["digest"]:
        raise ValueError(of_another)
    return found


def as_dataset(data: AnyDataset | Data) -> AnyDataset:
    """Convert data to a `Dataset` for commands. Training data alone, with or without labels, give no test data.

    Raises:
        ValueError: if they are not rows (M, D) of numbers.
    """
    if isinstance(data, AnyDataset):
        return data
    data, labels = _without_labels(data)
    if not isinstance(data, Tensor) or data.dim() != 2 or not data.is_floating_point():
        shapes = ", ".join(str(tuple(column.shape)) for column in columns(data))
        raise ValueError(
            f"Expected data of the shape (M, D), but found {num_data(data)} data of {shapes}, which commands do not "
            "take. Try Python: pyro_gvae.load_run(run) has the model and the data."
        )
    least, most = (bound.item() for bound in data.aminmax())
    return Dataset("own data", data, data[:0], (1, data.shape[1]), train_labels=labels, value_range=(least, most))


def _without_labels(data: Data) -> tuple[Data, Tensor | None]:
    """Return data x and labels y of a tuple `(x, y)` or a dictionary of both; other data as they are."""
    named = data if isinstance(data, dict) else dict(zip(("x", "y"), columns(data), strict=False))
    if len(columns(data)) != 2 or named.keys() != {"x", "y"}:
        return data, None
    y = named["y"]
    is_labels = y.dim() == 1 and not (y.is_floating_point() or y.is_complex())
    return (named["x"], y) if is_labels else (data, None)


def _kind(data: Dataset | Data) -> str:
    if isinstance(data, Dataset):
        return "dataset"
    return "tensor" if isinstance(data, Tensor) else "dict" if isinstance(data, dict) else "tuple"


def _tensors(data: Dataset | Data) -> dict[str, Tensor]:
    if isinstance(data, Dataset):
        held = ("train_labels", "test", "test_labels", "validation", "validation_labels")
        others = {name: getattr(data, name) for name in held}
        return {"train": data.train} | {name: own for name, own in others.items() if own is not None}
    named = data if isinstance(data, dict) else dict(enumerate(columns(data)))
    return {f"column {name}": column for name, column in named.items()}


def _from_tensors(tensors: dict[str, Tensor], record: dict[str, Any]) -> Dataset | Data:
    if record["kind"] == "dataset":
        height, width = record["image_shape"]
        least, most = record["value_range"]
        table, words, classes = (record.get(name) for name in ("table", "vocabulary", "classes"))
        parts: dict[str, Any] = dict(tensors)
        return Dataset(
            record["name"],
            image_shape=(height, width),
            binarize=record["binarize"],
            value_range=(least, most),
            columns=None if table is None else tuple(map(column_of, table)),
            vocabulary=None if words is None else tuple(map(str, words)),
            classes=None if classes is None else tuple(map(str, classes)),
            **parts,
        )
    named = {name.removeprefix("column "): column for name, column in tensors.items()}
    if record["kind"] == "dict":
        return {name: named[name] for name in record["columns"]}
    return named["0"] if record["kind"] == "tensor" else tuple(named[str(index)] for index in range(len(named)))


def _as_bytes(tensor: Tensor) -> Tensor:
    """Convert whole numbers from 0 to 255, such as black and white images, to bytes; return others unchanged."""
    small = tensor.detach().cpu()
    least, most = small.aminmax() if small.numel() else (torch.tensor(0), torch.tensor(0))
    if small.is_complex() or small.dtype == torch.bool or not (least >= 0 and most <= 255):
        return small
    as_bytes = small.to(torch.uint8)
    return as_bytes if bool((as_bytes == small).all()) else small


def _large(run: Path, record: dict[str, Any], data_dir: Path) -> Dataset:
    name = record.get("name")
    if name in DATASETS:
        found = load(str(name), data_dir=data_dir, binarize=record["binarize"])
        if digest_of(found.train) == record["digest"]:
            return found
    raise ValueError(
        f"Expected data of at most {in_words(MOST_BYTES)}, which a run folder keeps, but found that those of '{run}' "
        "are larger, and of no data set with a name. Try Python: pyro_gvae.load_run(run).model() takes data of yours."
    )
