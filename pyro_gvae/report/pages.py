"""From templates and figures to one page that needs no network, no script and no other file."""

import base64
from pathlib import Path
from typing import Any

import jinja2
import matplotlib
from matplotlib.figure import Figure

from ..runs.files import replacing, write_text_atomic


def write_page(path: Path, template: str, **values: Any) -> Path:
    """Writes a page by a template of this package; the same values give the same bytes.

    Returns:
        Its path.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("pyro_gvae.report.comparison"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["minus"] = lambda text: text.replace("-", "−")
    write_text_atomic(path, environment.get_template(template).render(**values))
    return path


def save_figure(figure: Figure, folder: Path, name: str) -> str:
    """Writes a figure as PNG and SVG and returns the SVG as a data URI: sharp at every size, and no file to lose."""
    with replacing(folder / f"{name}.png") as path:
        figure.savefig(path, format="png", dpi=200)
    with replacing(folder / f"{name}.svg") as path, matplotlib.rc_context({"svg.hashsalt": name}):
        figure.savefig(path, format="svg", dpi=200, metadata={"Date": None})
    picture = (folder / f"{name}.svg").read_bytes()
    return f"data:image/svg+xml;base64,{base64.b64encode(picture).decode()}"
