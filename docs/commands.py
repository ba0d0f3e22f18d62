"""The page of the command line: for each command a section from its configuration, with the examples of its help."""

from dataclasses import MISSING, Field, fields
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from docstring_parser import parse
from sphinx.application import Sphinx
from sphinx.util.typing import ExtensionMetadata

from pyro_gvae.cli.arguments import COMMANDS
from pyro_gvae.cli.examples import EXAMPLES
from pyro_gvae.cli.words import SHORT, option_of, places_of

PAGE = "reference/command_line"
WORDS = {int: "INT", float: "FLOAT", str: "TEXT", Path: "PATH"}


def section(name: str) -> str:
    """Return what a command does, how it is called, and its options, as Markdown."""
    config = COMMANDS[name].config
    said = parse(config.__doc__ or "")
    kinds = get_type_hints(config)
    places = places_of(config)
    usage = " ".join(["pyro-gvae", name, *map(str.upper, places), "[options]"])
    lines = [f"## pyro-gvae {name}", said.short_description or "", said.long_description or "", f"    {usage}"]
    lines.append("```sh\n" + "\n".join(EXAMPLES[name]) + "\n```")
    lines.append(f"```{{program}} pyro-gvae {name}\n```")
    texts = [one.__doc__ or "" for one in reversed(config.__mro__) if one is not object]  # bases describe their own
    descriptions = {param.arg_name: param.description or "" for text in texts for param in parse(text).params}
    for field in fields(config):
        names = field.name.upper() if field.name in places else spelled(field, kinds[field.name])
        lines.append(option(field, names, descriptions.get(field.name, "")))
    return "\n\n".join(line for line in lines if line)


def option(field: Field[Any], names: str, description: str) -> str:
    """Return one option with its default."""
    text = " ".join(description.split())
    if field.default not in (MISSING, None, False):
        default = " ".join(map(str, field.default)) if isinstance(field.default, tuple) else str(field.default)
        text += f" Default: `{default}`." if default else ""
    return f"```{{option}} {names}\n{text}\n```"


def spelled(field: Field[Any], kind: Any) -> str:
    """Return an option in all of its spellings, with what it takes."""
    long = option_of(field.name)
    if kind is bool:
        return f"{long}, --no-{long[2:]}"
    return ", ".join(f"{one} {value(kind)}" for one in [long, *(one for one in SHORT if SHORT[one] == long)])


def value(kind: Any) -> str:
    """Return what an option takes, in a word."""
    if get_origin(kind) in (Union, UnionType):
        return "|".join(dict.fromkeys(value(one) for one in get_args(kind) if one is not NoneType))
    if get_origin(kind) is Literal:
        return "|".join(map(str, get_args(kind)))
    if get_origin(kind) is tuple:
        return f"{value(get_args(kind)[0])} ..."
    return WORDS.get(kind, "VALUE")


def add_sections(app: Sphinx, name: str, source: list[str]) -> None:
    """Append a section for each command to the page's text."""
    if name == PAGE:
        source[0] += "\n\n" + "\n\n".join(map(section, COMMANDS)) + "\n"


def setup(app: Sphinx) -> ExtensionMetadata:
    app.connect("source-read", add_sections)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
