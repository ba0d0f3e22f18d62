"""Add a line to the front page that says which version and commit the pages describe."""

import subprocess
from datetime import UTC, datetime
from pathlib import Path

from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.util.typing import ExtensionMetadata

PAGE = "index"


def line(version: str) -> str:
    """Return a sentence with the version, and the commit if the pages are built in a checkout."""
    asked = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty= with changes", "--exclude=*"]
    try:
        found = subprocess.run(asked, capture_output=True, text=True, check=False).stdout.strip()
    except OSError:  # without git
        found = ""
    commit = f", commit {found}" if found else ""
    return f"*These pages describe version {version}{commit}, and were built on {datetime.now(UTC):%-d %B %Y}.*"


def add(app: Sphinx, name: str, source: list[str]) -> None:
    """Insert the line below the page's own text."""
    if name == PAGE:
        source[0] = source[0].replace("\n```{toctree}", f"\n{line(app.config.release)}\n\n```{{toctree}}", 1)


def is_old(app: Sphinx, env: BuildEnvironment, added: set[str], changed: set[str], removed: set[str]) -> list[str]:
    """Read the page again in each build."""
    return [PAGE]


def setup(app: Sphinx) -> ExtensionMetadata:
    app.connect("source-read", add)
    app.connect("env-get-outdated", is_old)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
