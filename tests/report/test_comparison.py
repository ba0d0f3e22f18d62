"""Figures and page of a comparison: made from a synthetic run folder, also with missing parts."""

import json
import math
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.transforms import Bbox
from safetensors.numpy import load_file, save_file
from sklearn.datasets import load_digits

from pyro_gvae.config.compare import CompareConfig
from pyro_gvae.report import comparison_figures as plots
from pyro_gvae.report import pictures, style
from pyro_gvae.report.comparison import write_report
from pyro_gvae.report.findings import finding, further_findings, remarks
from pyro_gvae.report.settings import defaults_of, sort_settings
from pyro_gvae.runs.contents import read_run
from pyro_gvae.runs.files import append_json_line, write_json
from pyro_gvae.runs.folder import PICTURES, cell_folder
from pyro_gvae.runs.tables import final_rows, summarize

EPOCHS = 10
SPEED = {"gumbel-softmax": 220.0, "exact": 11.0}  # steps a second


def make_run(run: Path, estimators: tuple[str, ...] = ("gumbel-softmax", "exact"), seeds: int = 3) -> Path:
    """Make a run folder with realistic curves: a noisy start far off, fast learning, then slow."""
    run.mkdir()
    config = {
        "cells": [{"estimator": name, "setting": "", "seed": seed} for name in estimators for seed in range(seeds)],
        "dataset": "digits", "estimators": list(estimators), "seeds": list(range(seeds)), "num_latents": 4,
        "num_categories": 8, "hidden": [128, 64], "epochs": EPOCHS, "batch_size": 64, "learning_rate": 1e-3,
        "temperature": 0.67, "prior_temperature": 0.67, "binarize": "none", "image_shape": [8, 8],
        "versions": {"python": "3.11.9", "torch": "2.14.1", "pyro-ppl": "1.9.2"},
        "command": f"pyro-gvae compare --dataset digits --seeds {seeds}",
    }  # fmt: skip
    write_json(run / "config.json", config)
    for index, name in enumerate(estimators):
        for seed in range(seeds):
            _make_cell(run, name, seed, index)
    return run


def _make_cell(run: Path, name: str, seed: int, index: int) -> None:
    noise = np.random.default_rng([index, seed])
    relaxed = name != "exact"
    level = -19.5 - 0.5 * index + 0.15 * noise.standard_normal() + (1.0 if name == "exact" else 0.0)
    for epoch in range(EPOCHS + 1):
        step = epoch * 23
        elbo = level - 26.0 * np.exp(-0.55 * epoch) + 0.08 * noise.standard_normal()
        claim = 3.0 * (1 - np.exp(-0.5 * epoch)) if relaxed else 0.0
        append_json_line(
            run / "metrics.jsonl",
            {
                "estimator": name, "setting": "", "seed": seed, "epoch": float(epoch), "step": step,
                "finished": epoch == EPOCHS,
                "seconds": step / SPEED.get(name, 100.0 + 10 * index),
                "train_objective": elbo + 0.6 + claim - 2.0 * np.exp(-0.5 * epoch) if epoch else None,
                "train_elbo": elbo + 0.7, "train_log_evidence": elbo + 1.5, "test_objective": elbo + claim,
                "test_elbo": elbo, "test_log_evidence": elbo + 0.9, "steps_per_second": 1.0, "temperature": 0.67,
            },
        )  # fmt: skip
    digits = (load_digits().data / 16.0).astype(np.float32)
    usage = noise.dirichlet(np.full(8, 0.4 + index), size=4).astype(np.float32)
    path = cell_folder(run, name, seed) / PICTURES
    path.parent.mkdir(parents=True)
    save_file(
        {
            "inputs": digits[:10],
            "reconstructions_start": np.full((10, 64), 0.5, np.float32) + 0.05 * noise.random((10, 64), np.float32),
            "reconstructions_end": 0.8 * digits[:10] + 0.15 * noise.random((10, 64), np.float32),
            "samples": digits[100 + 16 * seed : 116 + 16 * seed],
            "code_usage": usage,
            "category_pictures": noise.integers(0, 256, (4, 8, 64), np.uint8),
        },
        path,
    )


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a finished run with its report; tests must not change it."""
    run = make_run(tmp_path_factory.mktemp("runs") / "whole")
    write_report(run)
    return run


@pytest.fixture
def run(whole: Path, tmp_path: Path) -> Path:
    """Return a copy of the finished run that a test may damage."""
    return shutil.copytree(whole, tmp_path / "run", ignore=shutil.ignore_patterns("figures", "report.html"))


def keep_lines(run: Path, keep) -> None:
    path = run / "metrics.jsonl"
    lines = [line for line in path.read_text().splitlines(keepends=True) if keep(json.loads(line))]
    path.write_text("".join(lines))


def words(run: Path) -> str:
    """Return the text of a new report, without markup and line breaks."""
    page = write_report(run).read_text(encoding="utf-8")
    body = re.sub(r"<[^>]+>", "", page[page.index("<main>") :])
    return re.sub(r"\s+", " ", body)


# ----------------------------------------------------------------------------------------------- page


class References(HTMLParser):
    """Collect what a browser would fetch or run for a page, and check that its elements are closed in order.

    A link is fetched only if a reader follows it.
    """

    ADDRESSES = frozenset({"src", "href", "srcset", "data", "poster", "action", "background"})
    VOID = frozenset({"meta", "img", "br", "hr", "link", "input"})

    def __init__(self, page: str) -> None:
        super().__init__()
        self.fetched: list[str] = []
        self.open: list[str] = []
        self.links: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in self.VOID:
            self.open.append(tag)
        if tag in {"script", "link", "iframe", "object", "embed"}:
            self.fetched.append(tag)
        self.links += [value or "" for name, value in attrs if tag == "a" and name == "href"]
        for name, value in attrs:
            if name in self.ADDRESSES and tag != "a" and not (value or "").startswith("data:"):
                self.fetched.append(f"{tag} {name}={value}")
            if name == "style" and "url(" in (value or ""):
                self.fetched.append(value or "")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "style" and re.search(r"url\(|@import", data):
            self.fetched.append("style")


def test_page_needs_nothing_from_outside(whole: Path) -> None:
    page = References((whole / "report.html").read_text(encoding="utf-8"))
    assert page.fetched == []
    assert page.open == []
    files = [link for link in page.links if not link.startswith("https://")]
    assert files == ["metrics.jsonl", "config.json", "cells", "figures"] and all(
        (whole / name).exists() for name in files
    )
    assert next(link for link in page.links if link not in files).endswith("docs/howto/compare.md")


@pytest.mark.parametrize(
    "element",
    [
        '<img src="https://example.org/a.png">',
        '<link rel="stylesheet" href="style.css">',
        "<script>1</script>",
        '<p style="background: url(a.png)"></p>',
        "<style>@import 'a.css';</style>",
    ],
)
def test_the_check_for_outside_references_bites(element: str) -> None:
    assert References(element).fetched


def test_page_holds_the_numbers_and_every_figure(whole: Path) -> None:
    page = (whole / "report.html").read_text(encoding="utf-8")
    final = read_run(whole).final
    summary = summarize(final)
    for name in ("gumbel-softmax", "exact"):
        for measure in ("test_elbo", "test_log_evidence", "gap"):
            text = f"{summary.loc[name, measure]:z.2f} ± {summary.loc[name, measure + '_se']:.2f}".replace("-", "−")
            assert text in page
    names = ["final-values", "learning-curves", "training-gap", "reconstructions", "prior-samples", "code-usage"]
    assert re.findall(r'<figure id="([^"]+)">', page) == names
    assert page.count('src="data:image/svg+xml;base64,') == len(names)
    assert sorted(path.name for path in (whole / "figures").iterdir()) == sorted(
        f"{name}.{kind}" for name in names for kind in ("png", "svg")
    )
    assert "pyro-gvae compare --dataset digits --seeds 3" in page
    assert "2.14.1" in page
    assert "Missing from this run" not in page


def test_settings_that_differ_from_the_defaults_come_first(whole: Path) -> None:
    """The default estimators follow from the epochs; two of four are a choice."""
    page = (whole / "report.html").read_text(encoding="utf-8")
    chosen, others = page[page.index("Settings that differ") :].split("<details>", 1)
    assert "<dt>epochs</dt><dd>10</dd>" in chosen and "<dt>hidden</dt><dd>128, 64</dd>" in chosen
    assert "gumbel-softmax, exact" in chosen and "<dt>seeds</dt>" not in chosen
    assert "<dt>num latents</dt><dd>4</dd>" in others and "<dt>seeds</dt><dd>0, 1, 2</dd>" in others
    assert "training time" in others and "2.14.1" in others.split("</details>")[1]


@pytest.mark.parametrize(
    ("hidden", "written", "is_chosen"),
    [([64], {"default_hidden": [64]}, False), ([128], {"default_hidden": [64]}, True), ([128], {}, False)],
)
def test_widths_are_a_choice_if_they_are_not_those_of_the_data(hidden, written, is_chosen):
    """Folders without `default_hidden` were written when the default was 128 for all data."""
    found = sort_settings({"hidden": hidden}, defaults_of(CompareConfig), written)
    assert ("hidden" in found.chosen) is is_chosen and ("hidden" in found.others) is not is_chosen


def test_the_best_point_stands_beside_the_end(run: Path) -> None:
    path = run / "metrics.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    path.unlink()
    for row in rows:
        is_best = row["estimator"] == "exact" and row["epoch"] == EPOCHS - 2
        append_json_line(path, row | {"test_elbo": -3.0} if is_best else row)
    text = words(run)
    assert "best −3.00 at step 184" in text
    assert "was highest at step 184" in text


def test_the_same_results_give_the_same_bytes(whole: Path, run: Path) -> None:
    renamed = run.rename(run.with_name(whole.name))
    assert write_report(renamed).read_bytes() == (whole / "report.html").read_bytes()


def test_configuration_is_escaped(run: Path) -> None:
    config = json.loads((run / "config.json").read_text())
    write_json(run / "config.json", config | {"dataset": "<script>alert(1)</script>", "note": "a & b"})
    page = write_report(run).read_text(encoding="utf-8")
    assert "<script" not in page
    assert "a &amp; b" in page


def test_importing_the_report_does_not_import_torch() -> None:
    heavy = "{'torch', 'pyro', 'matplotlib.pyplot'}"
    code = f"import sys, pyro_gvae.report.comparison; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# -------------------------------------------------------------------------------------- missing pieces


def test_unfinished_cell_is_told_and_left_out_of_the_tables(run: Path) -> None:
    keep_lines(run, lambda row: (row["estimator"], row["seed"]) != ("exact", 2) or row["epoch"] <= 4)
    contents = read_run(run)
    assert contents.missing == [
        "exact, seed 2: not finished (4 epochs); its curve is drawn, but the tables leave it out."
    ]
    assert summarize(contents.final)["seeds"].to_dict() == {"gumbel-softmax": 3, "exact": 2}
    text = words(run)
    assert contents.missing[0] in text
    assert "paired over 2 seeds" in text


def test_estimator_that_never_started(run: Path) -> None:
    keep_lines(run, lambda row: row["estimator"] == "exact")
    text = words(run)
    assert "gumbel-softmax, seed 1: nothing was recorded." in text
    assert "no other estimator has finished, so there is no comparison" in text
    assert "Differences on the same seeds" not in text


def test_run_in_which_nothing_has_finished(run: Path) -> None:
    keep_lines(run, lambda row: row["epoch"] < 3)
    text = words(run)
    assert "There is no finding yet" in text
    assert "The discrete model during training" in text
    assert "Reconstructions at the start" not in text


def test_run_without_any_evaluation(run: Path) -> None:
    (run / "metrics.jsonl").write_text("")
    text = words(run)
    assert "There is no finding yet" in text
    assert text.count("nothing was recorded") == 6
    assert not (run / "figures").exists()


def test_run_with_the_first_evaluation_only(run: Path) -> None:
    keep_lines(run, lambda row: row["step"] == 0)
    assert "There is no finding yet" in words(run)


@pytest.mark.parametrize("damage", ["absent", "junk", "lacking", "misshapen"])
def test_pictures_come_from_the_next_seed_when_a_file_is_bad(run: Path, damage: str) -> None:
    path = cell_folder(run, "exact", 0) / PICTURES
    if damage == "absent":
        path.unlink()
    elif damage == "junk":
        path.write_bytes(b"not a safetensors file")
    elif damage == "misshapen":
        save_file(load_file(path) | {"category_pictures": np.zeros((4, 8, 63), np.uint8)}, path)
    else:
        save_file({"inputs": np.zeros((1, 64), np.float32)}, path)
    contents = read_run(run)
    assert list(contents.pictures) == ["gumbel-softmax (seed 0)", "exact (seed 1)"]
    assert contents.missing == ["exact, seed 0: pictures.safetensors is absent or damaged, so it has no pictures."]


def test_torn_line_is_told(run: Path) -> None:
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"estimator": "exact", "se')
    with pytest.warns(RuntimeWarning, match="torn line 67"):
        assert read_run(run).missing == ["Line 67 of metrics.jsonl is torn and was left out."]


def test_run_that_did_not_stay_finite_is_told(run: Path) -> None:
    path = run / "metrics.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    path.unlink()
    for row in rows:
        lost = (row["estimator"], row["seed"], row["epoch"]) == ("exact", 1, EPOCHS)
        append_json_line(path, row | {"test_elbo": float("nan"), "test_log_evidence": float("nan")} if lost else row)
    contents = read_run(run)
    assert contents.missing == ["exact, seed 1: the last evaluation is not finite, so exact has no mean."]
    assert "exact</b> has" not in finding(contents.final)
    assert "gumbel-softmax" in finding(contents.final)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda run: shutil.rmtree(run), "is not one: it does not exist"),
        (lambda run: (run / "metrics.jsonl").unlink(), "is not one: .*metrics.jsonl"),
        (lambda run: (run / "config.json").write_text("{"), "is not one: it is not valid JSON at line 1"),
        (
            lambda run: (run / "config.json").write_text('{"dataset": "digits"}'),
            "lacks cells, epochs, image_shape",
        ),
        (
            lambda run: (run / "metrics.jsonl").write_text('{"estimator": "exact"}\n'),
            "Expected evaluations, but found no whole line in",
        ),
    ],
)
@pytest.mark.filterwarnings("ignore:.* left out torn line")
def test_folder_that_is_no_run(run: Path, damage, message: str) -> None:
    damage(run)
    with pytest.raises(ValueError, match=message):
        write_report(run)


# ---------------------------------------------------------------------------------------------- words


def evidence(**seeds_of: dict[int, float]) -> pd.DataFrame:
    """Return final rows with the given log-evidence by estimator and seed."""
    rows = [(name, seed, value) for name, values in seeds_of.items() for seed, value in values.items()]
    frame = pd.DataFrame(rows, columns=["estimator", "seed", "test_log_evidence"])
    return frame.assign(test_elbo=frame["test_log_evidence"] - 1, seconds=1.0)


END = "At the end of training, "


@pytest.mark.parametrize(
    ("final", "sentence"),
    [
        (
            evidence(gs={0: -20.0, 1: -22.0, 2: -21.0}, exact={0: -18.0, 1: -19.0, 2: -17.0}),
            END + "<b>exact</b> has the higher exact test log-evidence, 3.00 ± 0.58 nats per datum above <b>gs</b> "
            "(paired over 3 seeds, ahead on 3).",
        ),
        (
            evidence(gs={0: -20.0, 1: -21.0}, exact={0: -18.0, 1: -21.5}),
            END + "<b>exact</b> and <b>gs</b> differ by less than two standard errors in exact test log-evidence: "
            "the first is 0.75 ± 1.25 nats per datum above the second (paired over 2 seeds, ahead on 1).",
        ),
        (
            evidence(gs={0: -20.0}, exact={0: -18.0}),
            END + "on the only finished seed, <b>exact</b> has the higher exact test log-evidence, "
            "2.00 nats per datum above <b>gs</b>; one seed has no standard error.",
        ),
        (  # the runner-up has the second-best mean over the common seeds
            evidence(a={0: -9.0, 1: -9.0}, b={0: -5.0, 1: -6.0, 2: -99.0}, c={0: -3.0, 1: -3.0}),
            END + "<b>c</b> has the highest exact test log-evidence, 2.50 ± 0.50 nats per datum above <b>b</b> "
            "(paired over 2 seeds, ahead on 2).",
        ),
        (
            evidence(exact={0: -18.0, 1: -19.0}),
            END + "<b>exact</b> has an exact test log-evidence of −18.50 ± 0.50 nats per datum (2 seeds); "
            "no other estimator has finished, so there is no comparison.",
        ),
        (
            evidence(gs={0: -20.0, 1: -21.0}, exact={0: -18.0, 1: -18.996}),
            END + "<b>exact</b> has the higher exact test log-evidence, 2.002 ± 0.002 nats per datum above <b>gs</b> "
            "(paired over 2 seeds, ahead on 2).",
        ),
        (
            evidence(gs={0: -20.0}, exact={1: -18.0}),
            "There is no finding yet: no seed has been finished by every estimator.",
        ),
    ],
)
def test_finding(final: pd.DataFrame, sentence: str) -> None:
    assert finding(final) == sentence


def curves(**points_of: list[tuple[int, float, float]]) -> pd.DataFrame:
    """Return evaluations of two seeds, one nat apart, at (step, seconds, ELBO); log-evidences are one nat higher."""
    columns = ["estimator", "seed", "step", "seconds", "test_elbo"]
    rows = [
        (name, seed, step, seconds, elbo + seed)
        for name, points in points_of.items()
        for seed in (0, 1)
        for step, seconds, elbo in points
    ]
    return pd.DataFrame(rows, columns=columns).assign(test_log_evidence=lambda rows: rows["test_elbo"] + 1)


def test_equal_seconds_may_have_another_winner() -> None:
    rows = curves(soft=[(0, 0.0, -50.0), (8, 2.0, -20.0)], exact=[(0, 0.0, -50.0), (2, 2.0, -40.0), (8, 8.0, -10.0)])
    told = further_findings(rows, final_rows(rows))
    assert "At the end of training, <b>exact</b> has the higher exact test ELBO, 10.00" in told[0]
    assert told[1].startswith("After equal time (2 s, which soft took), <b>soft</b> has the higher exact test log-ev")
    assert "20.00 ± 0.00 nats per datum above <b>exact</b>" in told[2]  # exact is at -40 by then
    assert len(told) == 3


@pytest.mark.parametrize(("seconds", "words"), [(1.5, "1.5 s"), (123.4, "123 s"), (4321.0, "4,321 s")])
def test_nothing_is_told_of_a_moment_before_the_first_evaluation(seconds: float, words: str) -> None:
    late = [(0, 0.0, -50.0), (8, 8 * seconds, -10.0)]
    rows = curves(soft=[(0, 0.0, -50.0), (8, seconds, -20.0)], exact=late)
    assert further_findings(rows, final_rows(rows))[1:] == [
        f"After equal time ({words}, which soft took), nothing is known of <b>exact</b>, which had not been evaluated "
        "by then: try more <code>--evaluations</code>."
    ]


@pytest.mark.parametrize("elbo", [math.nan, -20.0])
def test_no_comparison_is_told_but_once(elbo: float) -> None:
    rows = curves(soft=[(0, 0.0, -50.0), (8, 2.0, elbo)], exact=[(0, 0.0, -50.0), (1, 1.0, -41.0), (8, 8.0, -10.0)])
    own_seeds = rows["seed"].eq(rows["estimator"].eq("soft").astype(int))
    rows = rows if math.isnan(elbo) else rows[own_seeds]
    final = final_rows(rows)
    assert further_findings(rows, final) == []
    assert ("no other estimator has only finite numbers" if math.isnan(elbo) else "no finding yet") in finding(final)


def test_a_best_point_before_the_end_is_told() -> None:
    rows = curves(soft=[(0, 0.0, -50.0), (8, 2.0, -20.0)], exact=[(0, 0.0, -50.0), (4, 1.0, -9.0), (8, 2.0, -10.0)])
    told = further_findings(rows, final_rows(rows))
    assert told[1].startswith("The exact test ELBO of <b>exact</b> was highest at step 4, and then fell by 1.00 ± 0.00")
    assert len(told) == 3  # ELBO and log-evidence; nothing about `soft`, which took as long


def test_remarks_tell_a_bound_above_the_evidence() -> None:
    final = evidence(gs={0: -20.0, 1: -22.0}, exact={0: -18.0, 1: -19.0})
    final = final.assign(test_objective=[-15.0, -17.0, -19.0, -20.0], steps_per_second=[200.0, 200.0, 10.0, 10.0])
    assert remarks(summarize(final)) == [
        "The bound that <b>gs</b> itself optimizes is 6.00 nats per datum above the ELBO of its discrete model, "
        "and 5.00 above its log-evidence, which no bound of that model can exceed.",
        "<b>gs</b> made 200 steps per second and <b>exact</b> made 10, a factor of 20.",
        "With so few seeds, the standard errors themselves are inaccurate.",
    ]


def test_remarks_keep_quiet_about_a_bound_that_is_one() -> None:
    final = evidence(exact={0: -18.0}).assign(test_objective=-19.0, steps_per_second=10.0)
    assert remarks(summarize(final)) == []
    assert "above its log-evidence" not in remarks(summarize(final.assign(test_objective=-18.5)))[0]


# -------------------------------------------------------------------------------------------- figures


def draw_all(run: Path) -> dict[str, Figure]:
    contents = read_run(run)
    styles = style.estimator_styles(contents.estimators)
    return {
        "final": plots.final_values(summarize(contents.final), styles),
        "curves": plots.learning_curves(contents.metrics, styles),
        "gap": plots.training_gap(contents.metrics, styles),
        "reconstructions": pictures.reconstructions(contents.pictures, (8, 8)),
        "samples": pictures.prior_samples(contents.pictures, (8, 8)),
        "usage": pictures.code_usage(contents.pictures, (8, 8)),
    }


@pytest.fixture(scope="module")
def figures(whole: Path) -> dict[str, Figure]:
    return draw_all(whole)


MANY = ("gumbel-softmax", "exact", "st-gumbel-softmax", "reinmax", "vimco", "rebar", "gumbel-rao", "reinforce-loo")


LONG = (
    "gumbel-softmax[kl=relaxed,temperature=0.5]:6,exact:2",
    "straight-through[surrogate=reinmax,kl=sampled]",
    "reinforce-loo[particles=8]:3,local-expectation:5",
    "exact",
)


def titles(figure: Figure) -> list[Bbox]:
    """Return the positions of panel titles, in any of their three places."""
    texts = [text for axes in figure.axes for text in axes.get_children() if isinstance(text, Text)]
    named = {axes.get_title(loc) for axes in figure.axes for loc in ("left", "center", "right")} - {""}
    return [text.get_window_extent() for text in texts if text.get_text() in named]


@pytest.mark.parametrize(("names", "seeds"), [(MANY[:1], 1), (MANY[:2], 10), (MANY, 2), (LONG, 1)])
def test_nothing_overlaps(tmp_path: Path, names: tuple[str, ...], seeds: int) -> None:
    for name, figure in draw_all(make_run(tmp_path / "run", names, seeds)).items():
        figure.draw_without_rendering()
        panels = [axes.get_window_extent() for axes in figure.axes]
        boxes = panels + titles(figure)
        for legend in figure.legends:
            box = legend.get_window_extent()
            assert box.x1 <= figure.bbox.x1 + 1, name
            assert not any(Bbox.intersection(box, other) for other in boxes), name
        for index, panel in enumerate(panels):
            assert not any(Bbox.intersection(panel, other) for other in panels[index + 1 :]), name
        for index, title in enumerate(titles(figure)):
            assert title.x1 <= figure.bbox.x1 + 1, name
            assert not any(Bbox.intersection(title, other) for other in titles(figure)[index + 1 :]), name


@pytest.mark.parametrize("first", ["gumbel-softmax", "exact"])
def test_words_say_what_the_marks_of_the_first_row_mean_and_do_not_touch(whole: Path, first: str) -> None:
    summary = summarize(read_run(whole).final).sort_index(key=lambda names: names != first)
    figure = plots.final_values(summary, style.estimator_styles(list(summary.index)))
    figure.draw_without_rendering()
    [axes] = figure.axes
    words = sorted(axes.texts, key=lambda text: text.get_window_extent().x0)
    values = summary.loc[first, ["test_objective", "test_elbo", "test_log_evidence"]]
    assert [text.xy for text in words] == [(value, 0.0) for value in sorted(values)]
    whole_panel, boxes = axes.get_window_extent(), [Text.get_window_extent(text) for text in words]
    assert boxes[0].x0 >= whole_panel.x0 and boxes[-1].x1 <= whole_panel.x1
    assert all(left.x1 < right.x0 for left, right in pairwise(boxes))


def test_curves_say_what_and_in_which_unit(figures: dict[str, Figure]) -> None:
    upper, _, lower, seconds = figures["curves"].axes
    assert upper.get_ylabel() == "test ELBO\n(nats per datum)"
    assert lower.get_ylabel() == "test log-evidence log p(x)\n(nats per datum)"
    assert lower.get_xlabel() == "training steps"
    assert seconds.get_xlabel() == "seconds of training (log scale)"
    assert figures["gap"].axes[0].get_ylabel() == "train set (nats per datum)"
    assert {axes.get_xlabel() for axes in figures["gap"].axes} == {"training steps"}
    assert "nats per datum" in figures["final"].axes[0].get_xlabel()
    labels = [text.get_text() for text in figures["curves"].legends[0].get_texts()]
    assert labels == ["gumbel-softmax", "exact", "mean over seeds", "single seed"]


def test_seconds_are_linear_when_speeds_are_alike(tmp_path: Path) -> None:
    seconds = draw_all(make_run(tmp_path / "run", ("reinmax", "vimco"), 1))["curves"].axes[3]
    assert seconds.get_xscale() == "linear"
    assert seconds.get_xlabel() == "seconds of training"


def test_the_start_does_not_squash_the_scale(whole: Path, figures: dict[str, Figure]) -> None:
    metrics = read_run(whole).metrics
    axes = figures["curves"].axes[0]
    low, high = axes.get_ylim()
    start, end = (metrics.loc[metrics["epoch"] == epoch, "test_elbo"] for epoch in (0, EPOCHS))
    assert start.max() < low < end.min() < end.max() < high
    assert high - low < 0.4 * (end.max() - start.min())
    (note,) = axes.texts
    assert note.get_text() == f"\N{DOWNWARDS ARROW} curves begin at −{-start.min():.0f}"
    figures["curves"].draw_without_rendering()
    place, panel = note.get_window_extent(), axes.get_window_extent()
    assert place.x0 < panel.x0 + panel.width / 2 and place.y1 < panel.y0 + panel.height / 5
    for line in axes.lines:
        assert not line.get_path().transformed(axes.transData).intersects_bbox(place, filled=False)


def test_curve_limits_by_hand() -> None:
    curve = pd.DataFrame({"estimator": "a", "seed": 0, "step": [0, 1, 2, 3, 10], "elbo": [-500.0, -50, -30, -20, -10]})
    diverged = pd.DataFrame({"estimator": "b", "seed": 0, "step": [0, 10], "elbo": [-400.0, -1e6]})
    # Of steps 3 and 10, values -20 and -10, with a margin of 0.6.
    assert plots.curve_limits(pd.concat([curve, diverged]), ["elbo"]) == pytest.approx((-20.6, -9.4))
    assert plots.curve_limits(diverged, ["elbo"]) is None


def test_mean_stops_where_a_seed_stops() -> None:
    runs = pd.DataFrame({"seed": [0, 0, 0, 1, 1], "step": [0, 5, 10, 0, 5], "elbo": [-9.0, -5.0, -3.0, -11.0, np.nan]})
    mean = plots.seed_mean(runs)
    assert mean["elbo"].tolist()[0] == -10.0
    assert mean["elbo"].isna().tolist() == [False, True, True]


def test_gap_is_shaded_and_named(whole: Path, figures: dict[str, Figure]) -> None:
    relaxed, exact = figures["gap"].axes
    metrics = read_run(whole).metrics
    last = metrics[(metrics["epoch"] == EPOCHS) & (metrics["estimator"] == "gumbel-softmax")]
    gap = (last["train_objective"] - last["train_elbo"]).mean()
    assert relaxed.get_title(loc="left") == f"gumbel-softmax\ngap +{gap:.2f} nats at step 230"
    assert exact.get_title(loc="left").startswith("exact\ngap −0.")
    assert len(relaxed.collections) == 1


@pytest.mark.parametrize("draw", [pictures.reconstructions, pictures.prior_samples])
def test_pictures_without_a_title_leave_no_room_for_one(draw) -> None:
    names = ("inputs", "reconstructions_start", "reconstructions_end", "samples")
    arrays = dict.fromkeys(names, np.ones((4, 64)))
    untitled, titled = (draw({label: arrays}, (8, 8)).get_figheight() for label in ("", "exact"))
    assert untitled < titled - 0.5


def test_each_of_eight_estimators_has_its_own_look() -> None:
    styles = style.estimator_styles(MANY).values()
    assert len({style.color for style in styles}) == len({style.marker for style in styles}) == 8


def test_an_absent_estimator_keeps_its_colour(run: Path) -> None:
    keep_lines(run, lambda row: row["estimator"] == "exact")
    curves = draw_all(run)["curves"].axes[0]
    assert {line.get_color() for line in curves.lines if len(line.get_xdata())} == {style.PALETTE[1]}


def test_perplexity_stands_beside_each_latent_and_pictures_below_its_categories(
    whole: Path, figures: dict[str, Figure]
) -> None:
    heatmap = figures["usage"].axes[0]
    arrays = load_file(cell_folder(whole, "gumbel-softmax", 0) / PICTURES)
    usage = arrays["code_usage"]
    shown, below = heatmap.images[::2], heatmap.images[1::2]
    for row, use, strip, images in zip(usage, arrays["category_pictures"], shown, below, strict=True):
        order = np.argsort(-row)
        np.testing.assert_allclose(strip.get_array(), [8 * row[order]])  # 1 in uniform use
        drawn = images.get_array().reshape(8, 8, 9)[:, :, :8].swapaxes(0, 1)  # a column between them
        np.testing.assert_array_equal(drawn, use[order].reshape(8, 8, 8))
        assert strip.get_extent()[2] == images.get_extent()[3]  # directly below
    assert shown[0].norm(1.0) == 0.5
    expected = [f"{np.exp(-(row * np.log(row)).sum()):.1f}" for row in usage]
    assert [text.get_text() for text in heatmap.child_axes[0].texts] == expected


@pytest.mark.parametrize("shape", [(1, 1), (2, 3), (28, 28)])
def test_mosaic_puts_every_image_in_its_place(shape: tuple[int, int]) -> None:
    height, width = shape
    images = np.arange(5.0 * height * width).reshape(5, -1)
    canvas = pictures.mosaic(images, shape, columns=3)
    margin = max(1, height // 12)
    for index, image in enumerate(images):
        top, left = (margin + place * (size + margin) for place, size in zip(divmod(index, 3), shape, strict=True))
        np.testing.assert_array_equal(canvas[top : top + height, left : left + width], image.reshape(shape))
    assert np.isfinite(canvas).sum() == images.size


def test_mosaic_refuses_another_image_shape() -> None:
    with pytest.raises(ValueError, match=r"Expected images of 8 x 8 pixels, but found 784 dimensions\. Try"):
        pictures.mosaic(np.zeros((2, 784)), (8, 8), columns=2)


def test_perplexity_of_an_unused_category_is_finite() -> None:
    assert pictures.perplexity(np.array([[0.5, 0.5, 0.0]])).tolist() == pytest.approx([2.0])
