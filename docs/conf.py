"""How Sphinx builds these pages: `make docs`. Nothing is fetched; warnings are errors."""

import hashlib
import logging
import os
import sys
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).parents[1]
# The pages describe, and their code runs, the package beside them, whichever is installed.
PATHS = [str(ROOT), str(ROOT / "docs"), str(ROOT / "tests")]  # a page shows tables of the tests
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
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
    "myst_nb",
    "commands",
    "described",
    "notebooks",
    "pages",
]
exclude_patterns = ["_build"]
nitpicky = True

# Appearance
html_theme = "furo"
html_title = f"pyro_gvae {release}"
# Formulas are read without a network, too: MathJax whole in one file, glyphs included.
MATHJAX = Path(find_spec("sphinx-mathjax-offline").origin).parent / "static" / "mathjax" / "tex-svg-full.js"
mathjax_path = MATHJAX.name
html_static_path = ["_static", str(MATHJAX)]
html_css_files = ["pages.css"]
html_copy_source = False
copybutton_exclude = ".linenos, .gp, .go"

# Docstrings: Google style, and a single backtick is a name, linked where there is something to link to.
default_role = "name"
autosummary_generate = False  # tables of what the pages describe, which autodoc does
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
    # What annotations name and no page describes: type variables, private classes, and types of other packages.
    (
        "py:.*",
        r"(.*\.)?(_\w+|P|Program|Run|Step|Guard|Signals|Self|optional|Annotated|Positional|ExpandedDistribution)",
    ),
    ("py:.*", r"(pandas|pd|matplotlib|pathlib|tyro|collections|torch\.(autograd|distributions))\..*"),
]

# Links to Pyro and torch go by the short lists of names in inventories/, never by the network: a build is the same,
# and complete, without one.
intersphinx_mapping = {
    "python": ("https://docs.python.org/3", "inventories/python.txt"),
    "torch": ("https://docs.pytorch.org/docs/stable", "inventories/torch.txt"),
    "pyro": ("https://docs.pyro.ai/en/stable", "inventories/pyro.txt"),
}

# Markdown, and the code that it runs
myst_enable_extensions = ["amsmath", "colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3
myst_dmath_double_inline = True
# What a page's code printed is kept until the page, the package or a version changes: a page says what this code does.
BUILD = ROOT / "build" / "pages"
SOURCES = [*sorted((ROOT / "pyro_gvae").rglob("*.py")), *sorted((ROOT / "docs").glob("*.py")), ROOT / "constraints.txt"]
SOURCES += [ROOT / "tests" / name for name in ("table.py", "pairs.py", "kinds.py")]
nb_execution_mode = "cache"
nb_execution_cache_path = str(BUILD / hashlib.sha256(b"".join(map(Path.read_bytes, SOURCES))).hexdigest()[:16])
get_cache(nb_execution_cache_path).db  # noqa: B018 (makes it, before two processes would do so at once)
nb_execution_raise_on_error = True
nb_execution_timeout = 300
nb_output_stderr = "error"  # a warning that a reader would see is one
nb_merge_streams = True
logging.getLogger("traitlets").setLevel(logging.WARNING)  # says each page that it runs
nb_render_markdown_format = "gfm"
