"""Tables of a run against numbers computed by hand."""

import math

import pandas as pd
import pytest

from pyro_gvae.runs.tables import final_rows, format_table, labelled, paired_differences, summarize


def make_final() -> pd.DataFrame:
    """Return results of two estimators whose seeds are correlated, so that pairing matters."""
    return pd.DataFrame(
        {
            "estimator": ["relaxed", "relaxed", "relaxed", "exact", "exact", "exact", "lonely"],
            "seed": [0, 1, 2, 2, 1, 0, 0],
            "test_elbo": [-100.0, -102.0, -104.0, -103.0, -101.0, -98.0, -90.0],
            "test_log_evidence": [-98.0, -99.0, -100.0, -99.0, -98.0, -97.0, -88.0],
            "test_objective": [-95.0, -97.0, -100.0, -103.0, -101.0, -98.0, math.nan],
            "seconds": [1.0, 2.0, 3.0, 20.0, 20.0, 20.0, 5.0],
            "steps_per_second": [100.0, 50.0, 150.0, 5.0, 5.0, 5.0, 9.0],
        }
    )


def test_final_rows_takes_the_last_step_of_each_cell() -> None:
    metrics = pd.DataFrame(
        {
            "estimator": ["b", "a", "b", "b", "a", "b"],
            "seed": [0, 0, 0, 1, 0, 0],
            "step": [0, 0, 20, 0, 10, 20],
            "seconds": [0.0, 0.0, 4.0, 0.0, 5.0, 5.0],
            "test_elbo": [-9.0, -8.0, -5.0, -9.5, -4.0, -5.5],
            "steps_per_second": [None, None, 1.0, None, 1.0, 1.0],
        }
    )
    final = final_rows(metrics)
    assert final[["estimator", "seed", "step"]].values.tolist() == [["b", 0, 20], ["a", 0, 10], ["b", 1, 0]]
    assert final["test_elbo"].tolist() == [-5.5, -4.0, -9.5]  # the later of two lines at step 20
    assert final["steps_per_second"].tolist()[:2] == [4.0, 2.0]
    assert math.isnan(final["steps_per_second"][2])


@pytest.mark.parametrize(
    ("estimator", "measure", "mean", "error"),
    [
        ("relaxed", "test_elbo", -102.0, 1.1547005),  # s.d. 2, over sqrt 3
        ("relaxed", "test_log_evidence", -99.0, 0.5773503),
        ("relaxed", "test_objective", -97.3333333, 1.4529663),  # s.d. sqrt(19/3)
        ("relaxed", "gap", 4.6666667, 0.3333333),  # 5, 5, 4
        ("relaxed", "seconds", 2.0, 0.5773503),
        ("relaxed", "steps_per_second", 100.0, 28.8675135),
        ("exact", "test_elbo", -100.6666667, 1.4529663),
        ("exact", "gap", 0.0, 0.0),
        ("lonely", "test_elbo", -90.0, math.nan),
        ("lonely", "gap", math.nan, math.nan),
    ],
)
def test_summary_by_hand(estimator: str, measure: str, mean: float, error: float) -> None:
    row = summarize(make_final()).loc[estimator]
    assert row[measure] == pytest.approx(mean, abs=1e-6, nan_ok=True)
    assert row[f"{measure}_se"] == pytest.approx(error, abs=1e-6, nan_ok=True)


def test_summary_counts_seeds_and_keeps_the_order() -> None:
    summary = summarize(make_final())
    assert summary["seeds"].to_dict() == {"relaxed": 3, "exact": 3, "lonely": 1}
    assert list(summary.index) == ["relaxed", "exact", "lonely"]


def test_a_diverged_seed_is_not_averaged_away() -> None:
    final = make_final()
    final.loc[1, "test_elbo"] = math.nan
    summary = summarize(final)
    assert math.isnan(summary.loc["relaxed", "test_elbo"])
    assert summary.loc["exact", "test_elbo"] == pytest.approx(-100.6666667)


def test_paired_differences_by_hand() -> None:
    paired = paired_differences(make_final(), baseline="exact")
    assert list(paired.index) == ["relaxed", "lonely"]
    relaxed = paired.loc["relaxed"]
    assert relaxed["seeds"] == 3
    assert relaxed["test_elbo"] == pytest.approx(-1.3333333)  # -2, -1, -1: the rows of `exact` are in another order
    assert relaxed["test_elbo_se"] == pytest.approx(0.3333333)
    assert relaxed[["test_log_evidence", "test_log_evidence_se"]].tolist() == [-1.0, 0.0]
    assert relaxed["seconds"] == pytest.approx(-18.0)
    # Pairing makes the error small: the error of the difference of means is 1.86.
    assert relaxed["test_elbo_se"] < math.hypot(1.1547, 1.4530)
    assert paired.loc["lonely", "seeds"] == 1
    assert paired.loc["lonely", "test_elbo"] == 8.0
    assert math.isnan(paired.loc["lonely", "test_elbo_se"])


def test_paired_differences_without_a_common_seed() -> None:
    final = make_final()
    final.loc[6, "seed"] = 7
    row = paired_differences(final).loc["lonely"]
    assert row["seeds"] == 0
    assert math.isnan(row["test_elbo"])


def test_a_grid_is_paired_within_its_settings() -> None:
    """Cells are paired with the baseline of the same setting, or with one that lacks a part of the setting."""
    names = ["relaxed", "relaxed", "exact", "exact", "relaxed"]
    settings = ["8x4, temperature 1", "6x5, temperature 1", "8x4", "6x5", "6x5, temperature 2"]
    rows = pd.DataFrame({"estimator": names, "setting": settings, "seed": 0, "test_log_evidence": -1.0, "seconds": 1.0})
    paired = paired_differences(labelled(rows.assign(test_elbo=[-10.0, -20.0, -7.0, -15.0, -30.0])))
    assert paired["test_elbo"].to_dict() == {
        "relaxed, 8x4, temperature 1": -3.0,
        "relaxed, 6x5, temperature 1": -5.0,
        "relaxed, 6x5, temperature 2": -15.0,
    }


def test_paired_differences_need_their_baseline() -> None:
    with pytest.raises(ValueError, match=r"baseline 'rebar' among .* found relaxed, exact, lonely\. Try"):
        paired_differences(make_final(), baseline="rebar")


# ---------------------------------------------------------------------------------------------- words


def test_table_for_the_terminal() -> None:
    lines = format_table(summarize(make_final())).splitlines()
    assert lines[:5] == [
        "estimator  seeds       test ELBO  test log p(x)   own objective          gap     seconds       steps/s",
        "                            nats           nats            nats         nats           s           1/s",
        "relaxed        3  -102.00 ± 1.15  -99.00 ± 0.58   -97.33 ± 1.45  4.67 ± 0.33   2.0 ± 0.6  100.0 ± 28.9",
        "exact          3  -100.67 ± 1.45  -98.00 ± 0.58  -100.67 ± 1.45  0.00 ± 0.00  20.0 ± 0.0    5.0 ±  0.0",
        "lonely         1   -90.00         -88.00               –            –          5.0          9.0",
    ]
    assert "nats per datum" in lines[5]
    assert "± standard error over seeds" in lines[5]


def test_table_of_one_seed_says_so() -> None:
    final = make_final()
    text = format_table(summarize(final[final["seed"] == 0]))
    assert "±" not in text
    assert "one seed, so no standard error" in text


def test_a_gap_that_rounds_to_zero_has_no_sign() -> None:
    final = make_final().query("seed == 0").assign(test_objective=lambda rows: rows["test_elbo"] - 1e-9)
    assert "-0.00" not in format_table(summarize(final))
