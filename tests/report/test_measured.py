"""Pages of measurements: their findings agree with the numbers, and names stay unchanged."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from pyro_gvae.report.advice import draw_speeds, write_advice_report
from pyro_gvae.report.gaps import gaps_finding, gaps_remarks
from pyro_gvae.report.gradient_figures import LEAST_TURN, draw_against_temperature
from pyro_gvae.report.gradients import gradients_finding, write_gradients_report
from pyro_gvae.report.settings import Settings
from pyro_gvae.runs.files import write_json


def gradients() -> pd.DataFrame:
    """Two estimators: the first is closer to the exact gradient before training, the second after it."""
    rows = [
        {"estimator": name, "temperature": temperature, "epoch": epoch, "relative_bias": bias, "mse_at_budget": error}
        for name, temperature, epoch, bias, error in (
            ("gumbel-softmax", 0.5, 0, 0.1, 0.2),
            ("reinforce-loo", None, 0, 0.0, 0.4),
            ("gumbel-softmax", 0.5, 3, 0.3, 0.5),
            ("reinforce-loo", None, 3, 0.0, 0.25),
            ("exact", None, 3, 0.0, 0.0),
        )
    ]
    shared = {"trained_by": "gumbel-softmax", "seed": 0, "wrt": "logits", "relative_std": 1.0, "refused": None}
    return pd.DataFrame([shared | row for row in rows])


def report_of(measured: pd.DataFrame, folder: Path) -> Path:
    write_json(folder / "config.json", {"dataset": "digits", "command": "pyro-gvae gradients"})
    return write_gradients_report(folder, measured.assign(cosine=0.0, snr=0.0, mse=0.0, progress=0.0))


@pytest.mark.slow
def test_on_a_phone_figures_and_tables_are_read_by_scrolling_up_to_their_ends(
    opened: Callable[[Path], AbstractContextManager[Any]], tmp_path: Path
) -> None:
    with opened(report_of(gradients(), tmp_path)) as page:
        page.set_viewport_size({"width": 375, "height": 700})
        assert page.evaluate("document.documentElement.scrollWidth") == 375
        for scroll in page.locator(".scroll").all():
            scroll.evaluate("box => box.scrollLeft = 9999")
            shown, whole = scroll.bounding_box(), scroll.locator("> *").bounding_box()
            assert whole["width"] > 700  # 46 rem: letters are as large as on a desk
            assert whole["x"] + whole["width"] <= shown["x"] + shown["width"] - 35  # left of the fade


def test_gradients_are_judged_late_in_training_and_by_error_in_equal_time(tmp_path):
    assert gradients_finding(gradients()) == (
        "After 3 epochs of gumbel-softmax, <b>reinforce-loo</b> has the smallest squared error in the time of one "
        "exact gradient, 0.25 of its squared norm, and a bias of 0 of its norm."
    )
    missing = dict.fromkeys(("relative_bias", "relative_std", "mse_at_budget"), float("nan"))
    refused = gradients().iloc[:1].assign(estimator="disarm", refused="Expected K=2.", **missing)
    page = report_of(pd.concat([gradients(), refused]).reset_index(drop=True), tmp_path).read_text()
    assert "<td>gumbel-softmax</td>" in page and "disarm: Expected K=2." in page
    assert page.count("<figure") == 2 and "<pre>pyro-gvae gradients</pre>" in page


def test_directions_near_the_right_one_are_told_apart():
    """Cosines of 0.9 and 0.99 are a factor of ten apart; one above 1 is noise."""
    found = draw_against_temperature(gradients().assign(cosine=[0.9, 0.99, 1.001, 0.9, 1.0]))
    axes = next(axes for axes in found.axes if axes.get_ylabel().startswith("1 − cosine"))
    heights = {
        float(line.get_ydata()[0]) for panel in found.axes if panel.get_yscale() == "log" for line in panel.lines
    }
    assert axes.get_yscale() == "log" and {round(height, 4) for height in heights} >= {0.1, 0.01, LEAST_TURN}
    most_right = draw_against_temperature(gradients().assign(cosine=[0.1, 1.0, 1.0, 1.0, 1.0]))
    axes = next(axes for axes in most_right.axes if axes.get_ylabel().startswith("1 − cosine"))
    assert axes.get_ylim()[1] > 0.9  # although most are at the bottom


@pytest.mark.parametrize("measured", [True, False])
def test_an_advice_shows_what_it_compares(measured, tmp_path):
    rows = [
        {"estimator": "exact", "seconds": 0.01, "progress": 1.0, "progress_se": 0.0, "unbiased": True},
        {"estimator": "reinmax", "seconds": 0.001, "progress": 0.5, "progress_se": 0.01, "unbiased": False},
    ]
    known = {"temperature": None, "relative_bias": 0.0, "relative_std": 0.0, "cosine": 1.0, "memory": 1e6}
    table = pd.DataFrame([known | {"refused": None} | row for row in rows])
    if not measured:
        table["progress"] = float("nan")
    else:
        axes = draw_speeds(table).axes[0]
        assert [label.get_text() for label in axes.get_yticklabels()] == ["exact", "reinmax"]  # the fastest on top
        assert [bar.get_width() for bar in axes.patches[:2]] == [100.0, 500.0]
    page = write_advice_report(
        tmp_path,
        table,
        "Train with <x>.",
        ["Since -1 < 0."],
        train_by="pyro-gvae train",
        settings=Settings({}, {}, {}),
        command="c",
    ).read_text()
    assert "<p>Train with &lt;x&gt;.</p>" in page and "<pre>pyro-gvae train</pre>" in page
    assert page.count("<figure") == measured


def test_a_bound_above_the_evidence_is_named():
    row = {"estimator": "exact", "relaxed_bound": -9.0, "elbo": -12.0, "log_evidence": -10.0, "relaxation_gap": -3.0}
    table = pd.DataFrame([row | {"relaxed": True, "amortization_gap": 1.5, "mean_field_gap": 0.5}])
    assert gaps_remarks(table) == [
        "The relaxed bound of <b>exact</b> is 3.00 nats above the ELBO of its discrete model, and 1.00 above log p(x), "
        "which no bound of the discrete model can exceed."
    ]
    never = table.assign(relaxed=False, relaxed_bound=-20.0, relaxation_gap=8.0)
    assert gaps_remarks(never) == [
        "The relaxed bound of <b>exact</b> is 8.00 nats below the ELBO of its discrete model, which was never trained "
        "with soft codes."
    ]
    assert gaps_remarks(table.drop(columns=["relaxed_bound", "relaxation_gap"])) == []
    assert "lacks 2.00 of that: 1.50 because the encoder" in gaps_finding(table)
