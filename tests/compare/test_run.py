"""A comparison end to end: equal starts, scores of the discrete model, and a complete run folder."""

import json
from contextlib import nullcontext
from dataclasses import replace

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from pyro_gvae.cli.arguments import parse
from pyro_gvae.cli.commands import results_table
from pyro_gvae.cli.main import main
from pyro_gvae.cli.planned import plan_compare_command
from pyro_gvae.compare import run as compare_module
from pyro_gvae.compare.cell import train_cell
from pyro_gvae.compare.gather import read_results
from pyro_gvae.compare.grid import make_cells
from pyro_gvae.compare.run import compare, prepare
from pyro_gvae.config.compare import CompareConfig
from pyro_gvae.data.datasets import load
from pyro_gvae.runs.config import write_config
from pyro_gvae.runs.files import write_json
from pyro_gvae.runs.folder import PICTURES, cell_folder
from pyro_gvae.runs.frames import read_json_lines
from pyro_gvae.train import training
from pyro_gvae.train.step import make_step

SMALL = CompareConfig(
    estimators=("gumbel-softmax", "exact"),
    num_latents=2,
    num_categories=4,
    hidden=(32,),
    epochs=2,
    evaluations=2,
    seeds=(0, 1),
)
EPOCH = replace(SMALL, epochs=1, evaluations=1, seeds=(3,))


@pytest.fixture(scope="module")
def run(tmp_path_factory, without_rendering):
    with without_rendering():
        return compare(replace(SMALL, output=tmp_path_factory.mktemp("runs") / "run"))


@pytest.fixture(scope="module")
def metrics(run):
    return read_json_lines(run / "metrics.jsonl")


def test_the_folder_is_whole(run):
    found = {path.relative_to(run).as_posix() for path in run.rglob("*") if path.is_file()}
    expected = {"config.json", "metrics.jsonl", "report.html", "results.csv", "summary.csv", "differences.csv"}
    of_cells = ("config.json", "metrics.jsonl", "checkpoint.safetensors", "weights.safetensors", PICTURES)
    cells = [cell_folder(run, name, seed).relative_to(run) for name in SMALL.estimators for seed in SMALL.seeds]
    expected |= {(cell / name).as_posix() for cell in cells for name in of_cells}
    assert expected <= found and any(name.endswith(".png") for name in found)
    assert not [name for name in found if name.endswith((".tmp", ".parquet"))]
    assert json.loads((run / "config.json").read_text())["num_latents"] == 2


def test_every_estimator_starts_from_the_same_weights(run, metrics):
    start = metrics[metrics["step"] == 0].set_index(["seed", "estimator"])
    for seed in SMALL.seeds:
        for column in ("test_elbo", "test_log_evidence", "train_elbo"):
            values = start.loc[seed, column]
            assert values.nunique() == 1
        arrays = [load_file(cell_folder(run, name, seed) / PICTURES) for name in SMALL.estimators]
        assert torch.equal(arrays[0]["inputs"], arrays[1]["inputs"])
        assert torch.equal(arrays[0]["reconstructions_start"], arrays[1]["reconstructions_start"])
        assert not torch.equal(arrays[0]["reconstructions_end"], arrays[1]["reconstructions_end"])
    assert start.loc[0, "test_elbo"].iloc[0] != start.loc[1, "test_elbo"].iloc[0]


def test_every_cell_is_evaluated_and_learns(metrics):
    assert len(metrics) == len(SMALL.estimators) * len(SMALL.seeds) * (SMALL.evaluations + 1)
    for _, cell in metrics.groupby(["estimator", "seed"]):
        assert cell["step"].is_monotonic_increasing and cell["seconds"].is_monotonic_increasing
        assert cell["test_elbo"].iloc[-1] > cell["test_elbo"].iloc[0] + 1
        assert (cell["test_elbo"] <= cell["test_log_evidence"] + 1e-4).all()


def test_the_exact_objective_is_the_discrete_elbo_and_the_relaxed_one_is_not(metrics):
    gap = (metrics["test_objective"] - metrics["test_elbo"]).abs()
    exact = metrics["estimator"] == "exact"
    assert gap[exact].max() < 1e-3
    assert gap[~exact & (metrics["step"] > 0)].max() > 0.05


def test_results_are_the_last_evaluations(run, metrics):
    results = pd.read_csv(run / "results.csv").assign(speed=lambda rows: rows["step"] / rows["seconds"])
    assert len(results) == 4 and (results["step"] == metrics["step"].max()).all()
    torch.testing.assert_close(*(torch.tensor(results[of].values) for of in ("steps_per_second", "speed")))
    text = results_table(run)
    assert all(name in text for name in SMALL.estimators) and "±" in text


@pytest.fixture(scope="module")
def noted(tmp_path_factory):
    """Return a run of one epoch, and the batches that each estimator saw."""
    seen = {}

    def noting(vae, estimator, **options):
        step, batches = make_step(vae, estimator, **options), seen.setdefault(estimator.name, [])
        call = step.__class__.__call__

        class Noting(step.__class__):
            def __call__(self, x):
                batches.append(x.clone())
                return call(self, x)

        step.__class__ = Noting
        return step

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(training, "make_step", noting)
        patched.setattr(compare_module, "write_report", lambda run: None)
        run = compare(replace(EPOCH, output=tmp_path_factory.mktemp("runs") / "run"))
    return run, seen


@pytest.mark.slow
def test_a_run_repeats_itself(noted, tmp_path, unreported):
    runs = noted[0], compare(replace(EPOCH, output=tmp_path / "run"))
    first, second = (read_json_lines(run / "metrics.jsonl") for run in runs)
    numbers = ["train_objective", "train_elbo", "test_objective", "test_elbo", "test_log_evidence"]
    pd.testing.assert_frame_equal(first[numbers], second[numbers])


@pytest.mark.slow
def test_how_often_a_run_is_evaluated_does_not_change_it(run, tmp_path, unreported):
    config = replace(SMALL, evaluations=1, seeds=(0,), estimators=("gumbel-softmax",), output=tmp_path / "run")
    seldom = read_json_lines(compare(config) / "metrics.jsonl")["test_elbo"].iloc[-1]
    often = read_json_lines(run / "metrics.jsonl").query("estimator == 'gumbel-softmax' and seed == 0")
    assert often["test_elbo"].iloc[-1] == seldom


@pytest.mark.slow
def test_every_estimator_sees_the_same_batches_in_the_same_order(noted):
    _, seen = noted
    first, second = (torch.cat(seen[name]) for name in SMALL.estimators)
    assert len(first) == 1437 and torch.equal(first, second)
    assert not torch.equal(first, torch.cat(seen["exact"][::-1]))  # the control: another order is noticed


@pytest.mark.slow
def test_a_finished_run_gets_further_estimators_and_seeds(tmp_path, unreported):
    first = replace(SMALL, estimators=("exact:1steps",), seeds=(0,), evaluations=1, output=tmp_path / "run")
    run = compare(first)
    finished = cell_folder(run, "exact:1steps", 0) / PICTURES
    before, written = read_results(run), finished.stat().st_mtime_ns
    told = []
    compare(replace(first, estimators=("reinforce-loo:1steps",), seeds=(1,)), tell=told.append)
    assert told[-1] == f"'{run}' gets 3 further cells beside its 1."
    after = read_results(run)
    assert finished.stat().st_mtime_ns == written and set(after["status"]) == {"finished"}
    assert list(zip(after["estimator"], after["seed"], strict=True)) == [
        ("exact:1steps", 0), ("reinforce-loo:1steps", 0), ("exact:1steps", 1), ("reinforce-loo:1steps", 1),
    ]  # fmt: skip
    pd.testing.assert_frame_equal(after.iloc[:1], before)
    config = json.loads((run / "config.json").read_text())
    assert config["seeds"] == [0, 1] and len(config["cells"]) == 4
    assert config["extended"][0]["before"] == {"epochs": 2, "estimators": ["exact:1steps"], "seeds": [0]}
    compare(replace(first, estimators=None), tell=told.append)  # nothing is new, and no default is added
    assert len(read_results(run)) == 4 and "further" not in told[-1]
    with pytest.raises(ValueError, match="found other values of batch_size"):
        compare(replace(first, batch_size=7))


def test_a_finished_run_gets_further_epochs(tmp_path, unreported):
    """The result is that of a run that was begun with all of them; plans with amounts of their own stay."""
    size = {"estimators": ("exact", "exact:1"), "seeds": (0,), "batch_size": 500, "evaluations": 1}
    whole = read_results(compare(replace(SMALL, **size | {"evaluations": 2}, epochs=2, output=tmp_path / "whole")))
    first = replace(SMALL, **size, epochs=1, output=tmp_path / "run")
    run = compare(first)
    own = cell_folder(run, "exact:1", 0) / PICTURES
    written, told = own.stat().st_mtime_ns, []
    assert plan_compare_command(replace(first, epochs=2)).content["left"] == 1
    compare(replace(first, epochs=2), tell=told.append)
    assert told[-1] == "Trained for 2 epochs in place of 1: exact. With amounts of their own, and unchanged: exact:1."
    found = read_results(run)
    numbers = ["estimator", "status", "epoch", "step", "train_elbo", "test_elbo", "test_log_evidence"]
    pd.testing.assert_frame_equal(found[numbers], whole[numbers], check_exact=True)
    assert own.stat().st_mtime_ns == written
    steps = read_json_lines(run / "metrics.jsonl").query("estimator == 'exact'")["step"]
    assert steps.tolist() == [0, 3, 6]  # as often as before
    assert json.loads((run / "config.json").read_text())["epochs"] == 2
    (before,) = json.loads((run / "config.json").read_text())["extended"]
    assert before["before"]["epochs"] == 1
    with pytest.raises(ValueError, match="at least the 2 epochs"):
        compare(first)


def test_what_is_not_typed_is_that_of_the_folder(tmp_path, unreported, monkeypatch):
    run = tmp_path / "run"
    write_config(run, replace(SMALL, seeds=(5,), output=run, data_dir=tmp_path).as_json() | {"cells": []})
    config = parse(["compare", "--output", str(run), "--estimators", "reinmax"])
    assert config == replace(SMALL, estimators=("reinmax",), seeds=(5,), output=run)
    assert parse(["compare", "--output", str(tmp_path / "new")]).seeds == (0, 1, 2)
    write_config(run, replace(SMALL, max_memory=1e6).as_json() | {"cells": []})
    with pytest.raises(ValueError, match="max_memory of at most"):
        parse(["compare", "--output", str(run)])


@pytest.mark.slow
def test_widths_that_are_not_given_are_those_of_the_folder(tmp_path):
    config = CompareConfig(dataset="diabetes", num_latents=1, estimators=("exact",), seeds=(0,), epochs=1)
    new = prepare(config)
    assert new.config.hidden == (32,) and {cell.train.hidden for cell in new.cells} == {(32,)}
    before = replace(config, hidden=(128,), output=tmp_path)
    cells = [{"estimator": "exact", "setting": "", "seed": 0}]
    write_json(tmp_path / "config.json", before.as_json() | {"image_shape": [1, 10], "cells": cells})
    assert prepare(replace(before, hidden=None)).config.hidden == (128,)
    with pytest.raises(ValueError, match="but found other values of hidden"):
        prepare(replace(before, hidden=(32,)))


def test_an_interrupted_run_reports_what_it_finished_and_goes_on(tmp_path, monkeypatch, unrendered):
    config = replace(SMALL, epochs=1, evaluations=1, seeds=(0,), output=tmp_path / "run")

    def interrupted(job):
        if "exact" in job.folder.name:
            raise KeyboardInterrupt
        train_cell(job)

    with monkeypatch.context() as patched:
        patched.setattr(compare_module, "train_cell", interrupted)
        with pytest.raises(KeyboardInterrupt, match="resume with: pyro-gvae resume"):
            compare(config)
    results = pd.read_csv(tmp_path / "run" / "results.csv").set_index("estimator")
    assert results["status"].to_dict() == {"gumbel-softmax": "finished", "exact": "unfinished"}
    assert "exact, seed 0: nothing was recorded." in (tmp_path / "run" / "report.html").read_text()
    finished = cell_folder(tmp_path / "run", "gumbel-softmax", 0) / PICTURES
    written = finished.stat().st_mtime_ns
    assert main(["resume", str(tmp_path / "run")]) == 0
    assert finished.stat().st_mtime_ns == written  # finished cells are not run again
    assert set(pd.read_csv(tmp_path / "run" / "results.csv")["status"]) == {"finished"}


def test_the_callers_random_state_and_param_store_stay(tmp_path, unreported):
    import pyro

    before = torch.get_rng_state()
    compare(replace(SMALL, epochs=1, evaluations=1, seeds=(0,), estimators=("exact",), output=tmp_path / "run"))
    assert torch.equal(torch.get_rng_state(), before)
    assert len(pyro.get_param_store()) == 0


@pytest.mark.slow
def test_the_same_job_on_mnist(tmp_path, mnist_root, unreported):
    size = {"num_latents": 2, "hidden": (32,), "batch_size": 500, "learning_rate": 0.01}
    size |= {"estimators": ("exact:60steps",)}
    config = CompareConfig(dataset="mnist", data_dir=mnist_root, **size, evaluations=1, seeds=(0,))
    metrics = read_json_lines(compare(replace(config, output=tmp_path / "run")) / "metrics.jsonl")
    final = metrics[metrics["step"] == metrics["step"].max()]
    assert len(final) == 1 and (final["test_log_evidence"] > -230).all()  # from -543


def test_what_is_refused_does_not_depend_on_the_clock(slow_clock):
    data = load("digits")
    large = replace(SMALL, num_latents=40, num_categories=2)
    for config, sentence in ((SMALL, None), (large, "Expected codes that can be summed in 6e")):
        cells = make_cells(config, len(data.train))
        assert {cell.train.judge for cell in cells} == {"exact"}  # as in the config.json of each cell
        with nullcontext() if sentence is None else pytest.raises(ValueError, match=sentence):
            compare_module._check_cells(config, cells, data)
