"""Pages: visible code defines its names, links have targets, and each page is in a table of contents.

Sphinx also runs the pages' code and checks links, but takes minutes; these tests only look at the text.
"""

import ast
import builtins
import re
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest
from shown import ROOT

DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
CELL = re.compile(r"^```\{code-cell\}\n(.*?)^```$", re.MULTILINE | re.DOTALL)
RUN = [page for page in PAGES if "file_format: mystnb" in page.read_text(encoding="utf-8")]


def visible_cells(text: str) -> list[str]:
    """Return the code that a reader sees or can unfold, without IPython's magic lines."""
    cells = [cell for cell in CELL.findall(text) if not re.search(r"^:tags:.*remove-(input|cell)", cell, re.MULTILINE)]
    return [re.sub(r"^(:\w+:|%).*$", "", cell, flags=re.MULTILINE) for cell in cells]


def undefined(cells: list[str]) -> set[str]:
    """Return names that a cell uses although neither it nor an earlier cell defines them."""
    known, missing = {*dir(builtins)}, set[str]()
    for cell in cells:
        tree = ast.parse(cell)
        known |= set(defined(tree))
        missing |= {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)} - known
    return missing


def defined(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        match node:
            case ast.Name(id=name, ctx=ast.Store()) | ast.arg(arg=name) | ast.ExceptHandler(name=str(name)):
                yield name
            case ast.FunctionDef(name=name) | ast.ClassDef(name=name):
                yield name
            case ast.alias(name=name, asname=other):
                yield other or name.split(".")[0]


def name_of(page: Path) -> str:
    return str(page.relative_to(DOCS).with_suffix(""))


@pytest.mark.parametrize("page", RUN, ids=name_of)
def test_the_visible_cells_define_every_name_that_they_use(page: Path) -> None:
    """Readers could not retype a page with hidden imports."""
    assert not undefined(visible_cells(page.read_text(encoding="utf-8")))


@pytest.mark.parametrize("page", RUN, ids=name_of)
def test_every_figure_that_a_cell_draws_has_words_for_those_who_cannot_see_it(page: Path) -> None:
    cells = CELL.findall(page.read_text(encoding="utf-8"))
    assert all('{alt: "' in cell for cell in cells if "plt.subplots(" in cell)


def test_a_hidden_import_is_found() -> None:
    page = "```{code-cell}\n:tags: [remove-input]\nimport torch as t\n```\n\n```{code-cell}\nt.ones(2)\n```\n"
    assert undefined(visible_cells(page)) == {"t"}
    assert not undefined(visible_cells(page.replace("remove-input", "hide-input")))


def test_a_name_that_is_defined_later_is_found() -> None:
    assert undefined(["x = y", "y = 1"]) == {"y"}


def anchors(text: str) -> set[str]:
    """Return the anchors of headings, as the pages and GitHub make them, and the explicit ones of figures and terms."""
    prose = re.sub(r"^(`{3,}).*?^\1$", "", text, flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ (.*)$", prose, re.MULTILINE)
    return {re.sub(r"[^\w\s-]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


def broken(page: Path, text: str) -> list[str]:
    """Return links to missing files of this repository, or to missing headings in them; ignore links to its host."""
    found = []
    prose = re.sub(r"^(`{3,}).*?^\1$", "", text, flags=re.MULTILINE | re.DOTALL)
    for target in re.findall(r"\]\((?!https?:|mailto:|\.\./\.\./(?:actions|issues))([^)\s]+)\)", prose):
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        in_heading = file.suffix != ".md" or not anchor or anchor in anchors(file.read_text(encoding="utf-8"))
        if not file.exists() or not in_heading:
            found.append(target)
    return found


@pytest.mark.parametrize("page", [*PAGES, *sorted(ROOT.glob("*.md"))], ids=lambda page: str(page.relative_to(ROOT)))
def test_the_links_of_a_page_lead_somewhere(page: Path) -> None:
    assert not broken(page, page.read_text(encoding="utf-8"))


def test_a_broken_link_is_found() -> None:
    page = DOCS / "index.md"
    assert broken(page, "[a](nowhere.md) [b](math.md#nowhere) [c](#nowhere) [d](math.md)") == [
        "nowhere.md",
        "math.md#nowhere",
        "#nowhere",
    ]


def test_each_page_is_in_a_table_of_contents() -> None:
    listed = {DOCS / "index.md"}
    for page in PAGES:
        for entries in re.findall(r"^```\{toctree\}\n(.*?)^```$", page.read_text(encoding="utf-8"), re.M | re.S):
            lines = (line for line in entries.splitlines() if line and not line.startswith(":"))
            listed |= {page.parent / f"{line}.md" for line in lines}
    assert {*PAGES} == listed


def test_each_figure_says_in_words_what_it_shows() -> None:
    bare = [(page.name, path) for page in PAGES for path in re.findall(r"!\[\]\(([^)]*)\)", page.read_text("utf-8"))]
    assert not bare


@pytest.mark.parametrize("module", ["pyro_gvae", "pyro_gvae.estimators", "pyro_gvae.handlers", "pyro_gvae.evaluate"])
def test_each_public_name_is_on_a_page_of_the_reference(module: str) -> None:
    """`pyro_gvae.exact` is documented as a whole."""
    text = "\n".join(page.read_text(encoding="utf-8") for page in DOCS.glob("reference/*.md"))
    assert not [name for name in import_module(module).__all__ if not re.search(rf"[.\s,]{name}\b", text)]
