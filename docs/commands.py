"""The page of the command line: for each command a section from its configuration, with the examples of its help."""

from dataclasses import MISSING, Field, fields
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import tyro
from docstring_parser import parse
from sphinx.application import Sphinx
from sphinx.util.typing import ExtensionMetadata

from pyro_gvae.cli.arguments import COMMANDS, SHORT
from pyro_gvae.cli.examples import EXAMPLES

PAGE = "reference/command_line"
WORDS = {int: "INT", float: "FLOAT", str: "TEXT", Path: "PATH"}


def section(name: str) -> str:
    """Return what a command does, how it is called, and its options, as Markdown."""
    config = COMMANDS[name].config
    said = parse(config.__doc__ or "")
    kinds = get_type_hints(config, include_extras=True)
    places = [field for field in fields(config) if is_place(kinds[field.name])]
    usage = " ".join(["pyro-gvae", name, *(field.name.upper() for field in places), "[options]"])
    lines = [f"## pyro-gvae {name}", said.short_description or "", said.long_description or "", f"    {usage}"]
    lines.append("```sh\n" + "\n".join(EXAMPLES[name]) + "\n```")
    lines.append(f"```{{program}} pyro-gvae {name}\n```")
    texts = [one.__doc__ or "" for one in reversed(config.__mro__) if one is not object]  # bases describe their own
    descriptions = {param.arg_name: param.description or "" for text in texts for param in parse(text).params}
    lines += [option(field, kinds[field.name], descriptions.get(field.name, "")) for field in fields(config)]
    return "\n\n".join(line for line in lines if line)


def option(field: Field[Any], kind: Any, description: str) -> str:
    """Return one option with its default."""
    text = " ".join(description.split())
    if field.default not in (MISSING, None, False):
        default = " ".join(map(str, field.default)) if isinstance(field.default, tuple) else str(field.default)
        text += f" Default: `{default}`." if default else ""
    if is_place(kind):
        names = field.name.upper()
    elif kind is bool:
        names = f"--{hyphens(field.name)}, --no-{hyphens(field.name)}"
    else:
        long = f"--{hyphens(field.name)}"
        names = ", ".join(f"{one} {value(kind)}" for one in [long, *(one for one in SHORT if SHORT[one] == long)])
    return f"```{{option}} {names}\n{text}\n```"


def hyphens(name: str) -> str:
    return name.replace("_", "-")


def is_place(kind: Any) -> bool:
    """Whether an argument is known by its place, and has no name."""
    return any(mark is tyro.conf.Positional[int].__metadata__[0] for mark in getattr(kind, "__metadata__", ()))


def value(kind: Any) -> str:
    """Return what an option takes, in a word."""
    if hasattr(kind, "__metadata__"):
        return value(get_args(kind)[0])
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
