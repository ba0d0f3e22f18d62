"""Read and write files of tensors with a checksum of all their bytes, without torch."""

import hashlib
from collections.abc import Mapping
from pathlib import Path

from .files import parse_json, read_bytes, replacing

#: The name of the checksum in a file's metadata, and its placeholder while the checksum is computed.
SEAL, BLANK = "sha256", "0" * 64


def write_sealed(path: Path, unsealed: bytes) -> None:
    """Write a safetensors file, atomically, with its checksum.

    Args:
        path: the file to write or to replace.
        unsealed: its bytes, with :data:`BLANK` as the :data:`SEAL` of its metadata.
    """
    with replacing(path) as temporary:
        temporary.write_bytes(unsealed.replace(BLANK.encode(), _digest(unsealed).encode(), 1))


def read_sealed(path: Path) -> bytes:
    """Read a safetensors file, and verify its checksum; a file without any metadata has none.

    Raises:
        ValueError: if the checksum is wrong, or the file is not a safetensors file.
        OSError: if the file is absent or cannot be read.
    """
    data = read_bytes(path)
    try:
        metadata = metadata_of(data)
    except ValueError as error:
        raise ValueError(f"Expected a file of tensors, but found that '{path}' is damaged. Try a copy.") from error
    seal = metadata.get(SEAL, "")
    if metadata and (len(seal) != len(BLANK) or seal != _digest(data.replace(seal.encode(), BLANK.encode(), 1))):
        raise ValueError(
            f"Expected a whole file of tensors, but found that '{path}' is damaged: its checksum is wrong. Try a copy."
        )
    return data


def check_memory(num_bytes: int) -> None:
    """Refuse to write or read tensors of this size if there is not enough memory.

    safetensors makes up to three copies, and ends the process without an exception if an allocation fails.

    Raises:
        MemoryError: if there is no memory for three copies.
    """
    bytearray(3 * num_bytes)  # the memory is never written to, so this costs no time


def metadata_of(data: bytes) -> Mapping[str, str]:
    """Return the metadata in the bytes of a safetensors file.

    Raises:
        ValueError: if the bytes are not those of a safetensors file.
    """
    length = int.from_bytes(data[:8], "little")
    if len(data) < 8 + length:
        raise ValueError("it is too short")
    header = parse_json(data[8 : 8 + length].decode())
    metadata = header.get("__metadata__", {}) if isinstance(header, dict) else None
    if not isinstance(metadata, dict) or not all(isinstance(text, str) for text in metadata.values()):
        raise ValueError("it has no header")
    return metadata


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
