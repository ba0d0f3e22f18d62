"""`list` and `doctor`: what there is, in the package and on this machine."""

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, get_args

import psutil

from ..config.checks import FOLDERS
from ..config.commands import DoctorConfig, ListConfig
from ..config.models import MODELS
from ..config.names import DatasetName, EstimatorName
from ..config.presets import PRESETS
from ..config.train import TrainConfig
from ..runs.config import CONFIG, read_config
from .said import Said

REQUIRED = ("torch", "pyro-ppl", "numpy", "pandas", "matplotlib", "tyro", "safetensors", "scikit-learn", "torchvision")
#: Extra -> the module that it brings.
EXTRAS = {
    "tensorboard": "tensorboard",
    "wandb": "wandb",
    "mlflow": "mlflow",
    "parquet": "pyarrow",
    "dask": "distributed",
}


def list_command(config: ListConfig) -> Said:
    """List names of estimators, data sets, models, presets or runs."""
    known = {
        "estimators": _estimators(with_claims=config.what == "estimators"),
        "datasets": _datasets(config.data_dir),
        "models": [{"name": name, "sizes": _in_words(facts.sizes) or "as asked"} for name, facts in MODELS.items()],
        "presets": [
            {
                "name": name,
                "dataset": one.dataset,
                "size": f"{one.num_categories}x{one.num_latents}",
                "stages": one.stages,
            }
            for name, one in PRESETS.items()
        ],
        "runs": _runs(config.runs),
    }
    chosen: dict[str, Any] = {name: rows for name, rows in known.items() if config.what in ("all", name)}
    text = "\n\n".join(f"{name}\n{_table(rows)}" for name, rows in chosen.items())
    return Said(text, chosen)


def doctor_command(config: DoctorConfig) -> Said:
    """Show versions, devices, threads, memory, data sets, write access and extras."""
    import torch  # imported here, since `list` does without

    memory = psutil.virtual_memory()
    cuda = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    found = {
        "python": platform.python_version(),
        **{name: _version(name) for name in ("pyro-gvae", *REQUIRED)},
        "system": platform.platform(),
        "processors": os.cpu_count(),
        "threads of torch": torch.get_num_threads(),
        "memory": f"{memory.available / 1e9:.1f} of {memory.total / 1e9:.1f} GB available",
        "devices": ", ".join(["cpu", *(f"cuda:{index} ({name})" for index, name in enumerate(cuda))]),
        **{f"data set {row['name']}": row["files"] for row in _datasets(config.data_dir)},
        "runs can be written": _writable(Path("runs")),
        **{f"extra {extra}": "installed" if find_spec(name) else "absent" for extra, name in EXTRAS.items()},
    }
    width = max(map(len, found))
    return Said("\n".join(f"{name.ljust(width)}  {value}" for name, value in found.items()), found)


def _estimators(*, with_claims: bool) -> list[dict[str, Any]]:
    names = [{"name": name} for name in get_args(EstimatorName)]
    if not with_claims:
        return names
    from ..estimators import estimator  # imports torch, which takes seconds

    made = [estimator(name) for name in get_args(EstimatorName)]
    return [
        {"name": one.name, "estimates": one.approximates, "bias": one.bias.value, "reference": one.reference}
        for one in made
    ]


def _datasets(data_dir: Path) -> list[dict[str, Any]]:
    rows = []
    for name in get_args(DatasetName):
        folder = data_dir / FOLDERS[name] if name in FOLDERS else None
        there = folder is not None and folder.is_dir()
        state = (
            "needs none" if folder is None else f"in {folder}" if there else f"not in {folder}; --download fetches them"
        )
        rows.append({"name": name, "files": state})
    return rows


def _runs(folder: Path) -> list[dict[str, Any]]:
    rows = []
    for path in sorted(folder.glob(f"*/{CONFIG}")):
        try:
            written = read_config(path.parent)
        except ValueError:
            continue  # a damaged one, which its commands say
        kind = (
            "compare"
            if "cells" in written
            else "fit"
            if "program" in written
            else "train"
            if "train" in written
            else "other"
        )
        rows.append({"name": str(path.parent), "kind": kind, "command": str(written.get("command", ""))[:80]})
    return rows


def _kind(written: dict[str, Any]) -> str:
    kinds = {"cells": "compare", "program": "fit", "train": "train"}
    return next((kind for key, kind in kinds.items() if key in written), "other")


def _size(config: TrainConfig) -> str:
    return f"{config.num_categories}x{config.num_latents}"


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "absent"


def _writable(folder: Path) -> str:
    """Say whether a folder can be written to, or made."""
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    return "yes" if os.access(there, os.W_OK) else f"no: {there} is read-only"


def _in_words(sizes: dict[str, int]) -> str:
    return ", ".join(f"{name}={value}" for name, value in sizes.items())


def _table(rows: list[dict[str, Any]]) -> str:
    if not rows:
        return "  none"
    widths = [max(len(str(row[name])) for row in rows) for name in rows[0]]
    lines = (
        "  ".join(str(value).ljust(width) for value, width in zip(row.values(), widths, strict=True)) for row in rows
    )
    return "\n".join(f"  {line.rstrip()}" for line in lines)
