"""Write settings as JSON, and read them back with their types checked."""

import dataclasses
import typing
from pathlib import Path
from typing import Any, Literal


def plain_settings(config: Any) -> dict[str, Any]:
    """Convert the settings of a configuration to values that JSON can write."""
    return {
        name: str(value) if isinstance(value, Path) else list(value) if isinstance(value, tuple) else value
        for name, value in dataclasses.asdict(config).items()
    }


def read_settings(kind: type[Any], written: dict[str, Any]) -> dict[str, Any]:
    """Read settings from JSON as the types that a configuration class declares; entries unknown to it are ignored.

    Raises:
        ValueError: if a setting has the wrong type.
    """
    types = typing.get_type_hints(kind)
    return {name: _read(name, value, types[name]) for name, value in written.items() if name in types}


def fits(kind: type[Any], record: Any) -> bool:
    """Tell whether JSON has all entries of a record, with their types; an entry that may be None may be absent.

    Args:
        kind: the class of the record, with annotations.
        record: the value read from JSON.
    """
    if not isinstance(record, dict):
        return False
    try:
        for name, needed in typing.get_type_hints(kind).items():
            _read(name, record.get(name), needed)
    except ValueError:
        return False
    return True


def _read(name: str, value: Any, kind: Any) -> Any:
    """Convert a value from JSON to the type of its setting."""
    options = typing.get_args(kind) if typing.get_origin(kind) is not Literal else (kind,)
    sequences = [option for option in options if typing.get_origin(option) is tuple]
    if sequences and isinstance(value, list | tuple):
        return _read(name, value, sequences[0])
    if typing.get_origin(kind) is tuple:
        if isinstance(value, list | tuple) and all(_is_a(item, options[0]) for item in value):
            return tuple(value)
    elif typing.get_origin(kind) is list:
        if isinstance(value, list) and all(
            isinstance(item, typing.get_origin(options[0]) or options[0]) for item in value
        ):
            return value
    elif kind is Path or (Path in options and value is not None):
        if isinstance(value, str | Path):
            return Path(value)
    elif any(_is_a(value, option) for option in options or (kind,)):
        return value
    raise ValueError(f"Expected '{name}' to be {_in_words(kind)}, but found {value!r}.")


def _is_a(value: Any, kind: Any) -> bool:
    if typing.get_origin(kind) is Literal:
        return value in typing.get_args(kind)
    if isinstance(value, bool):  # a bool is an int to Python
        return kind is bool
    return isinstance(value, int | float) if kind is float else isinstance(value, typing.get_origin(kind) or kind)


def _in_words(kind: Any) -> str:
    if typing.get_origin(kind) is Literal:
        return "one of " + ", ".join(typing.get_args(kind))
    return kind.__name__ if isinstance(kind, type) and not typing.get_args(kind) else str(kind).replace("pathlib.", "")
