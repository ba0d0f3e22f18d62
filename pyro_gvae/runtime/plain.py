"""Convert plain data with tensors to bytes, and back: JSON, and the tensors beside it. Reading runs no code."""

import json
from collections.abc import Mapping
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

_TENSOR, _PAIRS = "tensor", "pairs"  # what stands in the JSON for a tensor, and for a dictionary with other keys
_CONTENT = "content"


def pack(value: Any) -> bytes:
    """Convert plain data to bytes: dictionaries, lists, numbers, strings, None and tensors; tuples come back as lists.

    Raises:
        ValueError: if there is anything else in the data.

    Example:
        >>> unpack(pack({"step": 3, "weights": [torch.ones(2)]}))
        {'step': 3, 'weights': [tensor([1., 1.])]}
    """
    rest, tensors = flat(value)
    # The JSON is stored as a tensor and not as metadata, which can be read only from a file.
    text = torch.frombuffer(bytearray(rest.encode()), dtype=torch.uint8)
    return save({f"{_TENSOR}/{name}": tensor for name, tensor in tensors.items()} | {_CONTENT: text})


def unpack(data: bytes) -> Any:
    """Return the data that :func:`pack` was given, with tensors on the CPU.

    Raises:
        ValueError: if the bytes are anything else.
    """
    try:
        tensors = load(data)
        rest = tensors.pop(_CONTENT).numpy().tobytes().decode()
        return nested(rest, {name.removeprefix(f"{_TENSOR}/"): tensor for name, tensor in tensors.items()})
    except (SafetensorError, KeyError, TypeError) as error:
        raise ValueError("Expected plain data with tensors, but found other bytes.") from error


def flat(value: Any) -> tuple[str, dict[str, Tensor]]:
    """Convert plain data to JSON, and return its tensors separately, under names that say where they belong.

    Raises:
        ValueError: if there is anything else in the data.
    """
    tensors: dict[str, Tensor] = {}
    return json.dumps(_flat(value, "", tensors)), tensors


def nested(rest: str, tensors: Mapping[str, Tensor]) -> Any:
    """Return the data that :func:`flat` was given.

    Raises:
        ValueError: if the text is anything else.
    """
    try:
        return _nested(json.loads(rest), tensors)
    except (KeyError, TypeError, RecursionError) as error:
        raise ValueError("Expected plain data with tensors, but found another text.") from error


def _flat(value: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, Tensor):
        tensors[name] = value.detach().cpu().clone(memory_format=torch.contiguous_format)
        return {_TENSOR: name}
    if isinstance(value, dict):
        items = [(key, _flat(item, f"{name}/{key}" if name else str(key), tensors)) for key, item in value.items()]
        # JSON has only texts as keys, and {"tensor": ..} means something else.
        plain = all(isinstance(key, str) for key in value) and value.keys().isdisjoint({_TENSOR, _PAIRS})
        return dict(items) if plain else {_PAIRS: [list(pair) for pair in items]}
    if isinstance(value, list | tuple):
        return [_flat(item, f"{name}/{index}", tensors) for index, item in enumerate(value)]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise ValueError(
        f"Expected plain data: tensors, numbers and strings, but found {type(value).__name__} at '{name}', which could "
        "only be read back by running code."
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
