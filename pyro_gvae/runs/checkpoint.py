"""Save and load checkpoints: plain data and tensors in one file, written atomically and verified when read.

The file format is safetensors. Its metadata contain everything that is not a tensor as JSON, a format version and a
checksum. Reading a checkpoint never runs code from it. Files of tensors alone, such as weights, have a checksum, too.
"""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from ..runtime.plain import flat, nested
from .files import read_bytes, replacing
from .sealed import BLANK, SEAL, check_memory, metadata_of, read_sealed, write_sealed
from .weights import in_parts

FORMAT = "pyro-gvae checkpoint"
VERSION = 1


def save_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors with a checksum, atomically; :func:`~pyro_gvae.runs.weights.in_parts` splits the sparse ones.

    Example:
        >>> from tempfile import mkdtemp
        >>> path = Path(mkdtemp()) / "weights.safetensors"
        >>> save_tensors(path, {"bias": torch.ones(2)})
        >>> load_tensors(path)
        {'bias': tensor([1., 1.])}
    """
    plain = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in in_parts(tensors).items()}
    check_memory(_num_bytes(plain))
    write_sealed(path, save(plain, {SEAL: BLANK}))


def load_tensors(path: Path) -> dict[str, Tensor]:
    """Read tensors onto the CPU from a file of :func:`save_tensors`, or from any safetensors file without metadata.

    Raises:
        ValueError: if the file is absent or damaged.
    """
    try:
        data = read_sealed(path)
        check_memory(len(data))
        return load(data)
    except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"Expected intact weights, but found that '{path}' is damaged. Try a copy of it.") from error


def save_checkpoint(path: Path, content: Any) -> None:
    """Write plain data with tensors; an existing file is kept until the new one is complete on the disk.

    Args:
        path: the file to write or to replace.
        content: nested dictionaries, lists, numbers, strings, None and tensors; tuples are read back as lists.

    Raises:
        ValueError: if the content has a value of another type.
        OSError: if the file cannot be written; an existing file is then unchanged.

    Example:
        >>> from tempfile import mkdtemp
        >>> path = Path(mkdtemp()) / "checkpoint.safetensors"
        >>> save_checkpoint(path, {"step": 3, "weights": [torch.ones(2)]})
        >>> load_checkpoint(path)
        {'step': 3, 'weights': [tensor([1., 1.])]}
    """
    rest, tensors = flat(content)
    metadata = {"format": FORMAT, "version": str(VERSION), "content": rest, "sha256": _digest(rest, tensors)}
    check_memory(_num_bytes(tensors))
    with replacing(path) as temporary:
        temporary.write_bytes(save(tensors, metadata))


def load_checkpoint(path: Path) -> Any:
    """Read a checkpoint that :func:`save_checkpoint` wrote; tensors are on the CPU.

    Raises:
        ValueError: if the file is absent, damaged, of another format version, or not a checkpoint.
    """
    try:
        data = read_bytes(path)
        metadata = metadata_of(data)
        check_memory(len(data))
        tensors = load(data)
    except FileNotFoundError as error:
        raise ValueError(f"Expected a checkpoint, but found that '{path}' does not exist.") from error
    except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
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
    try:
        return nested(rest, tensors)
    except ValueError as error:
        raise _damaged(path) from error


def _damaged(path: Path) -> ValueError:
    return ValueError(
        f"Expected a whole checkpoint, but found that '{path}' is damaged: its checksum or its length is wrong. Try a "
        "copy of it."
    )


def _num_bytes(tensors: Mapping[str, Tensor]) -> int:
    return sum(tensor.numel() * tensor.itemsize for tensor in tensors.values())


def _digest(rest: str, tensors: Mapping[str, Tensor]) -> str:
    """Compute the SHA-256 of everything in a checkpoint."""
    digest = hashlib.sha256(rest.encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"\n{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
