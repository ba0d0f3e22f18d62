"""Run folders from a stranger: commands run none of their code, and touch nothing outside unless the call asks."""

import json
import os
import shutil
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from strangers import command, compare_run, contents, rewrite, train_run

from pyro_gvae.cli import main as main_module
from pyro_gvae.cli.arguments import parse
from pyro_gvae.cli.main import _resume_by
from pyro_gvae.compare import run as compare_module
from pyro_gvae.config.train import TrainConfig
from pyro_gvae.data.datasets import load
from pyro_gvae.models.categorical_vae import CategoricalVAE
from pyro_gvae.runs import config as config_module
from pyro_gvae.runs.config import read_train_config
from pyro_gvae.runs.folder import check_own
from pyro_gvae.train import launch, setup
from pyro_gvae.train.fit import Fit, fit

#: Settings of a stranger that refer to things outside of the folder.
OUTSIDE = {
    "data_dir": "/stranger/data",
    "download": True,
    "device": "cuda:7",
    "compile": True,
    "output": "/stranger/output",
    "workers": 64,
    "backend": "dask",
    "scheduler": "tcp://stranger:8786",
}
FEW = {
    "resume": {},
    "report": {},
    "explore": {},
    "evaluate": {"num_data": 4, "num_particles": 4},
    "encode": {"num_data": 4},
    "reconstruct": {"num_data": 4},
    "sample": {"num_samples": 4},
    "gaps": {"num_data": 4, "num_particles": 2},
}
#: Files and folders of a run of train that a link may replace.
LINKED = [
    *("config.json", "metrics.jsonl", "checkpoint.safetensors", "weights.safetensors", ".lock", "report.html"),
    *("figures", "evaluation", "codes", "reconstructions", "samples", "tensorboard", "gaps.csv", "best.safetensors"),
    *(".metrics.jsonl.0123456789abcdef.tmp", "figures/gaps.png", "deep/er/anything"),
]


@pytest.fixture(scope="module")
def trained(tmp_path_factory, without_rendering):
    with without_rendering():
        return train_run(tmp_path_factory.mktemp("strangers") / "trained")


@pytest.fixture(scope="module")
def compared(tmp_path_factory, without_rendering):
    with without_rendering():
        return compare_run(tmp_path_factory.mktemp("strangers") / "compared")


@pytest.fixture
def asked(monkeypatch):
    """Record the requests for data, for the training of each cell, and for a cluster."""
    calls = []

    def loaded(name, **options):
        calls.append((options["data_dir"].name, options["download"], "cpu"))
        return load(name, **options)

    def trained(job):
        calls.append((job.config.data_dir.name, job.config.download, job.config.device))

    def reached(address):
        raise ValueError(f"connected to {address}")

    monkeypatch.setattr(setup, "load", loaded)
    monkeypatch.setattr(compare_module, "train_cell", trained)
    monkeypatch.setattr(compare_module.sweep, "on_cluster", reached)
    return calls


def is_unfinished(run):
    """Make a comparison unfinished, so that it has a cell to train."""
    for pictures in run.glob("cells/*/pictures.safetensors"):
        pictures.unlink()


@pytest.mark.parametrize("name", FEW)
@pytest.mark.parametrize("kind", ["trained", "compared"])
def test_settings_that_reach_outside_are_those_of_this_call(kind, name, trained, compared, asked, tmp_path, unrendered):
    run = shutil.copytree({"trained": trained, "compared": compared}[kind], tmp_path / "run")
    hostile = {name: OUTSIDE[name] for name in ("data_dir", "download", "device", "compile", "output")}
    for folder in (run, *run.glob("cells/*")):
        rewrite(folder, lambda old: old | {"train": old["train"] | hostile} if "train" in old else old | OUTSIDE)
    if name == "resume":
        is_unfinished(run)
    command(name, run, **FEW[name])
    assert asked or (kind, name) == ("compared", "report")  # it only draws the results in the folder
    assert set(asked) <= {("data", False, "cpu")}
    assert kind == "compared" or not read_train_config(run).compile


def test_what_this_call_says_is_done(trained, compared, asked, tmp_path):
    """The negative control: the same settings are followed if the call itself has them."""
    for number, original in enumerate((trained, compared)):
        run = shutil.copytree(original, tmp_path / str(number))
        is_unfinished(run)
        command("resume", run, data_dir=Path("/mine"), download=True)
        assert ("mine", True, "cpu") in asked and {folder for folder, *_ in asked} == {"mine"}
    with pytest.raises(ValueError, match="connected to tcp://mine:1"):
        command("resume", run, scheduler="tcp://mine:1")


def test_memory_and_a_compiler_are_what_this_call_says(trained, compared, tmp_path, monkeypatch):
    """A folder that asks for too much memory is refused unless the call says how much; its `compile` is ignored."""
    configs, line = [], {"train_elbo": None, "test_elbo": None, "elbo_is": "sampled"}

    def fitted(vae, data, config, **options):
        configs.append((config.max_memory, config.compile))
        return Fit(0, 0.0, "all stages", [line], [])

    monkeypatch.setattr(launch, "fit", fitted)
    monkeypatch.setattr(compare_module, "train_cell", lambda job: configs.append(job.config.max_memory))
    runs = [shutil.copytree(run, tmp_path / name) for name, run in (("trained", trained), ("compared", compared))]
    is_unfinished(runs[1])
    much = {"max_memory": 1e6, "compile": True}
    for run in runs:
        rewrite(run, lambda old: old | {"train": old["train"] | much} if "train" in old else old | much)
        with pytest.raises(ValueError, match=r"max_memory of at most the .* GB of this machine, but found 1e\+06 GB"):
            command("resume", run)
    command("resume", runs[0], max_memory=2.0)
    command("resume", runs[0], max_memory=3.0, compile=True)
    command("resume", runs[1], max_memory=2.0)
    assert configs == [(2.0, None), (3.0, True), 2.0]


@pytest.mark.parametrize(
    ("kind", "options", "sentence"),
    [
        ("compared", {"compile": True}, "Expected compile with a training run"),
        ("trained", {"workers": 2}, "Expected workers and scheduler with a comparison"),
        ("compared", {"more": "3"}, "Expected more, steps and seconds with a training run"),
        ("trained", {"scheduler": "tcp://mine:1"}, "Expected workers and scheduler with a comparison"),
        ("compared", {"device": "cuda"}, "Expected a device with a training run"),
    ],
)
def test_what_acts_on_nothing_is_refused(kind, options, sentence, request):
    with pytest.raises(ValueError, match=sentence):
        command("resume", request.getfixturevalue(kind), **options)


@pytest.mark.parametrize("name", LINKED)
def test_no_command_follows_a_link_out_of_the_folder(name, trained, tmp_path):
    run, outside = shutil.copytree(trained, tmp_path / "run"), tmp_path / "outside"
    outside.mkdir()
    (outside / "mine").write_text("not yours")
    link = run / name
    link.parent.mkdir(parents=True, exist_ok=True)
    if link.is_dir():
        shutil.rmtree(link)
    elif link.exists():
        shutil.copy(link, outside / "mine")
        link.unlink()
    link.symlink_to(outside if "." not in name else outside / "mine")
    before = contents(outside)
    for command_name, options in FEW.items():
        with pytest.raises(ValueError, match="is a link or "):
            command(command_name, run, **options)
    assert contents(outside) == before and link.is_symlink()


#: Command -> the folder that it reads or writes.
INNER = {
    **{"evaluate": "evaluation", "encode": "codes", "reconstruct": "reconstructions", "sample": "samples"},
    **{"report": "figures", "gaps": "figures"},
}


def after_the_last_look(monkeypatch, original, folder, name, change):
    """Return a copy of a folder that changes right after the command's last check of it."""
    looks = 0

    def look(run):
        nonlocal looks
        check_own(run)
        looks += 1
        if run == changed and looks == most:
            change(changed)

    monkeypatch.setattr(config_module, "check_own", look)
    changed, most = None, 0
    command(name, shutil.copytree(original, folder / "left in peace"), **FEW[name])
    changed, most, looks = shutil.copytree(original, folder / "run"), looks, 0
    return changed


def swap(inner, outside):
    """Replace a folder of a run by a link to another folder."""

    def change(run):
        if (run / inner).exists():
            (run / inner).rename(run / "mine")
        (run / inner).symlink_to(outside)

    return change


@pytest.mark.parametrize(
    ("name", "is_guarded"),
    [
        *((name, True) for name in ("encode", "reconstruct", "sample")),
        *(pytest.param(name, True, marks=pytest.mark.slow) for name in ("evaluate", "report", "gaps")),
        pytest.param("sample", False, id="negative control"),
    ],
)
def test_a_folder_that_becomes_a_link_meanwhile_is_not_written_into(
    name, is_guarded, trained, tmp_path, monkeypatch, unrendered
):
    outside = tmp_path / "outside"
    outside.mkdir()
    if not is_guarded:
        monkeypatch.setattr(main_module, "staying_inside", nullcontext)
    run = after_the_last_look(monkeypatch, trained, tmp_path, name, swap(INNER[name], outside))
    with pytest.raises(ValueError, match="is a link or not a folder") if is_guarded else nullcontext():
        command(name, run, **FEW[name])
    assert (run / INNER[name]).is_symlink() and bool(contents(outside)) is not is_guarded


@pytest.mark.slow
@pytest.mark.parametrize("name", ["report", "resume"])
def test_cells_that_become_a_link_meanwhile_are_neither_read_nor_trained(
    name, compared, tmp_path, monkeypatch, unrendered
):
    outside = shutil.copytree(compared / "cells", tmp_path / "outside")
    for cell in outside.iterdir():
        (cell / "error.txt").write_text("a secret")
        (cell / "pictures.safetensors").unlink()
    before = contents(outside)
    run = after_the_last_look(monkeypatch, compared, tmp_path, name, swap("cells", outside))
    with pytest.raises(ValueError, match="is a link or not a folder"):
        command(name, run, **FEW[name])
    assert contents(outside) == before and "secret" not in (run / "report.html").read_text()


def test_event_files_stay_in_the_folder(tmp_path, monkeypatch):
    """TensorBoard opens them by name, repeatedly."""
    run, outside, mine = tmp_path / "run", tmp_path / "outside", tmp_path / "mine"
    outside.mkdir()

    def measure(training):
        if not mine.exists():
            (run / "tensorboard").rename(mine)
            (run / "tensorboard").symlink_to(outside)
        return {}

    vae = CategoricalVAE(data_dim=6, num_latents=2, num_categories=3, hidden=(5,))
    config = TrainConfig(stages="exact:2steps", batch_size=8, log=("tensorboard",))
    fit(vae, torch.ones(8, 6), config, output=run, progress=False, measure=measure)
    assert not contents(outside) and sum(path.stat().st_size for path in mine.iterdir()) > 200


@pytest.mark.filterwarnings("ignore:.* has lost evaluations of the run")
@pytest.mark.parametrize("harm", ["finished", "lost history", "lost weights"])
def test_no_command_writes_through_hard_links(harm, trained, tmp_path, unrendered):
    """Files that a stranger's folder shares with mine, as in a backup made of hard links, do not change either."""
    mine = shutil.copytree(trained, tmp_path / "mine")
    run = shutil.copytree(mine, tmp_path / "run", copy_function=os.link)
    for name in {"lost history": ["metrics.jsonl"], "lost weights": ["weights.safetensors"]}.get(harm, []):
        (run / name).unlink()
    before = contents(mine)
    for command_name, options in FEW.items():
        command(command_name, run, **options)
    assert contents(mine) == before and (run / "report.html").exists()


@pytest.mark.parametrize("name", ["config.json", "metrics.jsonl", "weights.safetensors"])
def test_no_command_waits_for_a_pipe(name, trained, tmp_path):
    run = shutil.copytree(trained, tmp_path / "run")
    (run / name).unlink()
    os.mkfifo(run / name)
    for command_name, options in FEW.items():
        with pytest.raises(ValueError, match="is a link or "):
            command(command_name, run, **options)


@pytest.mark.parametrize("seed", ["0/../../../secret", "../x", None, -1, 1.5, [0], True])
def test_a_cell_lies_in_the_folder(seed, compared, tmp_path):
    run = shutil.copytree(compared, tmp_path / "run")
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "error.txt").write_text("a secret")
    rewrite(run, lambda old: old | {"cells": [cell | {"seed": seed} for cell in old["cells"]]})
    with pytest.raises(ValueError, match="is damaged"):
        command("report", run)
    assert "secret" not in (run / "report.html").read_text()


@pytest.mark.parametrize("size", [{"num_latents": 10**8}, {"num_categories": 10**12}, {"epochs": 10**18}])
def test_sizes_cost_a_report_nothing(size, compared, tmp_path):
    run = shutil.copytree(compared, tmp_path / "run")
    rewrite(run, lambda old: old | size)
    command("report", run)
    page = (run / "report.html").read_text()
    assert ("about 10^47712125 joint codes" in page) is ("num_latents" in size)


def test_a_file_of_a_terabyte_is_not_read(trained, tmp_path):
    for name, reader in (("config.json", "report"), ("metrics.jsonl", "report"), ("checkpoint.safetensors", "resume")):
        run = shutil.copytree(trained, tmp_path / name)
        os.truncate(run / name, 2**40)  # a sparse file, which takes no space
        with pytest.raises(ValueError, match="Expected"):
            command(reader, run)


def test_stopped_runs_are_resumed_by_what_reaches_out_of_them():
    """The command that is printed has the settings that the folder does not contain."""
    config = parse(["train", "--data-dir", "my data", "--device", "cuda:1", "--download"])
    shown = "pyro-gvae resume run --data-dir 'my data' --download --device cuda:1"
    assert _resume_by(config, Path("run")) == shown
    assert _resume_by(parse(["compare", "--workers", "2"]), Path("run")) == "pyro-gvae resume run --workers 2"
    assert _resume_by(parse(["train", "--max-memory", "2"]), Path("run")) == "pyro-gvae resume run"
    again = ["resume", "run", "--max-memory", "2.0", "--compile"]
    assert _resume_by(parse(again), Path("run")) == "pyro-gvae resume run --compile --max-memory 2.0"
    never = parse(["train", "--no-compile", "--steps", "3"])
    assert never.compile is False and parse(["train", "--compile", "--steps", "3"]).compile is True
    assert _resume_by(never, Path("run")) == "pyro-gvae resume run --no-compile"


def test_names_that_are_not_text(trained, tmp_path, unrendered):
    """The name of a folder is bytes, not text."""
    run = shutil.copytree(trained, os.fsdecode(os.fsencode(tmp_path) + b"/run-\xff"))
    for name in ("resume", "evaluate", "report"):
        command(name, Path(run), **FEW[name])
    assert json.loads((Path(run) / "evaluation" / "gumbel-softmax-4steps-exact-2steps-seed0.json").read_text())["test"]
