"""The experiments, each of them whole on a tiny size, and what they share."""

import dataclasses
import sys
from pathlib import Path

import pandas as pd
import pyro
import pytest
import torch
from pyro.infer import Trace_ELBO, TraceEnum_ELBO

sys.path.insert(0, str(Path(__file__).parents[1] / "experiments"))

import article
import bound_gaps
import cells
import crossover
import gradient_fidelity
import reinmax_protocol
import relaxed_vs_exact
import semi_supervised
import stages
from cells import Places

from pyro_gvae import enumerated
from pyro_gvae.results import sole_writer
from pyro_gvae.training import Training

pytestmark = pytest.mark.slow  # many recordings, or processes


@pytest.fixture
def places(tmp_path):
    return Places(results=tmp_path / "results", figures=tmp_path / "figures", runs=tmp_path / "runs")


SMOKES = {
    "reinmax_protocol": lambda places: reinmax_protocol.main(
        places, estimators=("reinmax", "gumbel-softmax", "exact"), epochs=2, smoke=True
    ),
    "relaxed_vs_exact": lambda places: relaxed_vs_exact.main(
        places, problems=("digits 8x4",), seeds=(0,), temperatures=(0.5,), scale=0.01, smoke=True
    ),
    "stages": lambda places: stages.main(places, epochs=6, plans=("soft", "soft, 3 exact"), smoke=True),
    "bound_gaps": lambda places: bound_gaps.main(
        places, dataset="digits", epochs=2, exact_epochs=1, seeds=(0,), temperatures=(0.4,), num_test=20, smoke=True
    ),
    "gradient_fidelity": lambda places: gradient_fidelity.main(
        "reinmax", places, epochs=(0,), estimators=("reinmax", "gumbel-softmax"), num_samples=32, smoke=True
    ),
    "crossover": lambda places: crossover.main(
        places, datasets=("digits",), seconds=0.2, estimators=("exact", "reinmax"), smoke=True
    ),
    "article": lambda places: article.main(places, estimators=("the article", "straight-through"), smoke=True),
    "semi_supervised": lambda places: semi_supervised.main(places, steps=3, smoke=True),
}


SLOW = {"crossover", "relaxed_vs_exact", "reinmax_protocol"}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow if name in SLOW else ()) for name in SMOKES]
)
def test_a_smoke_run_writes_numbers_and_figures_and_is_not_repeated(name, places, monkeypatch):
    SMOKES[name](places)
    written = {path: path.read_text() for path in places.results.glob(f"{name}*.csv")}
    assert written and all(len(pd.read_csv(path)) > 1 for path in written)
    assert any(places.figures.glob(f"{name}*.png")) and any(places.figures.glob(f"{name}*.svg"))
    monkeypatch.setattr(cells, "_measured", None)  # nothing is left to be measured
    SMOKES[name](places)
    assert {path: path.read_text() for path in places.results.glob("*.csv")} == written


@pytest.mark.slow
def test_a_longer_call_goes_on_where_a_shorter_one_stopped(places, monkeypatch):
    def epochs(number, where):
        return reinmax_protocol.main(where, estimators=("reinmax",), epochs=number, smoke=True)

    whole = epochs(2, dataclasses.replace(places, results=places.results / "b", runs=places.runs / "b"))
    epochs(1, places)
    steps = []
    advance = Training.advance
    monkeypatch.setattr(Training, "advance", lambda self: (steps.append(self.state.step), advance(self)))
    table = epochs(2, places)
    assert steps[0] == table["step"].iloc[0] > 0  # not trained again
    numbers = ["epoch", "train_objective", "test_elbo", "test_log_evidence"]
    pd.testing.assert_frame_equal(table[numbers], whole[numbers])  # bit for bit


def test_a_cell_that_fails_stops_no_other(places, capsys):
    def measure(cell):
        if cell["seed"] == 1:
            raise ValueError("Expected finite losses.")
        return [{"loss": 2.0 * cell["seed"]}]

    grid = [{"seed": seed} for seed in range(4)]
    with pytest.raises(ValueError, match=r"Expected finite losses\."):
        cells.run_cells("three_of_four", grid, measure, places)
    assert "failed: {'seed': 1}: Expected finite losses." in capsys.readouterr().err
    assert pd.read_csv(places.results / "three_of_four.csv").to_dict("list") == {"seed": [0, 2, 3], "loss": [0, 4, 6]}
    mended = cells.run_cells("three_of_four", grid, lambda cell: [{"loss": -1.0}], places)
    assert mended.to_dict("list") == {"seed": [0, 2, 3, 1], "loss": [0, 4, 6, -1]}  # the others are not run again


def test_two_processes_do_not_write_one_table(places):
    (places.runs / "grid").mkdir(parents=True)
    with sole_writer(places.runs / "grid"), pytest.raises(ValueError, match="one works in"):
        cells.run_cells("grid", [{"seed": 0}], lambda cell: [{}], places)


def test_a_label_that_is_summed_over_has_the_elbo_of_a_sum_over_labels():
    vae = semi_supervised.M2(6, 3, semi_supervised.Sizes(hidden=5, latent=2))
    x = torch.rand(4, 6).round()
    labels = torch.eye(3)
    log_q = vae.classifier(x).log_softmax(-1)  # (B, K)
    with torch.no_grad(), pyro.validation_enabled(False):
        known = Trace_ELBO(num_particles=2000, vectorize_particles=True, max_plate_nesting=1)
        summed = TraceEnum_ELBO(num_particles=2000, vectorize_particles=True, max_plate_nesting=1)
        by_label = [
            [-known.loss(vae.model, vae.guide, x[i : i + 1], labels[k : k + 1]) for k in range(3)] for i in range(4)
        ]
        expected = (log_q.exp() * (torch.tensor(by_label) - log_q)).sum()
        found = -summed.loss(enumerated(vae.model), enumerated(vae.guide), x)
    assert found == pytest.approx(expected.item(), abs=0.15)
    assert found != pytest.approx(torch.tensor(by_label).mean(1).sum().item(), abs=0.15)  # without the entropy of q


def test_a_label_that_was_interrupted_goes_on_where_it_was(places, monkeypatch):
    monkeypatch.setattr(semi_supervised, "CHECKPOINT_EVERY", 2)
    cell = {"estimator": "gumbel-softmax", "classes": 10, "seed": 0, "steps": 5, "weight": 50.0}
    elsewhere = dataclasses.replace(places, runs=places.runs / "whole")
    [whole] = semi_supervised.measure(cell, places=elsewhere, smoke=True)
    step, taken = semi_supervised.Step.__call__, []

    def interrupted(self, x):
        taken.append(x)
        if len(taken) == 4:
            raise KeyboardInterrupt
        return step(self, x)

    monkeypatch.setattr(semi_supervised.Step, "__call__", interrupted)
    with pytest.raises(KeyboardInterrupt):
        semi_supervised.measure(cell, places=places, smoke=True)
    [resumed] = semi_supervised.measure(cell, places=places, smoke=True)
    assert len(taken) == 4 + 3  # steps 2, 3 and 4 after the checkpoint of two
    assert (resumed["elbo"], resumed["accuracy"]) == (whole["elbo"], whole["accuracy"])  # bit for bit


def test_what_cannot_be_is_one_sentence_and_exit_code_2(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["stages.py", "--epochs", "3"])
    with pytest.raises(SystemExit) as ended:
        cells.command(stages.main)
    assert ended.value.code == 2
    assert capsys.readouterr().err == (
        "stages.py: Expected at least 6 epochs, of which up to 5 are the last stage's, but found 3.\n"
    )


def test_a_level_is_passed_on_a_straight_line():
    curves = pd.DataFrame({"seconds": [1.0, 2.0, 4.0], "test_elbo": [-200.0, -130.0, -120.0]})
    assert stages.passes(curves, 125.0) == 4.0  # at the evaluation that shows it
    assert crossover.passes(curves["seconds"].to_numpy(), curves["test_elbo"].to_numpy(), -125.0) == 3.0


def test_the_published_curves_are_those_of_their_epochs():
    assert reinmax_protocol.published("8x4", "reinmax", "test", 5) == 148.7
    assert reinmax_protocol.published("8x4", "gapped-straight-through", "train", 160) == 128.31
    assert reinmax_protocol.published("8x4", "exact", "train", 5) is None


def test_differences_are_those_of_the_ends_of_two_budgets():
    row = {"temperature": 0.5, "seed": 0, "test_elbo": -1.0, "test_log_evidence": -1.0, "seconds": 1.0}
    final = pd.DataFrame(
        {"problem": problem, "budget": "seconds", "estimator": name, **row, "test_elbo": elbo}
        for problem, elbos in {"a": (-3.0, -2.0), "b": (-7.0, -9.0)}.items()
        for name, elbo in zip(("exact", "gumbel-softmax, relaxed KL"), elbos, strict=True)
    )
    found = relaxed_vs_exact.differences(final).set_index("problem")
    assert found["test_elbo"].to_dict() == {"a": 1.0, "b": -2.0}
    assert set(found["estimator"]) == {"gumbel-softmax, relaxed KL, t=0.5"}
