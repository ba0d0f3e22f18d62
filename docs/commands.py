"""The page of the command line: for each command a section from its configuration, with examples of other pages."""

import re
from dataclasses import MISSING, Field, fields
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import tyro
from docstring_parser import parse
from sphinx.application import Sphinx
from sphinx.util.typing import ExtensionMetadata

from pyro_gvae.cli.main import COMMANDS

PAGE = "reference/command_line"
ROOT = Path(__file__).parents[1]
WORDS = {int: "INT", float: "FLOAT", str: "TEXT", Path: "PATH"}
#: Of the commands that other pages show, a section repeats as many.
MOST_EXAMPLES = 2


def section(name: str) -> str:
    """Return what a command does, how it is called, and its options, as Markdown."""
    config = COMMANDS[name].config
    said = parse(config.__doc__ or "")
    kinds = get_type_hints(config, include_extras=True)
    places = [field for field in fields(config) if is_place(kinds[field.name])]
    usage = " ".join(["pyro-gvae", name, *(field.name.upper() for field in places), "[options]"])
    lines = [f"## pyro-gvae {name}", said.short_description or "", said.long_description or "", f"    {usage}"]
    if shown := examples(name):
        lines.append("```sh\n" + "\n".join(shown) + "\n```")
    lines.append(f"```{{program}} pyro-gvae {name}\n```")
    descriptions = {param.arg_name: param.description or "" for param in said.params}
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
        names = ", ".join(f"{one} {value(kind)}" for one in [f"--{hyphens(field.name)}", *aliases(kind)])
    return f"```{{option}} {names}\n{text}\n```"


def hyphens(name: str) -> str:
    return name.replace("_", "-")


def is_place(kind: Any) -> bool:
    """Whether an argument is known by its place, and has no name."""
    return any(mark is tyro.conf.Positional[int].__metadata__[0] for mark in getattr(kind, "__metadata__", ()))


def aliases(kind: Any) -> list[str]:
    """Return the other names of an option."""
    marks = getattr(kind, "__metadata__", ())
    return [name for mark in marks for name in getattr(mark, "aliases", None) or ()]


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


def examples(name: str) -> list[str]:
    """Return lines of other pages that call a command, which tests run."""
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    blocks = [
        block for page in pages for block in re.findall(r"^```sh\n(.*?)^```$", page.read_text("utf-8"), re.M | re.S)
    ]
    lines = [line for block in blocks for line in block.splitlines() if line.split()[:2] == ["pyro-gvae", name]]
    return list({re.sub(r"\s+#.*", "", line): re.sub(r"\s{2,}#", "  #", line) for line in lines}.values())[
        :MOST_EXAMPLES
    ]


def add_sections(app: Sphinx, name: str, source: list[str]) -> None:
    """Append a section for each command to the page's text."""
    if name == PAGE:
        source[0] += "\n\n" + "\n\n".join(map(section, COMMANDS)) + "\n"


def setup(app: Sphinx) -> ExtensionMetadata:
    app.connect("source-read", add_sections)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
