"""Checkpoints: plain data with tensors in one file, written atomically and verified when read.

The file format is safetensors. Its metadata hold everything that is not a tensor as JSON, a format version and a
checksum. Reading a checkpoint runs no code from it.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from .files import replacing

FORMAT = "pyro-gvae checkpoint"
VERSION = 1
_TENSOR, _PAIRS = "tensor", "pairs"  # JSON keys that mark a tensor, and a dictionary whose keys are not all texts


def save_checkpoint(path: Path, content: Any) -> None:
    """Write plain data with tensors; an old file stays until the new one is complete on the disk.

    Args:
        path: the file to write or to replace.
        content: nested dictionaries, lists, numbers, texts, None and tensors; tuples are read back as lists.

    Raises:
        ValueError: if the content has a value of another type.
        OSError: if the file cannot be written; an old file is then unchanged.

    Example:
        >>> from tempfile import mkdtemp
        >>> path = Path(mkdtemp()) / "checkpoint.safetensors"
        >>> save_checkpoint(path, {"step": 3, "weights": [torch.ones(2)]})
        >>> load_checkpoint(path)
        {'step': 3, 'weights': [tensor([1., 1.])]}
    """
    tensors: dict[str, Tensor] = {}
    rest = json.dumps(_flat(content, "", tensors))
    metadata = {"format": FORMAT, "version": str(VERSION), "content": rest, "sha256": _digest(rest, tensors)}
    with replacing(path) as temporary:
        temporary.write_bytes(save(tensors, metadata))


def load_checkpoint(path: Path) -> Any:
    """Read a checkpoint that :func:`save_checkpoint` wrote; tensors are on the CPU.

    Raises:
        ValueError: if the file is absent, damaged, of another format version, or no checkpoint.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata: Mapping[str, str] = file.metadata() or {}
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 (no mapping)
    except FileNotFoundError as error:
        raise ValueError(f"Expected a checkpoint, but found that '{path}' does not exist.") from error
    except (SafetensorError, OSError, ValueError) as error:
        raise _damaged(path) from error
    if metadata.get("format") != FORMAT:
        raise ValueError(f"Expected a checkpoint of pyro-gvae, but found that '{path}' is another file of tensors.")
    if metadata.get("version") != str(VERSION):
        raise ValueError(
            f"Expected a checkpoint of format version {VERSION}, but found version {metadata.get('version')} in "
            f"'{path}'. Try the release of pyro-gvae that wrote it."
        )
    rest = metadata.get("content", "")
    if metadata.get("sha256") != _digest(rest, tensors):
        raise _damaged(path)
    return _nested(json.loads(rest), tensors)


def _damaged(path: Path) -> ValueError:
    return ValueError(
        f"Expected a whole checkpoint, but found that '{path}' is damaged: its checksum or its length is wrong. Try a "
        "copy of it."
    )


def _digest(rest: str, tensors: Mapping[str, Tensor]) -> str:
    """Compute the SHA-256 of all content of a checkpoint."""
    digest = hashlib.sha256(rest.encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"\n{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _flat(value: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    """Convert a value to JSON, and collect its tensors under the names of their places."""
    if isinstance(value, Tensor):
        tensors[name] = value.detach().cpu().clone(memory_format=torch.contiguous_format)
        return {_TENSOR: name}
    if isinstance(value, dict):
        items = [(key, _flat(item, f"{name}/{key}" if name else str(key), tensors)) for key, item in value.items()]
        # JSON keys are texts, and {"tensor": ..} marks a tensor.
        plain = all(isinstance(key, str) for key in value) and value.keys().isdisjoint({_TENSOR, _PAIRS})
        return dict(items) if plain else {_PAIRS: [list(pair) for pair in items]}
    if isinstance(value, list | tuple):
        return [_flat(item, f"{name}/{index}", tensors) for index, item in enumerate(value)]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise ValueError(
        f"Expected a checkpoint of tensors, numbers and texts, but found {type(value).__name__} at '{name}', which "
        "could only be read back by running code."
    )


def _nested(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    if isinstance(value, list):
        return [_nested(item, tensors) for item in value]
    if not isinstance(value, dict):
        return value
    if _TENSOR in value:
        return tensors[value[_TENSOR]]
    if _PAIRS in value:
        return {key: _nested(item, tensors) for key, item in value[_PAIRS]}
    return {key: _nested(item, tensors) for key, item in value.items()}
