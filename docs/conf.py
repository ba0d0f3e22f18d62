"""Configure Sphinx for `make docs`. A build downloads nothing, and warnings are errors."""

import hashlib
import logging
import os
import sys
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).parents[1]
# The pages describe and run the package in this checkout, even if another one is installed.
PATHS = [str(ROOT), str(ROOT / "docs"), str(ROOT / "tests")]  # one page shows tables of the tests
sys.path[:0] = PATHS
os.environ["PYTHONPATH"] = os.pathsep.join([*PATHS, os.environ.get("PYTHONPATH", "")])
os.environ["JUPYTER_PATH"] = str(ROOT / "docs")  # kernels/python3

import forked_kernels  # noqa: E402
from jupyter_cache import get_cache  # noqa: E402

import pyro_gvae  # noqa: E402

forked_kernels.start()

project = "pyro_gvae"
author = "The pyro_gvae developers"
project_copyright = author
version = release = pyro_gvae.__version__

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx.ext.intersphinx",
    "sphinx_copybutton",
    "myst_nb",
    "commands",
    "described",
    "notebooks",
    "pages",
]
exclude_patterns = ["_build"]
nitpicky = True

# Appearance. The test builds the pages with the tag `plain`: sources and navigation trees take it a tenth of its time.
if not tags.has("plain"):  # noqa: F821 (Sphinx defines it)
    extensions.append("sphinx.ext.viewcode")
    html_theme = "furo"
html_title = f"pyro_gvae {release}"
html_logo = "_static/logo.svg"  # its colours suit light and dark pages
# Formulas can be read without a network: MathJax is one file, including its glyphs.
MATHJAX = Path(find_spec("sphinx-mathjax-offline").origin).parent / "static" / "mathjax" / "tex-svg-full.js"
mathjax_path = MATHJAX.name
html_static_path = ["_static", str(MATHJAX)]
html_css_files = ["pages.css"]
html_copy_source = False
copybutton_exclude = ".linenos, .gp, .go"

# Docstrings are in Google style. Text in single backticks is a name, which becomes a link if it is documented.
default_role = "name"
autosummary_generate = False  # autosummary only makes tables; autodoc describes the objects
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
autodoc_inherit_docstrings = False
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_use_rtype = False  # the types are in the signatures
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 120
nitpick_ignore_regex = [
    # Names in annotations that no page describes: type variables, private classes, and types of other packages.
    (
        "py:.*",
        r"(.*\.)?(_\w+|P|Program|Run|Step|Guard|Cells|Signals|Self|optional|Annotated|Positional|ExpandedDistribution)",
    ),
    ("py:.*", r"(pandas|pd|matplotlib|pathlib|tyro|collections|torch\.(autograd|distributions))\..*"),
]

# Links to Pyro and torch use the short lists of names in inventories/, never the network, so a build is complete
# without one.
intersphinx_mapping = {
    "python": ("https://docs.python.org/3", "inventories/python.txt"),
    "torch": ("https://docs.pytorch.org/docs/stable", "inventories/torch.txt"),
    "pyro": ("https://docs.pyro.ai/en/stable", "inventories/pyro.txt"),
}

# Markdown, and the code on the pages
myst_enable_extensions = ["amsmath", "colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3
myst_dmath_double_inline = True
# The output of a page's code is cached until the page, the package or a version changes.
BUILD = ROOT / "build" / "pages"
SOURCES = [*sorted((ROOT / "pyro_gvae").rglob("*.py")), *sorted((ROOT / "docs").glob("*.py")), ROOT / "constraints.txt"]
SOURCES += [ROOT / "tests" / name for name in ("table.py", "pairs.py", "kinds.py")]
nb_execution_mode = "cache"
nb_execution_cache_path = str(BUILD / hashlib.sha256(b"".join(map(Path.read_bytes, SOURCES))).hexdigest()[:16])
get_cache(nb_execution_cache_path).db  # noqa: B018 (creates it before two processes do so at once)
nb_execution_raise_on_error = True
nb_execution_timeout = 300
nb_output_stderr = "error"  # a warning that a reader would see fails the build
nb_merge_streams = True
logging.getLogger("traitlets").setLevel(logging.WARNING)  # otherwise it logs every page that it runs
nb_render_markdown_format = "gfm"
