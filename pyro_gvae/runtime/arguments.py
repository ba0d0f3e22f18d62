"""Record the arguments of a constructor as JSON, so that a run folder can describe the parts of a program."""

import inspect
from collections.abc import Mapping
from typing import Any, Self


class KnowsArguments:
    """Mixin for modules that records the arguments of their constructor.

    Attributes:
        arguments: the arguments by name, if all are numbers, strings, lists or parts of this package; else None.
    """

    arguments: dict[str, Any] | None

    def __new__(cls, *args: Any, **options: Any) -> Self:
        """Create an object, and record its arguments before its constructor runs."""
        made = super().__new__(cls)
        object.__setattr__(made, "arguments", _by_name(cls, args, options))
        return made


def _by_name(kind: type, args: tuple[Any, ...], options: dict[str, Any]) -> dict[str, Any] | None:
    try:
        given = inspect.signature(kind).bind(*args, **options).arguments
        given |= given.pop("options", {})
        return {name: _plain(value) for name, value in given.items()}
    except TypeError:  # copies are made without arguments, and given those of their originals
        return None


def _plain(value: Any) -> Any:
    """Return a value in a form that JSON can hold: a part of this package as its class and its arguments.

    Raises:
        TypeError: if it is anything else, such as a network.
    """
    if value is None or isinstance(value, bool | int | float | str):
        return value
    is_ours = type(value).__module__.partition(".")[0] == __name__.partition(".")[0]
    if is_ours and isinstance(value, tuple) and hasattr(value, "_asdict"):
        return {"name": type(value).__name__, "arguments": {key: _plain(own) for key, own in value._asdict().items()}}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    arguments = getattr(value, "arguments", None)
    if is_ours and isinstance(value, KnowsArguments) and arguments is not None:
        return {"name": type(value).__name__, "arguments": arguments}
    raise TypeError(f"Expected an argument that JSON can hold, but found a {type(value).__name__}.")


def rebuilt(value: Any, kinds: Mapping[str, type]) -> Any:
    """Convert arguments that :class:`KnowsArguments` recorded to those that a constructor takes; lists become tuples.

    Args:
        value: the recorded arguments.
        kinds: the classes that they may name.

    Raises:
        TypeError: if they name another class, or arguments that a class does not have.
    """
    if isinstance(value, list):
        return tuple(rebuilt(item, kinds) for item in value)
    if not isinstance(value, dict):
        return value
    name, arguments = value.get("name"), value.get("arguments")
    if not isinstance(name, str) or name not in kinds or not isinstance(arguments, dict) or len(value) != 2:
        raise TypeError(f"Expected a part among {', '.join(kinds)}, but found '{name}'.")
    return kinds[name](**{key: rebuilt(own, kinds) for key, own in arguments.items()})
