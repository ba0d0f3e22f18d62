"""The commands `gradients` and `advise` end to end: folders that can be continued, and advice."""

import json
import math
import re
import shlex
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import tyro

from pyro_gvae.cli.advised import train_by
from pyro_gvae.cli.arguments import parse
from pyro_gvae.cli.main import main
from pyro_gvae.compare.run import compare
from pyro_gvae.config.compare import CompareConfig
from pyro_gvae.config.gradients import AdviseConfig, GradientsConfig
from pyro_gvae.config.train import TrainConfig
from pyro_gvae.diagnostics import advise as advice_module
from pyro_gvae.diagnostics import laboratory
from pyro_gvae.diagnostics.advise import advise
from pyro_gvae.diagnostics.laboratory import gradients, gradients_table
from pyro_gvae.report.gradient_figures import draw_against_temperature, draw_along_training
from pyro_gvae.runs.frames import read_json_lines

pytestmark = pytest.mark.slow  # many recordings, or processes

SMALL = GradientsConfig(
    num_latents=2, num_categories=3, hidden=(8,), num_data=10, num_samples=64, num_parameter_samples=32,
    temperatures=(0.5, 1.0), epochs=(0, 1), double=True,
)  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    config = replace(SMALL, wrt=("logits", "parameters"), estimators=("gumbel-softmax", "exact", "exact-evidence"))
    return gradients(replace(config, output=tmp_path_factory.mktemp("runs") / "lab"))


def test_the_folder_holds_every_cell(folder):
    table = read_json_lines(folder / "gradients.jsonl")
    assert len(table) == 2 * 2 * 4
    names = ["epoch", "wrt", "estimator"]
    assert set(table.groupby(names).size().index) == {
        (epoch, kind, name)
        for epoch in (0, 1)
        for kind in ("logits", "parameters")
        for name in ("gumbel-softmax", "exact", "exact-evidence")
    }
    refused = table[table["refused"].notna()]
    assert set(refused["estimator"]) == {"exact-evidence"} and set(refused["wrt"]) == {"logits"}
    pd.testing.assert_frame_equal(pd.read_csv(folder / "gradients.csv"), table, check_dtype=False)
    assert len(json.loads((folder / "gradients.json").read_text())) == len(table)
    for name in ("temperature-logits", "temperature-parameters", "training-logits"):
        assert (folder / "figures" / f"{name}.png").stat().st_size > 1000
    said = gradients_table(folder)
    assert "exact-evidence approximates the log-evidence" in said and "exact-evidence: Expected" in said and "±" in said


def test_a_training_changes_gradients(folder):
    table = read_json_lines(folder / "gradients.jsonl").query("estimator == 'gumbel-softmax' and temperature == 1")
    assert table.query("wrt == 'logits'")["relative_std"].nunique() == 2


def test_what_is_there_is_not_measured_again(tmp_path, monkeypatch, unrendered):
    first = gradients(replace(SMALL, epochs=(0,), temperatures=(0.5,), output=tmp_path / "lab"))
    before = (first / "gradients.jsonl").read_text()
    measured = []

    def watched(bench, candidate):
        measured.append((candidate.name, candidate.temperature))
        return original(bench, candidate)

    original = laboratory.measure
    monkeypatch.setattr(laboratory, "measure", watched)
    gradients(replace(SMALL, epochs=(0,), temperatures=(0.5,), output=tmp_path / "lab"))
    assert measured == [] and (first / "gradients.jsonl").read_text() == before
    gradients(replace(SMALL, epochs=(0,), temperatures=(0.5, 1.0), output=tmp_path / "lab"))
    assert measured == [("gumbel-softmax", 1.0)]
    assert (first / "gradients.jsonl").read_text().startswith(before)
    with pytest.raises(
        ValueError, match=r"Expected the settings that '.*lab' was started with, but found other values of seed"
    ):
        gradients(replace(SMALL, seed=3, output=tmp_path / "lab"))


def test_an_interrupted_call_is_continued_to_the_same_numbers(folder, tmp_path, monkeypatch, unrendered):
    original = laboratory.measure

    def interrupted(bench, candidate):
        if candidate.temperature == 1.0:
            raise KeyboardInterrupt
        return original(bench, candidate)

    config = replace(SMALL, epochs=(1,), estimators=("gumbel-softmax",), output=tmp_path / "lab")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(laboratory, "measure", interrupted)
        gradients(config)
    assert len(pd.read_csv(tmp_path / "lab" / "gradients.csv")) == 1
    gradients(config)
    names = ["relative_bias", "relative_std", "cosine"]
    found = read_json_lines(tmp_path / "lab" / "gradients.jsonl")
    whole = read_json_lines(folder / "gradients.jsonl").query(
        "epoch == 1 and estimator == 'gumbel-softmax' and wrt == 'logits'"
    )
    pd.testing.assert_frame_equal(found[names], whole[names].reset_index(drop=True))


def test_another_folder_is_refused(tmp_path, capsys):
    (tmp_path / "mine").mkdir()
    assert main(["gradients", "--output", str(tmp_path / "mine")]) == 2
    assert "exists and is neither" in capsys.readouterr().err
    assert list((tmp_path / "mine").iterdir()) == []


def test_the_models_of_a_run_are_measured_by_the_published_protocol(tmp_path, unreported, unrendered):
    size = {"num_latents": 2, "num_categories": 3, "hidden": (8,), "epochs": 1, "evaluations": 1, "batch_size": 479}
    run = compare(CompareConfig(estimators=("gumbel-softmax", "exact"), **size, seeds=(0,), output=tmp_path / "run"))
    folder = gradients(replace(SMALL, run=run, epochs=(0,), protocol="reinmax", output=tmp_path / "lab"))
    table = read_json_lines(folder / "gradients.jsonl")
    assert set(table["trained_by"]) == {"gumbel-softmax", "exact"} and set(table["epoch"]) == {1}
    assert len(table) == 2 * 3 and set(table["images"]) == {10}
    assert (table.query("estimator == 'exact'")["relative_bias"] < 1e-9).all()
    given = replace(SMALL, run=run, epochs=(0,), protocol="reinmax", output=folder)
    assert gradients(replace(given, hidden=None)) == folder  # a run has its own widths, whatever the folder says
    assert (folder / "figures" / "temperature-logits.png").exists() and "cosine" in gradients_table(folder)


def test_figures_name_their_lines(folder):
    table = read_json_lines(folder / "gradients.jsonl")
    figure = draw_against_temperature(table)
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["gumbel-softmax"]
    assert {axes.get_title("left") for axes in figure.axes} >= {"at initialization", "epoch 1 by gumbel-softmax"}
    figure = draw_along_training(table, "parameters")
    assert [text.get_text().split(" = ")[0] for text in figure.legends[0].get_texts()] == [
        "gumbel-softmax, t",
        "exact-evidence",
    ]
    assert "t: temperature" in figure.get_supxlabel()
    assert draw_along_training(table[table["epoch"] == 0]) is None
    assert draw_against_temperature(table[table["estimator"] == "exact"]) is None


def test_what_is_far_above_the_others_is_told_over_the_panel():
    names = [f"estimator {index}" for index in range(10)]
    errors = dict(zip(names, [0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 4380512.0], strict=True))
    rows = [
        {"trained_by": "exact", "seed": 0, "epoch": epoch, "estimator": name, "temperature": math.nan, "wrt": "logits"}
        | {"relative_bias": 0.1, "relative_std": 1.0, "cosine": 0.9, "mse_at_budget": error}
        for epoch in (0, 1)
        for name, error in errors.items()
    ]
    for figure in (draw_against_temperature(pd.DataFrame(rows)), draw_along_training(pd.DataFrame(rows))):
        told = [axes.get_title("right").replace("\N{NO-BREAK SPACE}", " ") for axes in figure.axes]
        assert set(told) == {"", "above: estimator 9 4,400,000"}
        assert min(axes.get_ylim()[1] for axes in figure.axes if axes.get_title("right")) < 20
        assert "standard error" not in figure.get_supxlabel()  # it has no standard errors
        lines = figure.legends[0].get_lines()
        looks = {(line.get_color(), line.get_linestyle(), line.get_marker()) for line in lines}
        assert len(looks) == len(names)


ADVISE = AdviseConfig(num_latents=2, num_categories=3, hidden=(8,), seconds=1.0)


def test_the_command_that_follows_an_advice_is_one(tmp_path):
    config = AdviseConfig(dataset="mnist", data_dir=tmp_path / "my data", download=True, hidden=(300, 20))
    words = shlex.split(train_by(config, "gumbel-softmax[temperature=0.5]:20,exact:3"))
    parsed = tyro.cli(TrainConfig, args=words[2:])
    assert words[:2] == ["pyro-gvae", "train"]
    assert parsed.stages == "gumbel-softmax[temperature=0.5]:20,exact:3"
    for name in ("dataset", "data_dir", "download", "hidden", "batch_size", "learning_rate", "max_memory"):
        assert getattr(parsed, name) == getattr(config, name)


def test_an_advice_for_a_program_trains_that_program():
    config = AdviseConfig(model="joint", num_latents=4, num_categories=10, latent_dim=3)
    parsed = parse(shlex.split(train_by(config, "exact:20"))[1:])
    assert (parsed.model, parsed.num_latents, parsed.num_categories, parsed.latent_dim) == ("joint", 4, 10, 3)


@pytest.mark.usefixtures("recorded")
def test_advice_is_measured(tmp_path, capsys):
    arguments = ["--num-latents", "2", "--num-categories", "3", "--hidden", "8", "--seconds", "0.03"]
    # All that are feasible are measured in `test_any_pair.py`.
    arguments += ["--estimators", "gumbel-softmax", "reinforce-loo", "exact", "exact-evidence"]
    assert main(["advise", *arguments, "--output", str(tmp_path / "advice")]) == 0
    said = capsys.readouterr().out
    assert said.strip().startswith("Train with '")  # the recommendation comes first
    assert re.search(r"\nTry: pyro-gvae train --stages \S+ --hidden 8 --num-categories 3 --num-latents 2\n", said)
    assert "ms per step" in said and "of a step along the exact gradient" in said
    table = pd.read_csv(tmp_path / "advice" / "advice.csv")
    assert set(table["estimator"]) >= {"gumbel-softmax", "exact"} and "exact-evidence" not in set(table["estimator"])
    assert (table["memory"].dropna() > 1000).all()
    assert table.query("estimator == 'exact'")["progress"].item() == pytest.approx(1)


def test_advice_is_about_the_data_of_a_file(tmp_path, capsys):
    frame = pd.DataFrame({"a": np.arange(40) % 7 / 2 - 1, "b": ["x", "y"] * 20, "y": ["n", "m", "n", "m"] * 10})
    frame.to_csv(tmp_path / "t.csv", index=False)
    data = ["--data", str(tmp_path / "t.csv"), "--columns", "b=categorical", "--labels", "y", "--model", "conditional"]
    sizes = ["--num-latents", "1", "--num-categories", "3", "--hidden", "4", "--batch-size", "8"]
    assert main(["advise", *data, *sizes, "--estimators", "exact", "--seconds", "0.03"]) == 0
    said = capsys.readouterr()
    assert "t.csv: 40 rows, 2 columns" in said.err and "labels: 32 of 32 training rows, 2 classes: m, n" in said.err
    [command] = re.findall(r"\nTry: (pyro-gvae train .*)\n", said.out)
    assert all(f"{option} " in command for option in ("--columns", "--data", "--labels", "--model", "--batch-size"))


def test_advice_without_an_exact_gradient_does_not_pretend():
    table, found = advise(replace(ADVISE, num_latents=40, estimators=("gumbel-softmax", "exact")))
    assert "exact" not in set(table["estimator"]) and table["progress"].isna().all()
    assert found.estimator == "gumbel-softmax" and any("K^N" in why or "codes" in why for why in found.reasons)


def test_an_unbiased_mean_stands_in_for_the_exact_gradient(monkeypatch):
    made = advice_module.candidates(["gumbel-softmax", "reinforce-loo"], temperatures=(1.0,))
    monkeypatch.setattr(advice_module, "obstacle_to_sums", lambda *_, **__: "Too many codes.")
    monkeypatch.setattr(advice_module, "candidates", lambda *_, **__: made)
    table, found = advise(replace(ADVISE, batch_size=4))
    assert table["reference"].str.contains("by reinforce-loo").all()
    assert "Too many codes." in found.reasons and table["relative_std"].notna().all()
