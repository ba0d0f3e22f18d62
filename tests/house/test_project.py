"""Project files agree with the code: one version, tested Pythons, and workflows that only call the Makefile."""

import re
import subprocess
import tomllib
from importlib.metadata import version
from itertools import chain
from typing import Any

import pytest
import yaml
from shown import ROOT, check

import pyro_gvae

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
WORKFLOWS = {path.stem: yaml.safe_load(path.read_text(encoding="utf-8")) for path in ROOT.glob(".github/workflows/*")}


@pytest.mark.parametrize(
    ("name", "pattern"),
    [
        ("CITATION.cff", r"^version: (.*)$"),
        ("README.md", r"^  version += \{(.*)\},$"),
        ("CHANGELOG.md", r"^## (\S+)"),
    ],
)
def test_a_file_that_names_the_version_names_this_one(name: str, pattern: str) -> None:
    found = re.search(pattern, (ROOT / name).read_text(encoding="utf-8"), re.MULTILINE)
    assert found is not None and found[1] == pyro_gvae.__version__


def test_the_installed_version_is_the_packages() -> None:
    assert version("pyro-gvae") == pyro_gvae.__version__
    assert "version" in PROJECT["dynamic"]


def test_the_citation_has_what_its_format_asks_for() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["cff-version"] == "1.2.0"
    assert citation["license"] == PROJECT["license"]
    assert citation["authors"] == PROJECT["authors"]
    assert all({"type", "title", "authors"} <= set(reference) for reference in citation["references"])


def matrix(workflow: str, job: str) -> dict[str, list[str]]:
    found: dict[str, list[str]] = WORKFLOWS[workflow]["jobs"][job]["strategy"]["matrix"]
    return found


def test_every_python_that_is_named_is_tested() -> None:
    named = [re.fullmatch(r"Programming Language :: Python :: (3\.\d+)", line) for line in PROJECT["classifiers"]]
    pythons = [found[1] for found in named if found is not None]
    assert PROJECT["requires-python"] == f">={pythons[0]}"
    assert matrix("checks", "tests")["python"] == matrix("weekly", "latest")["python"] == pythons


def test_badges_of_the_readme_say_what_is_so() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    pythons = "%20%7C%20".join(matrix("checks", "tests")["python"])
    assert f"/Python-{pythons}-" in readme and f"/licence-{PROJECT['license']}-" in readme
    assert set(re.findall(r"actions/workflows/(\w+)\.yml", readme)) == {"checks"}
    assert readme.count("\n") < 120


def steps(workflow: Any) -> list[dict[str, Any]]:
    return list(chain.from_iterable(job["steps"] for job in workflow["jobs"].values()))


@pytest.mark.parametrize("name", WORKFLOWS)
def test_a_workflow_runs_targets_of_the_makefile_and_nothing_else(name: str) -> None:
    jobs = WORKFLOWS[name]["jobs"].values()
    commands = [step["run"] for step in steps(WORKFLOWS[name]) if "run" in step]
    assert commands
    for target in chain.from_iterable(job.get("strategy", {}).get("matrix", {}).get("target", []) for job in jobs):
        check(["make", target])
    for command in commands:
        first, *words = command.replace("${{ matrix.target }}", "").split()
        assert first == "make"
        check(["make", *words])


def test_benchmarks_replace_tracked_files_only_if_asked() -> None:
    def runs(*words: str) -> list[str]:
        said = subprocess.run(["make", "-n", "bench", *words], cwd=ROOT, capture_output=True, text=True, check=True)
        return re.findall(r"experiments/speed\.py (.*)", said.stdout)

    assert len(runs()) == len(runs("RECORD=1")) == 3
    for run in runs():
        name, *options = run.split()
        given = dict(zip(options[::2], options[1::2], strict=True))
        script = (ROOT / "experiments" / f"speed_{name}.py").read_text(encoding="utf-8")
        assert given.pop("--results") == f"build/bench/speed_{name}.json"
        assert given == ({"--figures": "build/bench"} if "docs/figures" in script else {})
    assert not any("--" in run for run in runs("RECORD=1"))


@pytest.mark.parametrize("name", WORKFLOWS)
def test_a_workflow_names_the_major_version_of_each_action(name: str) -> None:
    used = [step["uses"] for step in steps(WORKFLOWS[name]) if "uses" in step]
    assert used and all(re.fullmatch(r"[\w-]+/[\w-]+@(release/)?v\d+", action) for action in used)


def test_there_are_the_workflows_that_the_tests_look_at() -> None:
    assert set(WORKFLOWS) == {"checks", "weekly", "publish"}


def test_other_configuration_is_yaml() -> None:
    templates = [yaml.safe_load(path.read_text()) for path in ROOT.glob(".github/ISSUE_TEMPLATE/[!c]*.yml")]
    assert len(templates) == 2 and all({"name", "description", "body"} <= set(template) for template in templates)
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"][0]["hooks"]
    assert [hook["entry"].split()[0] for hook in hooks] == [".venv/bin/ruff", ".venv/bin/ruff", ".venv/bin/mypy"]
    pages = yaml.safe_load((ROOT / ".readthedocs.yaml").read_text())
    assert (ROOT / pages["sphinx"]["configuration"]).is_file()
