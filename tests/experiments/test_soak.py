"""The soak test: a short round of everything, and negative controls of its checks."""

import json
import multiprocessing
import shutil
import sys
from pathlib import Path

import pytest
import soak
import torch
from matplotlib.figure import Figure
from safetensors.torch import load_file, save_file

from pyro_gvae.cli.main import main
from pyro_gvae.jit.traced_elbo import TracedELBO


@pytest.mark.slow
def test_the_smoke_run(server, tmp_path):
    done = server.run(str(tmp_path), script=__file__)
    assert done.code == 0, done.err
    found = json.loads((tmp_path / "soak.json").read_text())
    assert json.loads(done.out.splitlines()[-1]) == found
    assert found["rounds"] == 1 and found["runs"] == 2 and found["fits"] == 2 and found["comparisons"] == 1
    assert found["kills"] == found["resumes"] == 1 and found["lost"] == 0
    assert not list((tmp_path / "runs").iterdir())


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    run = tmp_path_factory.mktemp("runs") / "first"
    assert main(["train", *soak.SMALL, "--stages", "exact:2steps", "--output", str(run)]) == 0
    return run


@pytest.fixture
def pair(first, tmp_path):
    """Return two identical runs."""
    second = tmp_path / "second"
    shutil.copytree(first, second)
    soak._check_same(first, second)
    return first, second


def lose_a_line(run):
    text = (run / "metrics.jsonl").read_text()
    (run / "metrics.jsonl").write_text(text.splitlines(keepends=True)[0])


def double_a_line(run):
    text = (run / "metrics.jsonl").read_text()
    (run / "metrics.jsonl").write_text(text + text.splitlines(keepends=True)[-1])


def move_a_weight(run):
    weights = load_file(run / "weights.safetensors")
    name = "decoder.1.bias" if "decoder.1.bias" in weights else sorted(weights)[0]
    save_file(weights | {name: torch.nextafter(weights[name], weights[name] + 1)}, run / "weights.safetensors")


def leave_a_half(run):
    (run / ".checkpoint.safetensors.1.tmp").touch()


@pytest.mark.parametrize("harm", [lose_a_line, double_a_line, move_a_weight, leave_a_half])
def test_what_is_lost_is_noticed(harm, pair):
    harm(pair[1])
    with pytest.raises(soak.LostError):
        soak._check_same(*pair)


def test_growth_is_that_after_the_first_fits():
    assert soak._growth([100, 200, 300, 300, 300, 300, 300, 300]) == 0
    assert soak._growth([300.0 + 10 * fit for fit in range(40)]) == 10


if __name__ == "__main__":  # in a process with one thread, which forks
    folder, fork = Path(sys.argv[1]), multiprocessing.get_context("fork")
    soak.multiprocessing.get_context = lambda method: fork
    TracedELBO.outcome = lambda *_, **__: None  # as in `conftest.unrecorded`
    Figure.savefig = lambda self, path, **_: Path(path).write_bytes(b"")  # as in `conftest.unrendered`
    soak.soak(smoke=True, results=folder / "soak.json", folder=folder / "runs")
