"""Run every command of the package in README and the documents to its end, at a tiny size.

Commands run as shown, with additional options that make them small, in a folder with the files that they name: data in
`data`, and a finished run if they need one. `.ci/run` itself runs the `make`, `pip` and `pytest` lines;
`test_experiments.py` runs the experiments.
"""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from itertools import pairwise
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from mnist_like import write_mnist_like
from processes import Server
from shown import ROOT, SHOWN

from pyro_gvae.cli.main import main
from pyro_gvae.compare import cell as cell_module
from pyro_gvae.data.datasets import table

pytestmark = pytest.mark.slow

NETWORK = "--hidden 8 --num-latents 2 --num-categories 3"
#: Command -> options that make it small; if an option is given twice, the last one counts.
SMALLER = {
    "train": f"{NETWORK} --steps 4 --batch-size 50",
    "compare": f"{NETWORK} --epochs 1 --evaluations 1 --seeds 0",
    "gradients": f"{NETWORK} --num-data 8 --num-samples 32 --epochs 0",
    "evaluate": "--num-particles 5",
    "advise": f"{NETWORK} --seconds 0.2 --estimators gumbel-softmax reinmax reinforce-loo",
}
RUN = re.compile(r"runs/(compare|train|staged|layers|tree|wine|some-labels|by-class|people)\S*")
#: Runs with other data or programs -> options of `train` that make them.
OTHERS = {
    "wine": ["--data", "wine.csv"],
    "some-labels": ["--model", "semi-supervised", "--labelled-share", "0.05"],
    "by-class": ["--model", "conditional", "--dataset", "wine"],
    "people": ["--data", "people.parquet"],
}
#: Commands whose figures are rendered, one of each kind.
RENDERED = [
    next(command for command in SHOWN if command.words[:2] == ["pyro-gvae", name])
    for name in ("train", "compare", "resume", "report", "gradients", "advise", "gaps")
]
OURS = [command for command in SHOWN if command.words[0] in ("pyro-gvae", "torchrun")]


def smaller(words: list[str]) -> list[str]:
    options = (
        SMALLER.get(words[0], "").split() if words[:2] != ["gradients", "runs/compare"] else ["--num-samples", "32"]
    )
    if "--more" in words:  # of a run whose steps were bounded above
        options = ["--steps", "6"]
    grid = ["--sizes", "3x2"] if "--sizes" in words else []
    processes = ["--workers", "1"] if "--workers" in words else []  # `test_jobs.py` shows that more give the same
    if words[0] == "compare":
        options += ["--batch-size", "50" if "mnist" in words else "479"]  # batches of one size
        if len(words) > 1 and "--estimators" not in words:  # only the shortest command keeps the default
            options += ["--estimators", "gumbel-softmax", "exact"]
    if "bernoulli" in words:  # bits have two categories
        at = options.index("--num-categories")
        del options[at : at + 2]
    if "gaussian-mixture" in words:  # its code is one component
        at = options.index("--num-latents")
        del options[at : at + 2]
    if "semi-supervised" in words:  # its code is the class
        del options[options.index("--num-latents") : options.index("--num-categories") + 2]
    return [*words, *options, *grid, *processes]


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    write_mnist_like(tmp_path / "data" / "MNIST" / "raw", num_train=100, num_test=20)
    frame, labels = table("wine")
    for name in ("wine.csv", "new.csv"):
        frame.assign(cultivar=labels).to_csv(tmp_path / name, index=False)
    people = frame[["ash", "proline"]].rename(columns={"ash": "age", "proline": "id"})
    people.to_csv(tmp_path / "people.csv", index=False)
    pd.DataFrame({"tea": range(100), "rose": [2] * 100}).to_csv(tmp_path / "documents.csv", index=False)
    people.mask(people > 1500).to_parquet(tmp_path / "people.parquet")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def finished_run(
    tmp_path_factory: pytest.TempPathFactory, without_rendering: Callable[[], AbstractContextManager[None]]
) -> Callable[[str], Path]:
    """Return a run of `train` or `compare`, or one of `OTHERS`, made once; use a copy, since commands write into it."""
    made: dict[str, Path] = {}

    def find(name: str) -> Path:
        if name not in made:
            folder = tmp_path_factory.mktemp(name) / "run"
            words = ["train", *OTHERS[name]] if name in OTHERS else [name]
            with without_rendering():
                assert main(smaller([*words, "--output", str(folder)])) == 0
            made[name] = folder
        return made[name]

    return find


def dask_cluster(words: list[str]) -> Any:
    if "dask" not in words:
        return nullcontext()
    distributed = pytest.importorskip("distributed")
    # Use any free port: without an address the cluster takes a fixed one, which another test worker may be using.
    return distributed.LocalCluster(n_workers=1, threads_per_worker=1, processes=False, dashboard_address=":0")


def takes(words: list[str]) -> Iterator[Path]:
    """Return the runs that a command reads, not those that it makes."""
    for before, word in pairwise(words):
        if RUN.fullmatch(word) and before not in ("--output", "-o"):
            yield Path(word)


@pytest.mark.parametrize("command", OURS, ids=str)
def test_a_command_that_is_shown_runs_to_its_end(
    command: Any,
    workplace: Path,
    finished_run: Callable[[str], Path],
    server: Server,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> None:
    monkeypatch.setattr(cell_module, "NUM_DRAWS", 2)
    if command not in RENDERED:
        request.getfixturevalue("unrendered")
    if command.words[1] in ("train", "compare", "resume") and command not in RENDERED:  # a report of each is enough
        request.getfixturevalue("unreported")
    for run in takes(command.words):
        usual = "compare" if "compare" in run.name else "train"
        shutil.copytree(finished_run(run.name if run.name in OTHERS else usual), run)
    if command.words[0] == "torchrun":
        launcher, module = command.words.index("-m"), command.words.index("pyro_gvae") + 1
        options, words = command.words[1:launcher], smaller(command.words[module:])
        if "--shard" in words:
            words[words.index("--output") + 1] = str(workplace / "run")
            launched = [*options, "-m", "pyro_gvae", *words]
            done = server.run(*launched, script=ROOT / "tests" / "forked_torchrun.py")
            assert done.code == 0, done.err
            return
        options += ["--nproc-per-node", "1"]  # `test_distributed.py` tests two
        line = [sys.executable, "-m", "torch.distributed.run", *options, "-m", "pyro_gvae", *words]
        done = subprocess.run(line, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-2000:]
        return
    with dask_cluster(command.words) as cluster:
        words = smaller(command.words[1:])
        if cluster:
            words[words.index("--scheduler") + 1] = cluster.scheduler_address
        assert main(words) == 0


def test_the_commands_that_are_shown_are_all_that_there_are() -> None:
    """The test fails for a new command that the documents do not show."""
    from pyro_gvae.cli.main import COMMANDS

    assert {command.words[1] for command in OURS if command.words[0] == "pyro-gvae"} == {*COMMANDS}
