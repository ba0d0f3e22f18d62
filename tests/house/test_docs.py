"""Every command in README and the documents exists, and the pages build without a warning."""

import json
import os
import re
import subprocess
import sys
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import pytest
from shown import ROOT, SHOWN, SHOWN_IN_THE_TEXT, Command, check, commands

from pyro_gvae.cli.arguments import COMMANDS


def test_the_documents_show_commands() -> None:
    assert len(SHOWN) > 5 and len(SHOWN_IN_THE_TEXT) > 10


@pytest.mark.parametrize(
    "command", [*SHOWN, *(pytest.param(shown, marks=pytest.mark.slow) for shown in SHOWN_IN_THE_TEXT)], ids=str
)
def test_each_command_exists_and_takes_its_options(command: Command) -> None:
    check(command.words)


@pytest.mark.parametrize(
    "line",
    [
        "pyro-gvae compare --epoch 3",
        "pyro-gvae cmpare",
        "make tea",
        "python nowhere.py",
        "python experiments/stages.py --epoch 3",
        "python experiments/speed.py exactly",
        "pip install '.[nothing]'",
        "pyro_gvae",
    ],
)
def test_a_command_that_does_not_exist_is_found(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    (command,) = commands("a page", f"```sh\n{line}  # a comment\n```\n")
    with pytest.raises((SystemExit, AssertionError, ValueError)):
        check(command.words)


@pytest.mark.slow
@pytest.mark.skipif(find_spec("sphinx") is None or find_spec("myst_nb") is None, reason="needs the extra `docs`")
def test_the_pages_build_without_a_warning(tmp_path: Path) -> None:
    """Build them as `make docs` does, running all code, but without the theme and the pages of sources.

    A missing proxy simulates the absence of a network.
    """
    environment = os.environ | {"http_proxy": "http://127.0.0.1:9", "https_proxy": "http://127.0.0.1:9"}
    options = ["-q", "-W", "--keep-going", "-j", "2", "-t", "plain", "-d", tmp_path / "trees"]
    build = [sys.executable, "-m", "sphinx", *options, "docs", tmp_path / "html"]
    done = subprocess.run(build, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / "html" / "index.html").is_file()
    formulas = (tmp_path / "html" / "math.html").read_text(encoding="utf-8")
    assert not re.findall(r'<script[^>]*src="https?:', formulas)  # formulas are shown without a network, too
    assert (tmp_path / "html" / "_static" / "tex-svg-full.js").is_file()
    notebook = json.loads((tmp_path / "html" / "notebooks" / "tutorial" / "vae.ipynb").read_text(encoding="utf-8"))
    assert any("dist.Bernoulli" in "".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code")
    options = (tmp_path / "html" / "reference" / "command_line.html").read_text(encoding="utf-8")
    assert all(f'id="cmdoption-pyro-gvae-{name}-' in options for name in COMMANDS)
    for page in (tmp_path / "html").rglob("*.html"):
        assert not re.findall(r'<img alt="[./]*_images', text_of(page)), f"{page.name}: a figure without words"
        assert "Alias for field number" not in text_of(page), f"{page.name}: a named tuple without its attributes"
    for page in (tmp_path / "html" / "_modules").rglob("*.html"):
        for target, anchor in re.findall(r'class="viewcode-back" href="([^"#]+)#([^"]+)"', text_of(page)):
            assert f'id="{anchor}"' in text_of(page.parent / target), f"{page.name}: {anchor}"


@cache
def text_of(page: Path) -> str:
    return page.read_text(encoding="utf-8")
