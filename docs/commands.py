"""Write the command line's page: a section for each command from its configuration, with the examples of its help."""

import inspect
from dataclasses import fields
from typing import get_type_hints

from sphinx.application import Sphinx
from sphinx.util.typing import ExtensionMetadata

from pyro_gvae.cli.arguments import COMMANDS, others_of
from pyro_gvae.cli.examples import EXAMPLES
from pyro_gvae.cli.help import said_of, spelling, usage_of, with_default
from pyro_gvae.cli.words import places_of

PAGE = "reference/command_line"


def section(name: str) -> str:
    """Return what a command does, how it is called, and its options, as Markdown."""
    config = COMMANDS[name].config
    kinds, places, texts = get_type_hints(config), places_of(config), said_of(config)
    lines = [f"## pyro-gvae {name}", (inspect.getdoc(config) or "").partition("\nArgs:")[0]]
    lines.append(f"    {usage_of(name, config)}")
    lines.append("```sh\n" + "\n".join(EXAMPLES[name]) + "\n```")
    lines.append(f"```{{program}} pyro-gvae {name}\n```")
    for field in fields(config):
        names = field.name.upper() if field.name in places else spelling(field.name, kinds[field.name])
        lines.append(option(names, with_default(texts.get(field.name, ""), field.default)))
    lines += [option(names, text) for names, text in others_of(name).items()]
    return "\n\n".join(line for line in lines if line)


def option(names: str, text: str) -> str:
    """Return the description of an option as a directive."""
    return f"```{{option}} {names}\n{text}\n```"


def add_sections(app: Sphinx, name: str, source: list[str]) -> None:
    """Append a section for each command to the page's text."""
    if name == PAGE:
        source[0] += "\n\n" + "\n\n".join(map(section, COMMANDS)) + "\n"


def setup(app: Sphinx) -> ExtensionMetadata:
    app.connect("source-read", add_sections)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
