"""Parse the words of a command line into typed settings, with a suggestion for a misspelled word; no torch."""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import MISSING, fields
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, NamedTuple, Union, get_args, get_origin, get_type_hints

from ..config.checks import nearest
from ..config.names import IsPositional

#: Short names of options.
SHORT = {"-o": "--output", "--lr": "--learning-rate"}
#: Options that take a name -> the option that takes a file instead.
FILE_INSTEAD = {"--dataset": "--data"}
#: Options of all commands, which change their output -> what they do.
GENERAL = {
    "--json": "Print results as JSON.",
    "--quiet": "Do not show progress or which data were read; still show results, warnings and errors.",
}
#: The option that shows what a command would do, for commands that have it.
DRY_RUN = "--dry-run"


class Told(NamedTuple):
    """The parsed words of a command.

    Args:
        settings: settings of its configuration, by name.
        others: values of options that are not settings, by option.
    """

    settings: dict[str, Any]
    others: dict[str, str]


def read_words(
    command: str, config: type[Any], words: Sequence[str], others: Collection[str] = (), *, all_places: bool = True
) -> Told:
    """Read the words that follow the name of a command.

    If an option is given twice, the last one counts.

    Args:
        command: its name.
        config: the dataclass of its settings.
        words: what was typed.
        others: options with one word each that are not settings.
        all_places: refuse words without all required positional settings.

    Raises:
        ValueError: if there is no such option or value, or one is missing.

    Example:
        >>> from ..config.compare import CompareConfig
        >>> read_words("compare", CompareConfig, ["--seeds", "1", "2", "--lr=0.1", "--no-download"]).settings
        {'seeds': (1, 2), 'learning_rate': 0.1, 'download': False}
        >>> read_words("compare", CompareConfig, ["--seeds", "one"])
        Traceback (most recent call last):
            ...
        ValueError: Expected a whole number as --seeds, but found 'one'.
    """
    kinds = get_type_hints(config)
    places = places_of(config)
    names = {option_of(name): name for name in kinds if name not in places}
    of_options = {option: kinds[name] for option, name in names.items()} | dict.fromkeys(others, str)
    given, left = _grouped(command, words, of_options)
    if len(left) > len(places):
        raise ValueError(
            f"Expected {'no more words' if places else 'options'} after pyro-gvae {command}, but found "
            f"'{left[len(places)]}'. Try pyro-gvae {command} --help."
        )
    needed = {field.name for field in fields(config) if field.default is MISSING}
    missing = [place.upper() for place in places[len(left) :] if place in needed and all_places]
    missing += [option for option, found in given.items() if not found and not _is_many(of_options[option])]
    if missing:
        raise ValueError(f"Expected a value of {missing[0]}, but found none. Try pyro-gvae {command} --help.")
    read = {name: _one(name.upper(), kinds[name], word) for name, word in zip(places, left, strict=False)}
    read |= {
        names[option]: _value(option, of_options[option], found) for option, found in given.items() if option in names
    }
    return Told(read, {option: given[option][0] for option in given if option not in names})


def option_of(name: str) -> str:
    """Return the option of a setting.

    Example:
        >>> option_of("num_latents")
        '--num-latents'
    """
    return f"--{name.replace('_', '-')}"


def places_of(config: type[Any]) -> list[str]:
    """Return the positional settings of a configuration, which have no option."""
    marks = {
        name: getattr(kind, "__metadata__", ()) for name, kind in get_type_hints(config, include_extras=True).items()
    }
    return [name for name, own in marks.items() if IsPositional in own]


def _grouped(command: str, words: Sequence[str], kinds: Mapping[str, Any]) -> tuple[dict[str, list[str]], list[str]]:
    """Return the words of each option (of a switch, its value), and the words that belong to no option."""
    given: dict[str, list[str]] = {}
    left: list[str] = []
    taking, most = left, math.inf  # the list for the next words, and how many it takes
    switches = {f"--no-{option[2:]}": option for option, kind in kinds.items() if is_switch(kind)}
    for word in words:
        name, equals, value = word.partition("=")
        if not (name in SHORT or (name.startswith("--") and len(name) > 2)):
            taking, most = (left, math.inf) if len(taking) >= most else (taking, most)
            taking.append(word)
            continue
        option = SHORT[name] if SHORT.get(name) in kinds else name.replace("_", "-")
        if option not in kinds and option not in switches:
            tried = nearest(option, [*kinds, *switches, *GENERAL, "--help"]) or f" Try pyro-gvae {command} --help."
            raise ValueError(f"Expected an option of {command}, but found '{name}'.{tried}")
        if option in switches or is_switch(kinds[option]):
            if equals:
                raise ValueError(f"Expected {option} without a value, but found '{value}'.")
            given[switches.get(option, option)] = [str(option not in switches)]
            taking, most = left, math.inf
        else:
            taking = given[option] = [value] if equals else []
            most = math.inf if _is_many(kinds[option]) and not equals else 1
    return given, left


def _value(option: str, kind: Any, words: list[str]) -> Any:
    """Return the value of an option from its words."""
    if not _is_many(kind):
        return _one(option, kind, words[0])
    (many,) = (part for part in types_of(kind) if get_origin(part) is tuple)
    if words == ["None"] and NoneType in types_of(kind):
        return None
    return tuple(_one(option, get_args(many)[0], word) for word in words)


def _one(option: str, kind: Any, word: str) -> Any:
    """Return the value of a word, as the first type that accepts it."""
    parts = types_of(kind)
    if NoneType in parts and word == "None":
        return None
    for part in parts:
        if get_origin(part) is Literal:
            return _chosen(option, word, get_args(part))
        if part is bool:
            return word == "True"
        try:
            return part(word)
        except (ValueError, TypeError):  # raised by number types and by None's
            continue
    what = "a whole number" if int in parts else "a number"
    raise ValueError(f"Expected {what} as {option}, but found '{word}'.")


def _chosen(option: str, word: str, choices: tuple[str, ...]) -> str:
    """Return the choice that a word names, ignoring case."""
    by_letters = {choice.lower(): choice for choice in choices}
    if word.lower() in by_letters:
        return by_letters[word.lower()]
    tried = nearest(word, choices)
    if option in FILE_INSTEAD and Path(word).suffix:
        tried = f" Try {FILE_INSTEAD[option]} {word}."
    raise ValueError(f"Expected {option} among {', '.join(choices)}, but found '{word}'.{tried}")


def is_switch(kind: Any) -> bool:
    """Tell whether an option is a switch, which takes no word. A switch may be None by default."""
    return bool in types_of(kind)


def _is_many(kind: Any) -> bool:
    """Tell whether an option takes any number of words."""
    return any(get_origin(part) is tuple for part in types_of(kind))


def types_of(kind: Any) -> tuple[Any, ...]:
    """Return the types of a union, or the one type."""
    return get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)
