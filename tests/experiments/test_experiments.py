"""The experiments, each as a whole at a tiny size, and their shared code."""

import dataclasses
import signal
import sys
from functools import partial
from pathlib import Path

import article
import bits
import bound_gaps
import certified_width
import collapse
import common
import corpus
import crossover
import full_length
import gflownet_em
import gradient_fidelity
import hierarchy
import imputation
import kool
import networks
import pandas as pd
import priors
import programs
import pyro
import pytest
import reinmax_protocol
import relaxed_vs_exact
import second_stage
import semi_supervised
import sizes
import stages
import torch
from common import Places
from matplotlib.figure import Figure
from plans import Schedule
from processes import forking
from torch.nn.functional import cross_entropy

from pyro_gvae import estimator, exact
from pyro_gvae.config.stages import parse_stages
from pyro_gvae.runs.folder import sole_writer
from pyro_gvae.train.fit import Interrupted
from pyro_gvae.train.training import Training

pytestmark = pytest.mark.slow  # many recordings, or processes


@pytest.fixture
def places(tmp_path):
    return Places(results=tmp_path / "results", figures=tmp_path / "figures", runs=tmp_path / "runs")


SMOKES = {
    "reinmax_protocol": reinmax_protocol.main,
    "relaxed_vs_exact": relaxed_vs_exact.main,
    "stages": stages.main,
    "full_length": full_length.main,
    "bound_gaps": bound_gaps.main,
    "gradient_fidelity elbo": partial(gradient_fidelity.main, "elbo"),
    "gradient_fidelity reinmax": partial(gradient_fidelity.main, "reinmax"),
    "crossover": crossover.main,
    "collapse": collapse.main,
    "priors": priors.main,
    "imputation": imputation.main,
    "sizes": sizes.main,
    "corpus": corpus.main,
    "article": article.main,
    "semi_supervised": semi_supervised.main,
    "certified_width": certified_width.main,
    "second_stage": second_stage.main,
    "kool": kool.main,
    "bits": partial(bits.main, schedule=Schedule()),
    "gflownet_em": partial(gflownet_em.main, schedule=Schedule()),
    "hierarchy": partial(hierarchy.main, schedule=Schedule()),
    "programs": programs.main,
    "networks": networks.main,
}
WITHOUT_FIGURES = {"networks"}
SLOW = {"crossover", "relaxed_vs_exact", "reinmax_protocol"}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow if name in SLOW else ()) for name in SMOKES]
)
def test_a_smoke_run_writes_numbers_and_figures_apart_from_results(name, places, monkeypatch):
    monkeypatch.setattr(crossover, "get_context", lambda method: forking())
    SMOKES[name](dataclasses.replace(places, smoke=True))
    script = name.split()[0]
    folder = places.runs / "smoke" / script
    tables = list((folder / "results").glob(f"{script}*.csv"))
    assert tables and all(len(pd.read_csv(path)) > 1 for path in tables)
    for kind in ("png", "svg"):
        assert any((folder / "figures").glob(f"{script}*.{kind}")) == (name not in WITHOUT_FIGURES)
    assert not places.results.exists() and not places.figures.exists()


@pytest.mark.slow
def test_a_longer_call_goes_on_where_a_shorter_one_stopped(tmp_path, monkeypatch):
    config = common.tiny(reinmax_protocol.configuration("reinmax", "8x4"))
    whole = common.train(config, ["1", "2"], common.scores_on_test, tmp_path / "whole")
    begun = common.train(config, ["1"], common.scores_on_test, tmp_path / "begun")
    steps = []
    advance = Training.advance
    monkeypatch.setattr(Training, "advance", lambda self: (steps.append(self.state.step), advance(self)))
    rows = common.train(config, ["1", "2"], common.scores_on_test, tmp_path / "begun")
    assert rows[:1] == begun and steps[0] == rows[0]["step"] > 0  # not trained again
    numbers = ["epoch", "train_objective", "test_elbo", "test_log_evidence"]
    assert [[row[name] for name in numbers] for row in rows] == [[row[name] for name in numbers] for row in whole]


def test_a_cell_that_fails_stops_no_other(places, capsys):
    def measure(cell):
        if cell["seed"] == 1:
            raise ValueError("Expected finite losses.")
        return [{"loss": 2.0 * cell["seed"]}]

    grid = [{"seed": seed} for seed in range(4)]
    with pytest.raises(ValueError, match=r"Expected finite losses\."):
        common.run_cells("three_of_four", grid, measure, places)
    assert "failed: {'seed': 1}: Expected finite losses." in capsys.readouterr().err
    assert pd.read_csv(places.results / "three_of_four.csv").to_dict("list") == {"seed": [0, 2, 3], "loss": [0, 4, 6]}
    mended = common.run_cells("three_of_four", grid, lambda cell: [{"loss": -1.0}], places)
    assert mended.to_dict("list") == {"seed": [0, 2, 3, 1], "loss": [0, 4, 6, -1]}  # the others are not run again


def test_a_finished_cell_is_found_where_the_file_writes_its_numbers_otherwise(places):
    grid = [{"moment": "0.5"}, {"moment": "1"}]
    common.run_cells("moments", grid, lambda cell: [{"loss": -1.0}], places)
    common.run_cells("moments", grid, pytest.fail, places)


def test_two_processes_do_not_write_one_table(places):
    (places.runs / "grid").mkdir(parents=True)
    with sole_writer(places.runs / "grid"), pytest.raises(ValueError, match="one works in"):
        common.run_cells("grid", [{"seed": 0}], lambda cell: [{}], places)


@pytest.mark.parametrize("row", [*semi_supervised.ROWS, semi_supervised.ALONE])
def test_all_images_weigh_alike_and_labels_alone_see_no_other(row, monkeypatch):
    def rsample(self, sample_shape=()):
        return (self.loc + 0.7 * self.scale).expand(self._extended_shape(sample_shape))

    monkeypatch.setattr(torch.distributions.Normal, "rsample", rsample)
    vae = semi_supervised.m2((2, 3), 3, semi_supervised.Sizes(hidden=5, latent=2), label_weight=7.0 * 10 / 2)
    x, images, labels = torch.rand(4, 6).round(), torch.rand(2, 6).round(), torch.tensor([0, 2])
    [stage] = parse_stages(f"{semi_supervised.ROWS.get(row, 'reinforce')}:1")
    chosen = estimator(stage.estimator, **stage.options)

    def loss(pair):
        torch.manual_seed(0)
        model, guide, elbo = chosen.bind(pair)
        with pyro.get_param_store().scope(), pyro.validation_enabled(False):
            return elbo.loss(model, guide, x) / len(x)

    kind = semi_supervised.LabelsAlone if row == semi_supervised.ALONE else semi_supervised.WithLabelled
    program = kind(vae, semi_supervised.Labelled(images, labels), data_size=10)
    expected = 7 * cross_entropy(vae.classifier(images), labels)
    if row != semi_supervised.ALONE:
        without = semi_supervised.m2((2, 3), 3, semi_supervised.Sizes(hidden=5, latent=2), label_weight=0.0)
        without.load_state_dict(vae.state_dict())
        expected = expected + loss(vae) - 2 / 10 * exact.elbo(without, images, labels).mean()
    assert loss(program) == pytest.approx(expected.item(), rel=1e-5)


def test_a_label_that_was_interrupted_ends_as_it_would_have(places, monkeypatch):
    cell = {"estimator": "gumbel-softmax", "classes": 10, "seed": 0, "steps": 3, "weight": 50.0}
    places = dataclasses.replace(places, smoke=True)
    elsewhere = dataclasses.replace(places, runs=places.runs / "whole")
    [whole] = semi_supervised.measure(cell, places=elsewhere)
    advance = Training.advance

    def interrupted(self):
        if self.state.step == 2:
            raise KeyboardInterrupt
        advance(self)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(Training, "advance", interrupted)
        semi_supervised.measure(cell, places=places)
    [resumed] = semi_supervised.measure(cell, places=places)
    assert (resumed["elbo"], resumed["accuracy"]) == (whole["elbo"], whole["accuracy"])  # bit for bit


def test_bad_input_is_one_sentence_and_exit_code_2(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["stages.py", "--epochs", "3"])
    with pytest.raises(SystemExit) as ended:
        common.command(stages.main)
    assert ended.value.code == 2
    assert capsys.readouterr().err == (
        "stages.py: Expected at least 6 epochs, because the last stage takes up to 5, but found 3.\n"
    )


def test_a_stopped_experiment_says_how_to_continue(capsys, monkeypatch):
    def stopped() -> None:
        raise Interrupted(Path("runs"), signal.SIGTERM)

    monkeypatch.setattr(sys, "argv", ["stages.py"])
    with pytest.raises(SystemExit) as ended:
        common.command(stopped)
    assert ended.value.code == 128 + signal.SIGTERM
    assert capsys.readouterr().err == "stages.py: stopped by SIGTERM; repeat the command to continue\n"


def test_unknown_rows_and_sizes_are_refused_before_training(places):
    with pytest.raises(ValueError, match=r"Expected names among 'soft', .*, but found 'exact', 'soft, 3 exact'\."):
        stages.main(places, sizes=("10x30",), plans=("exact", "soft", "soft, 3 exact"))
    for run in (stages.main, reinmax_protocol.main):
        sizes = {"sizes": ("9x9",)} if run is stages.main else {"size": "9x9"}
        with pytest.raises(ValueError, match=r"Expected names among '8x4', .*, but found '9x9'\."):
            run(places, **sizes)
    assert not places.runs.exists()


def test_codes_that_cannot_be_summed_are_judged_by_samples(places, monkeypatch):
    monkeypatch.setattr(common, "MOST_OPERATIONS", 0)
    cell = {"size": "8x16", "epochs": 6, "learning_rate": 1e-3, "estimator": "soft, 5 reinforce-loo", "seed": 0}
    rows = stages.measure(cell | {"moment": "6"}, places=dataclasses.replace(places, smoke=True))
    assert [row["epoch"] for row in rows] == [1, 2, 5, 6]  # at the start and the end of the last stage
    assert {row["evidence_is"] for row in rows} == {"100 samples"}
    assert all(row["test_elbo"] < row["test_log_evidence"] < 0 for row in rows)
    table = pd.DataFrame(cell | row for row in rows)
    assert stages.draw(table) and stages.draw_ends(table)


def test_differences_are_of_the_same_seeds_in_the_same_group():
    table = pd.DataFrame(
        [
            ("steps", "exact", 0, 1.0),
            ("steps", "exact", 1, 5.0),
            ("seconds", "exact", 0, 100.0),
            ("steps", "soft", 0, 2.0),
            ("steps", "soft", 1, 9.0),
            ("steps", "soft", 2, 1000.0),  # nothing to compare with
            ("seconds", "soft", 1, 1000.0),
        ],
        columns=["budget", "estimator", "seed", "value"],
    )
    [found] = common.paired(table, ["budget"], ["value"]).to_dict("records")
    assert found == {"budget": "steps", "estimator": "soft", "seeds": 2, "value": 2.5, "value_se": 1.5}


def test_gradients_are_means_over_seeds_with_the_errors_of_seeds_where_there_are_several():
    cell = {"trained_by": "reinmax", "epoch": 5, "estimator": "relax", "temperature": None, "wrt": "logits"}
    rows = [cell | {"seed": seed, "cosine": value, "cosine_se": 0.1} for seed, value in ((0, 0.2), (1, 0.6))]
    rows.append(cell | {"epoch": 1, "seed": 0, "cosine": 0.3, "cosine_se": 0.1})
    found = gradient_fidelity.over_seeds(pd.DataFrame(rows)).set_index("epoch")[["seeds", "cosine", "cosine_se"]]
    assert found.loc[5].tolist() == pytest.approx([2, 0.4, 0.2])
    assert found.loc[1].tolist() == pytest.approx([1, 0.3, 0.1])


def test_a_level_is_passed_on_a_straight_line():
    curves = pd.DataFrame({"seconds": [1.0, 2.0, 4.0], "test_elbo": [-200.0, -130.0, -120.0]})
    assert stages.passes(curves, 125.0) == 4.0  # the first evaluation that has reached it
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


def curves_of(name, seed, losses, epochs):
    return [
        {"size": "8x4", "estimator": name, "seed": seed, "epoch": epoch, "seconds": 6.0 * epoch, "test_elbo": -loss}
        | {"test_log_evidence": 5.0 - loss, "evidence_is": "exact"}
        for epoch, loss in zip(epochs, losses, strict=True)
    ]


def test_a_curve_is_a_mean_over_the_seeds_that_reached_its_end():
    rows = curves_of("reinmax", 0, [190.0, 150.0, 140.0, 130.0], [1.0, 5.0, 10.0, 20.0])
    rows += curves_of("reinmax", 1, [190.0, 154.0, 142.0, 132.0], [1.0, 5.0, 10.0, 20.0])
    rows += curves_of("reinmax", 2, [250.0, 200.0], [1.0, 5.0])
    curve = reinmax_protocol.settled(pd.DataFrame(rows))
    assert list(curve["epoch"]) == [5.0, 10.0, 20.0] and list(curve["seeds"]) == [2, 2, 2]
    assert list(curve["test_elbo"]) == [-152.0, -141.0, -131.0]
    short = reinmax_protocol.settled(pd.DataFrame(curves_of("reinmax", 0, [190.0, 150.0], [1.0, 5.0])))
    assert list(short["epoch"]) == [1.0, 5.0]


def test_rows_are_compared_at_the_last_common_epoch_and_far_ones_are_written_at_the_edge():
    rows = curves_of("reinmax", 0, [150.0, 140.0, 130.0], [5.0, 10.0, 20.0]) + curves_of("exact", 0, [138.0], [10.0])
    rows += curves_of("exact", 1, [139.0], [10.0]) + curves_of("reinforce", 0, [400.0], [10.0])
    ends = reinmax_protocol.at_last_common_epoch(pd.DataFrame(rows))
    assert set(ends["epoch"]) == {10.0}
    axes = Figure().subplots()
    found = common.draw_dots(axes, ends)
    assert list(found["estimator"]) == ["reinforce", "reinmax", "exact"]  # from bottom to top
    assert [label.get_text() for label in axes.get_yticklabels()] == ["reinforce (1)", "reinmax (1)", "exact (2)"]
    assert axes.get_xlim()[1] < 150 and [text.get_text() for text in axes.texts] == ["→ −ELBO 400, −log p(x) 395"]


def test_numbers_of_seeds_in_words():
    assert [common.in_words(pd.Series(seeds)) for seeds in ([1], [3, 3], [3, 1])] == [
        "1 seed",
        "3 seeds",
        "1 to 3 seeds",
    ]
