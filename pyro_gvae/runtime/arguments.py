"""What a constructor was given, as JSON holds it, so that a run folder can say of which parts a program is made."""

import inspect
from collections.abc import Mapping
from typing import Any, Self


class KnowsArguments:
    """Mix into a module: it knows what its constructor is given.

    Attributes:
        arguments: the arguments by name, if numbers, texts, lists and parts of this package say all of it; else None.
    """

    arguments: dict[str, Any] | None

    def __new__(cls, *args: Any, **options: Any) -> Self:
        """Make an object that knows its arguments before its constructor begins."""
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
    """Return a value as JSON holds it: a part of this package as its class and its arguments.

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
    raise TypeError(f"Expected an argument that JSON holds, but found a {type(value).__name__}.")


def rebuilt(value: Any, kinds: Mapping[str, type]) -> Any:
    """Return the arguments that :class:`KnowsArguments` knows as a constructor takes them; lists become tuples.

    Args:
        value: what JSON holds.
        kinds: the classes that it may name.

    Raises:
        TypeError: if it names another one, or another one's arguments.
    """
    if isinstance(value, list):
        return tuple(rebuilt(item, kinds) for item in value)
    if not isinstance(value, dict):
        return value
    name, arguments = value.get("name"), value.get("arguments")
    if not isinstance(name, str) or name not in kinds or not isinstance(arguments, dict) or len(value) != 2:
        raise TypeError(f"Expected a part among {', '.join(kinds)}, but found '{name}'.")
    return kinds[name](**{key: rebuilt(own, kinds) for key, own in arguments.items()})
