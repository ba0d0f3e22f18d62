"""Write every page with code as a notebook to download, with all cells visible, to `notebooks/` of the build."""

import re
from pathlib import Path
from typing import Any

import nbformat
from docutils import nodes
from myst_nb.core.read import read_myst_markdown_notebook
from sphinx.application import Sphinx
from sphinx.util.typing import ExtensionMetadata

#: The front matter of pages that Sphinx runs.
RUN = "file_format: mystnb"


def notebook(text: str) -> Any:
    """Return a page as a notebook. Links to other pages would not work there, so they are replaced by their text."""
    made = read_myst_markdown_notebook(text)
    for cell in made.cells:
        cell.metadata = {}
        if cell.cell_type == "markdown":
            cell.source = re.sub(r"(?<!!)\[([^\]]+)\]\((?!https?:)[^)]*\)", r"\1", cell.source)
    made.metadata = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    return made


def link(app: Sphinx, doctree: nodes.document) -> None:
    """Insert a link to the notebook below a page's title."""
    name = app.env.docname
    title = next(iter(doctree.findall(nodes.title)), None)
    if title is not None and RUN in Path(app.env.doc2path(name)).read_text(encoding="utf-8"):
        target = "../" * name.count("/") + f"notebooks/{name}.ipynb"
        found = nodes.reference("", "Download as a notebook", refuri=target)
        title.parent.insert(title.parent.index(title) + 1, nodes.paragraph("", "", found, classes=["notebook"]))


def write(app: Sphinx, error: Exception | None) -> None:
    """Write the notebooks of all pages that are run."""
    if error is None and app.builder.format == "html":
        for name in app.env.found_docs:
            text = Path(app.env.doc2path(name)).read_text(encoding="utf-8")
            if RUN in text:
                path = Path(app.outdir, "notebooks", f"{name}.ipynb")
                path.parent.mkdir(parents=True, exist_ok=True)
                nbformat.write(notebook(text), path)


def setup(app: Sphinx) -> ExtensionMetadata:
    app.connect("doctree-read", link)
    app.connect("build-finished", write)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
