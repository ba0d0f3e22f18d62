"""Write self-contained pages from templates and figures: they need no internet and no other file."""

import base64
import os
import re
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import jinja2

from ..runs.files import read_bytes, write_text_atomic

#: The file name of a run's explorer; the report links to it.
EXPLORER = "explorer.html"


class Shown(NamedTuple):
    """A figure of a page.

    Args:
        name: its anchor.
        source: a data URI; see :func:`embedded`.
        title: the heading.
        caption: what it shows; screen readers read this too.
    """

    name: str
    source: str
    title: str
    caption: str


def write_page(path: Path, template: str, **values: Any) -> Path:
    """Write a page from a template of this package; the same values give the same bytes.

    Returns:
        The path of the page.
    """
    write_text_atomic(path, _templates().get_template(template).render(**values))
    return path


@cache
def _templates() -> jinja2.Environment:
    """Return the templates, which are compiled once in a process: that takes a tenth of a small run's time."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("pyro_gvae.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["minus"] = lambda text: re.sub(r"(?<!\w)-(?=\d)", "−", text)
    return environment


def printable(name: str) -> str:
    """Return the name of a file as text, even if its bytes are not UTF-8."""
    return os.fsencode(name).decode("utf-8", "replace")


def embedded(svg: Path) -> str:
    """Encode an SVG file as a data URI, so that the page contains its figures."""
    return f"data:image/svg+xml;base64,{base64.b64encode(read_bytes(svg)).decode()}"


def link_to_explorer(run: Path) -> str | None:
    """Return the address of a run's explorer for a page in the same folder, or None if it has not been written."""
    return EXPLORER if (run / EXPLORER).exists() else None
