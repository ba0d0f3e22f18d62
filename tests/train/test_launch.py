"""Run folders of train, finished or not, with every command that takes one; and their reports."""

import json
import re
import shutil

import pandas as pd
import pytest
import torch
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox

from pyro_gvae import exact
from pyro_gvae.cli.main import main
from pyro_gvae.report import training_figures as train_plots
from pyro_gvae.report.training import write_train_report
from pyro_gvae.runs.checkpoint import load_checkpoint, save_checkpoint
from pyro_gvae.runs.config import read_train_config
from pyro_gvae.train.trained import load_model, trained_models

PLAN = ["--stages", "gumbel-softmax:1,exact:1", "--num-latents", "2", "--num-categories", "4", "--hidden", "8"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory, without_rendering):
    run = tmp_path_factory.mktemp("runs") / "run"
    options = ["--beta", "linear:0,1,30", "--seed", "3"]
    with without_rendering():
        assert main(["train", *PLAN, *options, "--output", str(run)]) == 0
    return run


@pytest.fixture
def unfinished(finished, tmp_path):
    """Return a run as a kill leaves it, with a checkpoint but without weights."""
    run = shutil.copytree(finished, tmp_path / "run")
    (run / "weights.safetensors").unlink()
    content = load_checkpoint(run / "checkpoint.safetensors")
    content["state"]["done"] = None
    save_checkpoint(run / "checkpoint.safetensors", content)
    return run


def lines(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.filterwarnings("ignore:.* is not finished:RuntimeWarning")
@pytest.mark.parametrize("state", ["finished", "unfinished"])
def test_the_model_comes_back(state, request):
    run = request.getfixturevalue(state)
    trained = load_model(run)
    assert trained.name == "gumbel-softmax-1-exact-1-seed3" and [which.epoch for which in trained_models(run)] == [2]
    assert exact.elbo(trained.vae, trained.data.test).mean().item() == pytest.approx(lines(run)[-1]["test_elbo"])
    assert load_model(run, PLAN[1], 3).name == "gumbel-softmax-1-exact-1-seed3"
    with pytest.raises(ValueError, match=f"but found 0 among {PLAN[1]} with seed 3. Try without"):
        load_model(run, "gumbel-softmax")


@pytest.mark.filterwarnings("ignore:.* is not finished:RuntimeWarning")
def test_an_unfinished_model_is_that_of_the_checkpoint(unfinished):
    kept = load_checkpoint(unfinished / "checkpoint.safetensors")["vae"]
    state = load_model(unfinished).vae.state_dict()
    assert state.keys() == kept.keys() and all(torch.equal(state[name], kept[name]) for name in kept)


@pytest.mark.filterwarnings("ignore:.* is not finished:RuntimeWarning")
@pytest.mark.parametrize("state", ["finished", "unfinished"])
@pytest.mark.parametrize(
    ("arguments", "written"),
    [
        (["evaluate", "RUN", "--num-data", "20"], "evaluation/gumbel-softmax-1-exact-1-seed3.json"),
        (["encode", "RUN", "--num-data", "20"], "codes/gumbel-softmax-1-exact-1-seed3-test-map.csv"),
        (["reconstruct", "RUN", "--num-data", "3"], "reconstructions/gumbel-softmax-1-exact-1-seed3-test-map.png"),
        (["sample", "RUN", "--num-samples", "3"], "samples/gumbel-softmax-1-exact-1-seed3-means.png"),
        (["gaps", "RUN", "--num-data", "9", "--num-particles", "2"], "gaps.csv"),
        (["report", "RUN"], "report.html"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_every_command_takes_it(arguments, written, state, request, tmp_path, unrendered):
    run = shutil.copytree(request.getfixturevalue(state), tmp_path / "copy")
    assert main([word.replace("RUN", str(run)) for word in arguments]) == 0
    assert (run / written).stat().st_size > 0


def test_gradients_of_it(finished, tmp_path):
    options = ["--num-samples", "32", "--num-data", "4", "--estimators", "exact", "--output", str(tmp_path / "out")]
    assert main(["gradients", str(finished), *options]) == 0
    table = pd.read_csv(tmp_path / "out" / "gradients.csv")
    assert set(table["trained_by"]) == {PLAN[1]} and set(table["epoch"]) == {2} and set(table["seed"]) == {3}


def test_where_weights_come_from_is_said_unless_they_are_those_of_the_end(finished, unfinished, tmp_path):
    assert load_model(finished).finished  # without a warning, which would be an error
    with pytest.warns(RuntimeWarning, match=r"is not finished: the weights are those of its last checkpoint"):
        assert not load_model(unfinished).finished
    lost = shutil.copytree(finished, tmp_path / "lost")
    (lost / "weights.safetensors").unlink()
    with pytest.warns(RuntimeWarning, match=r"but found no such file\. The weights of the checkpoint are used\."):
        assert load_model(lost).finished


def damage(run, how):
    weights, checkpoint = run / "weights.safetensors", run / "checkpoint.safetensors"
    if how == "weights truncated":
        weights.write_bytes(weights.read_bytes()[:-7])
        checkpoint.unlink()
    elif how == "weights of others":
        written = json.loads((run / "config.json").read_text())
        written["train"]["num_latents"] = 3
        (run / "config.json").write_text(json.dumps(written))
    else:
        weights.unlink()
        if how == "no checkpoint":
            checkpoint.unlink()
        elif how == "checkpoint flipped":
            flipped = bytearray(checkpoint.read_bytes())
            flipped[-50] ^= 4
            checkpoint.write_bytes(flipped)
        elif how == "nothing evaluated":
            (run / "metrics.jsonl").unlink()


@pytest.mark.parametrize(
    ("how", "sentence"),
    [
        ("weights truncated", "Expected intact weights, but found that"),
        ("weights of others", "to fit its config.json, but found others"),
        ("no checkpoint", "Expected a checkpoint, but found that"),
        ("checkpoint flipped", "Expected a whole checkpoint, but found that"),
        ("nothing evaluated", "Expected a run with evaluations, but found"),
    ],
)
@pytest.mark.parametrize("command", ["evaluate", "report"])
def test_an_unreadable_run_is_one_sentence(command, how, sentence, finished, tmp_path, capsys):
    run = shutil.copytree(finished, tmp_path / "run")
    damage(run, how)
    assert main([command, str(run)]) == 2
    said = capsys.readouterr().err
    assert sentence in said and said.startswith("pyro-gvae: ") and len(said.splitlines()) == 1


# The report.


def test_the_report_is_one_page_that_says_what_the_run_says(finished):
    page = write_train_report(finished).read_text(encoding="utf-8")
    assert not re.search(r"src=\"(?!data:)", page) and "<script" not in page and page.count("data:image") == 5
    assert "<h1>Trained on digits by gumbel-softmax, then exact</h1>" in page
    assert f"<b>{lines(finished)[-1]['test_elbo']:.2f}</b>".replace("-", "−") in page
    assert "The objective weights its KL by beta" in page and "What to know about this run" not in page
    assert "0 – 23" in page and "23 – 46" in page
    assert write_train_report(finished).read_text(encoding="utf-8") == page
    assert {path.suffix for path in (finished / "figures").iterdir()} == {".png", ".svg"}
    assert "the mean image, which reaches" in page and "categories of a latent are in use" in page
    chosen, rest = page[page.index("Settings that differ") :].split("<details>", 1)
    assert (
        "<dt>beta</dt>" in chosen and "<dt>judge</dt>" in rest and "<dt>processor</dt>" in rest.split("</details>")[1]
    )
    for name in re.findall(r'href="([^"]+)"', page):
        assert name.startswith("https://") or (finished / name).exists()


@pytest.mark.filterwarnings("ignore:.* is not finished:RuntimeWarning")
def test_the_report_of_an_unfinished_run_says_so(unfinished):
    page = write_train_report(unfinished).read_text(encoding="utf-8")
    assert f"Go on with: pyro-gvae resume {unfinished}" in page


def vertical_lines(figure: Figure):
    """Return the positions of vertical lines in each panel."""
    return [[line.get_xdata()[0] for line in axes.lines if line.get_linestyle() == ":"] for axes in figure.axes]


def test_curves_are_marked_where_stages_begin(finished):
    metrics = pd.DataFrame(lines(finished))
    metrics.loc[0, "test_elbo"] = -1000  # far below the others, as before most runs
    assert train_plots.stage_starts(metrics) == [(0, "gumbel-softmax"), (23, "exact")]
    curves = train_plots.training_curves(metrics)
    assert vertical_lines(curves) == [[23]]
    names = {text.get_text() for text in curves.axes[0].texts}
    assert names == {
        "gumbel-softmax",
        "exact",
        "\N{DOWNWARDS ARROW} curves begin at −1,000",
    }
    objective = next(line for line in curves.axes[0].lines if line.get_label() == "training objective")
    assert list(objective.get_ydata()) == [line["train_objective"] for line in lines(finished)[1:]]
    assert len(train_plots.speed_and_schedules(metrics).axes) == 2  # beta follows a schedule, nothing else does


def test_stages_are_named_above_the_panel_also_a_short_last_one(finished):
    metrics = pd.DataFrame(lines(finished))
    metrics.loc[metrics["stage"] == 0, "step"] *= 40  # 920 of 943 steps
    metrics.loc[metrics["stage"] == 1, "step"] += 897
    figure = train_plots.training_curves(metrics)
    (axes,) = figure.axes
    names = {text.get_text(): text for text in axes.texts if "begin" not in text.get_text()}
    assert names.keys() == {"gumbel-softmax", "exact \N{DOWNWARDS ARROW}"}
    figure.draw_without_rendering()
    assert all(text.get_window_extent().y0 > axes.get_window_extent().y1 for text in names.values())
    assert not Bbox.intersection(*(text.get_window_extent() for text in names.values()))
    assert names["exact \N{DOWNWARDS ARROW}"].get_window_extent().x1 <= figure.bbox.x1
    assert axes.patches[-1].get_x() == 920  # its shade


def test_a_run_of_one_stage_has_no_marks(finished):
    metrics = pd.DataFrame(lines(finished)[:2])
    assert vertical_lines(train_plots.training_curves(metrics)) == [[]]


def test_a_run_that_was_not_judged_is_drawn_too(finished, tmp_path):
    """A program without a discrete model has no ELBO: of its curves, only the objective is drawn."""
    run = shutil.copytree(finished, tmp_path / "run")
    unknown = {"train_elbo": None, "test_elbo": None, "elbo_is": "none"}
    (run / "metrics.jsonl").write_text("".join(json.dumps(line | unknown) + "\n" for line in lines(run)[:1]))
    assert "The discrete ELBO is unknown" in write_train_report(run).read_text(encoding="utf-8")
    assert read_train_config(run).beta == "linear:0,1,30"
