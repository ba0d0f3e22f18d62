"""`list` and `doctor`: what the package offers, and what this machine has."""

import os
import platform
from collections.abc import Callable
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
from ..runs.config import CONFIG, read_config
from .said import Said
from .terminal import listed

REQUIRED = ("torch", "pyro-ppl", "numpy", "pandas", "matplotlib", "tyro", "safetensors", "scikit-learn", "torchvision")
#: Settings by which the list of presets describes them.
OF_PRESETS = ("dataset", "num_categories", "num_latents", "stages")
#: Extra -> the module that it installs.
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
        "models": [{"name": name, "sizes": facts.sizes} for name, facts in MODELS.items()],
        "presets": [{"name": name} | {key: getattr(one, key) for key in OF_PRESETS} for name, one in PRESETS.items()],
        "runs": _runs(config.runs),
    }
    chosen: dict[str, Any] = {name: rows for name, rows in known.items() if config.what in ("all", name)}
    shown = {name: list(map(IN_WORDS.get(name, dict), rows)) for name, rows in chosen.items()}
    text = "\n\n".join(f"{name}\n{_table(rows)}" for name, rows in shown.items())
    return Said(text, chosen)


def doctor_command(config: DoctorConfig) -> Said:
    """Show versions, devices, threads, memory, data sets, write access and extras."""
    import torch  # imported here, since `list` does not need it

    memory = psutil.virtual_memory()
    cuda = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    found = {
        "versions": {name: _version(name) for name in ("pyro-gvae", *REQUIRED)} | {"python": platform.python_version()},
        "system": platform.platform(),
        "processors": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "memory_bytes": {"available": memory.available, "total": memory.total},
        "devices": [{"name": "cpu"}, *({"name": f"cuda:{index}", "is": name} for index, name in enumerate(cuda))],
        "datasets": _datasets(config.data_dir),
        "runs": {"folder": Path("runs"), "is_writable": _is_writable(Path("runs"))},
        "extras": {extra: find_spec(name) is not None for extra, name in EXTRAS.items()},
    }
    return Said(_doctors_table(found), found)


def _doctors_table(found: dict[str, Any]) -> str:
    """Format the findings of `doctor`, one per line."""
    memory, runs = found["memory_bytes"], found["runs"]
    lines = {
        **{name: number or "absent" for name, number in found["versions"].items()},
        "system": found["system"],
        "processors": found["processors"],
        "threads of torch": found["torch_threads"],
        "memory": f"{memory['available'] / 1e9:.1f} of {memory['total'] / 1e9:.1f} GB available",
        "devices": ", ".join(" ".join(device.values()) for device in found["devices"]),
        **{f"data set {row['name']}": _files_in_words(row)["files"] for row in found["datasets"]},
        "runs": f"can {'' if runs['is_writable'] else 'not '}be written into {runs['folder']}",
        **{f"extra {name}": "installed" if there else "absent" for name, there in found["extras"].items()},
    }
    return listed(lines)


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
        rows.append({"name": name, "folder": folder, "is_there": folder is None or folder.is_dir()})
    return rows


def _runs(folder: Path) -> list[dict[str, Any]]:
    rows = []
    for path in sorted(folder.glob(f"*/{CONFIG}")):
        try:
            written = read_config(path.parent)
        except ValueError:
            continue  # damaged: other commands report it
        rows.append({"name": str(path.parent), "kind": _kind(written), "command": str(written.get("command", ""))[:80]})
    return rows


def _kind(written: dict[str, Any]) -> str:
    kinds = {"cells": "compare", "program": "fit", "train": "train"}
    return next((kind for key, kind in kinds.items() if key in written), "other")


def _version(name: str) -> str | None:
    """Return the version of a package; None if it is not installed."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _is_writable(folder: Path) -> bool:
    """Tell whether a folder can be written to, or made."""
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    return os.access(there, os.W_OK)


def _files_in_words(row: dict[str, Any]) -> dict[str, Any]:
    folder = row["folder"]
    there = f"in {folder}" if row["is_there"] else f"not in {folder}; --download fetches them"
    return {"name": row["name"], "files": "needs none" if folder is None else there}


def _sizes_in_words(row: dict[str, Any]) -> dict[str, Any]:
    return {"name": row["name"], "sizes": ", ".join(f"{size}={number}" for size, number in row["sizes"].items())}


def _preset_in_words(row: dict[str, Any]) -> dict[str, Any]:
    size = f"{row['num_categories']}x{row['num_latents']}"
    return {"name": row["name"], "dataset": row["dataset"], "size": size, "stages": row["stages"]}


#: Kinds of names whose rows are shortened for people.
IN_WORDS: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "datasets": _files_in_words,
    "models": _sizes_in_words,
    "presets": _preset_in_words,
}


def _table(rows: list[dict[str, Any]]) -> str:
    if not rows:
        return "  none"
    widths = [max(len(str(row[name])) for row in rows) for name in rows[0]]
    lines = (
        "  ".join(str(value).ljust(width) for value, width in zip(row.values(), widths, strict=True)) for row in rows
    )
    return "\n".join(f"  {line.rstrip()}" for line in lines)
