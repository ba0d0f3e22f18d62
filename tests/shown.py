"""The commands shown in README, the documents and the experiments."""

import functools
import re
import runpy
import shlex
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
import tyro

from pyro_gvae.cli.arguments import parse
from pyro_gvae.cli.words import DRY_RUN, GENERAL

ROOT = Path(__file__).parents[1]


ENTRANCE = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")]  # Sphinx sees the other pages


PAGES = [*ENTRANCE, *sorted((ROOT / "docs").rglob("*.md"))]


EXPERIMENTS = sorted((ROOT / "experiments").glob("*.py"))


class Command(NamedTuple):
    """A line of a shell block, without its comment."""

    page: str
    words: list[str]

    def __str__(self) -> str:
        return f"{self.page}: {' '.join(self.words)}"


def commands(page: str, text: str) -> Iterator[Command]:
    for block in re.findall(r"^```(?:sh|bash|console)$\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line.removeprefix("$ "), comments=True)
            while words and re.fullmatch(r"\w+=.*", words[0]):  # settings for one command
                words = words[1:]
            if words:
                yield Command(page, words)


def in_the_text(page: str, text: str) -> Iterator[Command]:
    """Find commands in text: experiments in backticks or on their own lines, and pyro-gvae with options."""
    for line in re.findall(
        r"`(?:\w+=\w+ )?(python experiments/[^`]+)`|`(pyro-gvae \w+ --[^\s`]+ [^`]+)`|^    (python experiments/.*)$",
        text,
        re.MULTILINE,
    ):
        yield Command(page, shlex.split(" ".join(line)))


def parse_experiment(script: Path, arguments: list[str]) -> None:
    """Run a script up to the call of its function; raise SystemExit if it does not accept the arguments."""

    def only_parsed(function: Callable[..., object]) -> Callable[..., object]:
        return functools.wraps(function)(lambda *_, **__: None)

    cli, subcommands, threads = tyro.cli, tyro.extras.subcommand_cli_from_dict, torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [str(script), *arguments])
        patch.syspath_prepend(script.parent)
        patch.setattr(tyro, "cli", lambda function: cli(only_parsed(function)))
        patch.setattr(
            tyro.extras,
            "subcommand_cli_from_dict",
            lambda table: subcommands({name: only_parsed(function) for name, function in table.items()}),
        )
        runpy.run_path(str(script), run_name="__main__")
    torch.set_num_threads(threads)


def check(words: list[str]) -> None:
    """Raise if the command does not exist, or does not accept these words."""
    match words:
        case ["pyro-gvae", *arguments] | ["python", "-m", "pyro_gvae", *arguments]:
            parse([word for word in arguments if word not in (*GENERAL, DRY_RUN)])
        case ["torchrun", *launched]:
            module = launched.index("-m")
            assert all(word.startswith("--") or word.isdigit() for word in launched[:module])
            check(["python", *launched[module:]])
        case ["python", script, *arguments] if script.endswith(".py"):
            assert (ROOT / script).is_file(), f"there is no {script}"
            parse_experiment(ROOT / script, arguments)
        case ["make", *targets]:
            known = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
            assert {word for word in targets if "=" not in word} <= {*known}
        case ["pip", "install", *options]:
            extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
            asked = re.findall(r"\[(.*?)\]", " ".join(options))
            assert {name for group in asked for name in group.split(",")} <= {*extras}
        case ["pytest", *paths]:
            assert all((ROOT / path).exists() for path in paths if not path.startswith("-"))
        case ["cd" | "git" | "tensorboard", *_]:
            pass
        case _:
            raise AssertionError(f"nobody knows the command '{words[0]}'")


def found_by(search: Callable[[str, str], Iterator[Command]], pages: list[Path]) -> list[Command]:
    return [
        command for page in pages for command in search(str(page.relative_to(ROOT)), page.read_text(encoding="utf-8"))
    ]


SHOWN = found_by(commands, PAGES)


SHOWN_IN_THE_TEXT = found_by(in_the_text, PAGES + EXPERIMENTS)
