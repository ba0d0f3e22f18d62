"""Extend Sphinx: turn names in backticks into links, and add three directives.

`estimators` describes every estimator in the registry, `facade` makes a table of the package's own names, and
`contents-of-page` a table of the objects that a page describes.
"""

import inspect
import re
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, final

from docutils import nodes
from docutils.statemachine import StringList
from sphinx.addnodes import desc_signature, pending_xref
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.ext.autosummary import Autosummary
from sphinx.roles import XRefRole
from sphinx.util.docutils import SphinxDirective
from sphinx.util.nodes import make_refnode
from sphinx.util.typing import ExtensionMetadata

import pyro_gvae
from pyro_gvae import ESTIMATORS

#: Names that docstrings use without their module, as Pyro programs do.
FULL_NAMES = {
    "SVI": "pyro.infer.svi.SVI",
    "Trace_ELBO": "pyro.infer.trace_elbo.Trace_ELBO",
    "TraceEnum_ELBO": "pyro.infer.traceenum_elbo.TraceEnum_ELBO",
    "TraceMeanField_ELBO": "pyro.infer.trace_mean_field_elbo.TraceMeanField_ELBO",
    "OneHotCategorical": "pyro.distributions.OneHotCategorical",
    "DataLoader": "torch.utils.data.DataLoader",
    "Dataset": "pyro_gvae.Dataset",
} | {name: f"pyro_gvae.{name}" for name in pyro_gvae.__all__}


class NameRole(XRefRole):
    """Render `Name` in a docstring as code, and as a link if the name is documented."""

    def process_link(
        self, env: BuildEnvironment, refnode: nodes.Element, has_explicit_title: bool, title: str, target: str
    ) -> tuple[str, str]:
        refnode["refdomain"], refnode["reftype"], refnode["optional"] = "py", "obj", True
        return title, FULL_NAMES.get(target, target if re.fullmatch(r"[A-Za-z_][\w.]+", target) else "")


def find_anywhere(
    app: Sphinx, env: BuildEnvironment, node: pending_xref, contnode: nodes.Element
) -> nodes.Element | None:
    """Link a name without its module to the only object of that name; otherwise leave it as code.

    Names in signatures need not be on a page; names in sentences must be.
    """
    python, target = env.domains.python_domain, node.get("reftarget", "")
    found = {obj.node_id: obj for name, obj in python.objects.items() if f".{name}".endswith(f".{target}") and target}
    if node.get("refdomain") == "py" and len(found) == 1:
        (obj,) = found.values()
        return make_refnode(app.builder, node["refdoc"], obj.docname, obj.node_id, contnode, target)
    return contnode if node.get("optional") or in_signature(node) else None


def in_signature(node: nodes.Node) -> bool:
    """Return whether a reference is part of a signature."""
    parent = node.parent
    while parent is not None and not isinstance(parent, desc_signature):
        parent = parent.parent
    return parent is not None


def keep_letters(app: Sphinx, kind: str, name: str, obj: object, options: object, lines: list[str]) -> None:
    """Escape the `N.` of `num_latents: N.`, which would otherwise become a list item."""
    lines[:] = [re.sub(r"^(\s*\w+: )(?=[A-Z]\.$)", r"\1\\", line) for line in lines]


def skip_fields(app: Sphinx, kind: str, name: str, obj: object, skip: bool, options: object) -> bool | None:
    """Leave out the fields of named tuples, which the docstring of their class describes."""
    return True if (getattr(obj, "__doc__", None) or "").startswith("Alias for field number") else None


class EstimatorsDirective(SphinxDirective):
    """Insert the docstring of every constructor in the registry, in its order."""

    def run(self) -> list[nodes.Node]:
        lines = []
        for constructor in ESTIMATORS.values():
            lines += [f".. autofunction:: {constructor.__module__}.{constructor.__name__}", ""]
        return self.parse_text_to_nodes(StringList(lines, source="pyro_gvae.ESTIMATORS"))  # type: ignore[arg-type]


class TableDirective(Autosummary):
    """Make a table of names and the first lines of their docstrings."""

    def names(self) -> list[str]:
        raise NotImplementedError

    def run(self) -> list[nodes.Node]:
        self.options["nosignatures"] = True
        self.content = StringList([f"~{name}" for name in self.names()], source="docstrings")  # type: ignore[arg-type]
        return super().run()

    def get_items(self, names: list[str]) -> list[tuple[str, str | None, str, str]]:
        """Replace roles such as `:func:`, which search the object's own module, by names that are found anywhere."""
        return [
            (name, signature, re.sub(r":\w+:`~?([^`]+)`", r"`\1`", said), full)
            for name, signature, said, full in super().get_items(names)
        ]


@final
class FacadeDirective(TableDirective):
    """List all names of `pyro_gvae`, in the order in which a program uses them."""

    def names(self) -> list[str]:
        return [f"pyro_gvae.{name}" for name in pyro_gvae._HOME if name not in ("exact", "ESTIMATORS")]


@final
class ContentsDirective(TableDirective):
    """List all functions and classes that the page describes."""

    def names(self) -> list[str]:
        text = Path(self.env.doc2path(self.env.docname)).read_text(encoding="utf-8")
        return list(dict.fromkeys(name for found in DESCRIBED.finditer(text) for name in described(*found.groups())))


#: `.. autofunction:: NAME`, `.. autoclass:: NAME` or `.. automodule:: NAME`, with the options below it.
DESCRIBED = re.compile(r"^\.\. auto(function|class|module):: ([\w.]+).*\n((?:   :.*\n)*)", re.MULTILINE)


def described(kind: str, name: str, options: str) -> list[str]:
    """Return the full names that one autodoc directive describes; for a module, those of its members."""
    if kind != "module":
        return [name]
    module = import_module(name)
    listed, left = (re.findall(rf":{option}: (.*)", options) for option in ("members", "exclude-members"))
    if listed:
        return [f"{name}.{member}" for member in listed[0].split(", ")]
    own = [
        member
        for member, found in vars(module).items()
        if inspect.getmodule(found) is module and (inspect.isfunction(found) or inspect.isclass(found))
    ]
    found = getattr(module, "__all__", own) if ":imported-members:" in options else own
    hidden = set(", ".join(left).split(", "))
    return [f"{name}.{member}" for member in found if not member.startswith("_") and member not in hidden]


def share_trees(
    app: Sphinx,
    pagename: str,
    templatename: str,
    context: dict[str, Any],
    doctree: nodes.document | None,
    *,
    trees: dict[int, str],
) -> None:
    """All source pages of one depth share a navigation tree, in which none of them stands: making it takes longest."""
    if pagename.startswith("_modules/"):
        toctree, depth = context["toctree"], pagename.count("/")

        def shared(**options: Any) -> str:
            if depth not in trees:
                trees[depth] = toctree(**options)
            return trees[depth]

        context["toctree"] = shared


#: A part of a source page: its name in the module, and the link back to its description.
BACK_LINK = re.compile(r'(<div class="viewcode-block" id="([^"]+)">\n<a class="viewcode-back" href="[^"#]*#)([^"]+)')


def mend_links_back(
    app: Sphinx, pagename: str, templatename: str, context: dict[str, Any], doctree: nodes.document | None
) -> None:
    """Link each part of a source page to its own description.

    Sphinx assumes that all parts of a module are described under the same module, but some are names of the package.
    """
    if not pagename.startswith("_modules/"):
        return
    described, module = app.env.domains.python_domain.objects, pagename.removeprefix("_modules/").replace("/", ".")

    def mended(found: re.Match[str]) -> str:
        start, name, anchor = found.groups()
        above = module.split(".")
        own = [".".join([*above[:depth], name]) for depth in range(len(above), 0, -1)]
        return start + next((full for full in (anchor, *own) if full in described), anchor)

    context["body"] = BACK_LINK.sub(mended, context["body"])


def setup(app: Sphinx) -> ExtensionMetadata:
    app.add_role("name", NameRole())
    app.add_directive("estimators", EstimatorsDirective)
    app.add_directive("facade", FacadeDirective)
    app.add_directive("contents-of-page", ContentsDirective)
    app.connect("autodoc-process-docstring", keep_letters, priority=400)  # before napoleon
    app.connect("autodoc-skip-member", skip_fields)
    app.connect("missing-reference", find_anywhere, priority=900)
    app.connect("html-page-context", mend_links_back)
    app.connect("html-page-context", partial(share_trees, trees={}), priority=400)  # before the theme takes it
    return {"parallel_read_safe": True, "parallel_write_safe": True}
