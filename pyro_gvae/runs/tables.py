"""Compute a run's tables: final rows, means and standard errors over seeds, paired differences, and their text."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import pandas as pd


class Measure(NamedTuple):
    """A column of the results table: its name in `summarize`, its heading, unit and number of decimals."""

    name: str
    heading: str
    unit: str
    decimals: int


#: The number of draws of continuous latents for a bound on log p(x).
NUM_DRAWS = 50
EVIDENCE = Measure("test_log_evidence", "test log p(x)", "nats", 2)
#: It replaces log p(x) for continuous latents: :func:`~pyro_gvae.evaluate.collapsed.collapsed_importance_weighted`.
BOUND = Measure("test_collapsed_iwae_bound", "test bound of log p(x)", "nats", 2)
MEASURES = (
    Measure("test_elbo", "test ELBO", "nats", 2),
    EVIDENCE,
    Measure("test_objective", "own objective", "nats", 2),
    Measure("gap", "gap", "nats", 2),
    Measure("seconds", "seconds", "s", 1),
    Measure("steps_per_second", "steps/s", "1/s", 1),
)
CELL = ["estimator", "seed"]


def is_bounded(table: pd.DataFrame) -> bool:
    """Tell whether a table has a bound in place of log p(x), as for models whose log p(x) is not a finite sum."""
    return BOUND.name in table


def measures_of(table: pd.DataFrame) -> tuple[Measure, ...]:
    """Return the measures that a table has."""
    return tuple(BOUND if one is EVIDENCE and is_bounded(table) else one for one in MEASURES)


def paired_measures_of(table: pd.DataFrame) -> tuple[Measure, ...]:
    """Return the measures whose differences between estimators are reported."""
    return tuple(one for one in measures_of(table) if one in (BOUND, EVIDENCE) or one.name in ("test_elbo", "seconds"))


def label(estimator: str, setting: str) -> str:
    """Join estimator and setting to the label that all seeds share.

    Example:
        >>> label("exact", ""), label("exact", "8x4")
        ('exact', 'exact, 8x4')
    """
    return f"{estimator}, {setting}" if setting else estimator


def labelled(rows: pd.DataFrame) -> pd.DataFrame:
    """Replace the column `estimator` by the label; the new column `plan` has the estimator as it was given.

    Args:
        rows: a table with the columns `estimator` and `setting`.
    """
    rows = rows.assign(plan=rows["estimator"], setting=rows["setting"].fillna(""))
    return rows.assign(estimator=[label(*pair) for pair in zip(rows["plan"], rows["setting"], strict=True)])


def final_rows(metrics: pd.DataFrame) -> pd.DataFrame:
    """Select the last evaluation of each (estimator, seed).

    Args:
        metrics: One row for each evaluation, with the columns of `metrics.jsonl`.

    Returns:
        One row for each (estimator, seed) in order of appearance, with the same columns;
        `steps_per_second` is the mean over the whole training, step / seconds (NaN if there was none).

    Example:
        >>> rows = [{"estimator": "exact", "seed": 0, "step": s, "seconds": s / 8, "steps_per_second": None}
        ...         for s in (0, 10, 20)]
        >>> final_rows(pd.DataFrame(rows))[["step", "seconds", "steps_per_second"]].values.tolist()
        [[20.0, 2.5, 8.0]]
    """
    # The sort is stable: of two evaluations at one step (of a resumed run), the later line is used.
    last = metrics.sort_values("step", kind="stable").drop_duplicates(CELL, keep="last")
    last = metrics[CELL].drop_duplicates().merge(last, on=CELL)  # in order of appearance
    return last.assign(steps_per_second=last["step"] / last["seconds"].where(last["seconds"] > 0))


def summarize(final: pd.DataFrame) -> pd.DataFrame:
    """Compute mean and standard error over seeds, for each estimator.

    The standard error is s.d. / sqrt(n), where the s.d. divides by n - 1; NaN with one seed. A seed whose number is
    not finite makes the mean NaN, because leaving it out would make the estimator look better than it is.

    Args:
        final: One row for each (estimator, seed), from `final_rows`.

    Returns:
        Indexed by estimator, in order of appearance: `seeds` (their number) and, for each measure M, `M` (the
        mean) and `M_se`. The measures are `test_elbo`, `test_log_evidence` (beside continuous latents
        `test_collapsed_iwae_bound`, a bound of it), `test_objective` (the estimator's own objective), `gap` =
        test_objective - test_elbo, by which that bound exceeds the discrete ELBO (all in nats per datum), `seconds` and
        `steps_per_second`.

    Example:
        >>> final = pd.DataFrame({"estimator": ["exact"] * 2, "seed": [0, 1], "test_elbo": [-20.0, -22.0],
        ...                       "test_log_evidence": -19.0, "test_objective": -18.0, "seconds": 3.0,
        ...                       "steps_per_second": 9.0})
        >>> summarize(final).loc["exact", ["test_elbo", "test_elbo_se", "gap"]].tolist()
        [-21.0, 1.0, 3.0]
    """
    final = final.assign(gap=final["test_objective"] - final["test_elbo"])
    by_estimator = final.groupby("estimator", sort=False)
    columns = {"seeds": by_estimator["seed"].nunique()}
    for measure in measures_of(final):
        by_measure = by_estimator[measure.name]
        columns[measure.name] = by_measure.agg(lambda values: values.mean(skipna=False))
        columns[f"{measure.name}_se"] = by_measure.agg(lambda values: values.sem(skipna=False))
    return pd.DataFrame(columns)


def seed_differences(final: pd.DataFrame, estimator: str, baseline: str) -> pd.DataFrame:
    """Subtract `baseline` from `estimator` on each seed that both have.

    Args:
        final: One row for each (estimator, seed), from `final_rows`.
        estimator: The label of the minuend.
        baseline: The label of the subtrahend.

    Returns:
        Indexed by seed: the differences in `test_elbo`, `test_log_evidence` or its bound (nats per datum) and
        `seconds`.
    """
    names = [measure.name for measure in paired_measures_of(final)]
    one, other = (final[final["estimator"] == name].set_index("seed")[names] for name in (estimator, baseline))
    seeds = one.index.intersection(other.index)
    return one.loc[seeds] - other.loc[seeds]


def choose_baseline(final: pd.DataFrame) -> str:
    """Choose the estimator that the others are compared with: `exact`, or the first one if there is no `exact`.

    Args:
        final: a table from `labelled`.
    """
    plans = list(final["plan"].unique())
    return "exact" if "exact" in plans else str(plans[0])


def paired_differences(final: pd.DataFrame, baseline: str = "exact") -> pd.DataFrame:
    """Compute mean and standard error of each estimator's differences from `baseline` on the same seeds.

    In a grid, each estimator is compared with the baseline in the same setting; a part of the setting that the baseline
    lacks, such as a temperature, is ignored.

    The same seed means the same initial weights and batches, whose effect cancels in the difference. Its standard error
    is therefore usually much smaller than those of the two means.

    Args:
        final: One row for each (estimator, seed), from `final_rows`; in a grid, from `labelled`.
        baseline: The estimator that the others are compared with.

    Returns:
        Indexed by every other estimator, or its label: `seeds` (how many both have) and the mean and `_se` of the
        differences in `test_elbo`, `test_log_evidence` or its bound (nats per datum) and `seconds`.

    Raises:
        ValueError: If `baseline` is not among the estimators.

    Example:
        >>> final = pd.DataFrame({"estimator": ["a", "a", "exact", "exact"], "seed": [0, 1, 0, 1], "seconds": 1.0,
        ...                       "test_elbo": [-5.0, -8.0, -4.0, -5.0], "test_log_evidence": -3.0})
        >>> paired_differences(final).loc["a", ["test_elbo", "test_elbo_se"]].tolist()
        [-2.0, 1.0]
    """
    if "plan" not in final:
        final = labelled(final.assign(setting=""))
    estimators = list(final["plan"].unique())
    if baseline not in estimators:
        found = ", ".join(estimators) or "none"
        raise ValueError(
            f"Expected the baseline '{baseline}' among the estimators, but found {found}. Try one of them."
        )
    rows = {}
    contenders = final[["plan", "setting", "estimator"]].drop_duplicates()
    for one in contenders[contenders["plan"] != baseline].itertuples():
        for other in contenders[contenders["plan"] == baseline].itertuples():
            if not set(_parts(other.setting)) <= set(_parts(one.setting)):
                continue  # a different setting
            difference = seed_differences(final, one.estimator, other.estimator)
            rows[one.estimator] = {"seeds": len(difference)}
            for name in difference:
                rows[one.estimator][name] = difference[name].mean(skipna=False)
                rows[one.estimator][f"{name}_se"] = difference[name].sem(skipna=False)
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("estimator")


def _parts(setting: str) -> list[str]:
    return setting.split(", ") if setting else []


def table_text(summary: pd.DataFrame, measures: tuple[Measure, ...], *, sign: str = "-") -> pd.DataFrame:
    """Format the numbers of a summary as "mean ± standard error", padded so that the columns align.

    Args:
        summary: From `summarize` or `paired_differences`.
        measures: The columns to show.
        sign: The `format` sign option: "-" for values, "+" for differences.

    Returns:
        The same index, one column of strings of equal width for each measure; a dash for a missing number.
    """
    columns = {}
    for measure in measures:
        means = [_number(value, measure.decimals, sign) for value in summary[measure.name]]
        errors = [_number(value, measure.decimals, "-") for value in summary[f"{measure.name}_se"]]
        left, right = (max(map(len, texts), default=0) for texts in (means, errors))
        if not any(errors):
            columns[measure.name] = [(mean or "–").rjust(left) for mean in means]
        else:
            columns[measure.name] = [
                (mean or "–").rjust(left) + (f" ± {error.rjust(right)}" if error else " " * (right + 3))
                for mean, error in zip(means, errors, strict=True)
            ]
    return pd.DataFrame(columns, index=summary.index)


def _number(value: float, decimals: int, sign: str) -> str:
    # z: a value that rounds to zero has no sign.
    return "" if math.isnan(value) else f"{value:{sign}z.{decimals}f}"


def format_table(summary: pd.DataFrame) -> str:
    """Format the results table for the terminal: an aligned row for each estimator, with units.

    Args:
        summary: From `summarize`.

    Returns:
        Lines of text, with a note that explains the columns.
    """
    measures = measures_of(summary)
    text = table_text(summary, measures)
    columns = [
        ["estimator", "", *map(str, summary.index)],
        ["seeds", "", *map(str, summary["seeds"])],
        *([measure.heading, measure.unit, *text[measure.name]] for measure in measures),
    ]
    widths = [max(map(len, column)) for column in columns]
    lines = [
        "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]).rstrip()
        for row in zip(*columns, strict=True)
    ]
    drawn = [f"bound of log p(x): {NUM_DRAWS} draws of continuous latents, codes summed."] if BOUND in measures else []
    spread = "mean ± standard error over seeds" if (summary["seeds"] > 1).any() else "one seed, so no standard error"
    return "\n".join(
        [
            *lines,
            f"Discrete model on the test set, nats per datum, higher is better; {spread}.",
            "own objective: what the estimator itself maximizes; gap: own objective - test ELBO.",
            *drawn,
        ]
    )


def with_errors(table: pd.DataFrame, names: Sequence[str]) -> pd.DataFrame:
    """Format numbers with their standard errors, from the columns `M` and `M_se`; empty if there is no number.

    An error is shown with two significant digits, and its number with the same decimals; a number without an error has
    four significant digits.

    Args:
        table: any table.
        names: the columns to show; columns that the table lacks are skipped.

    Example:
        >>> found = pd.DataFrame({"elbo": [-125.4012, -1.23456, None], "elbo_se": [0.5512, None, None]})
        >>> with_errors(found, ["elbo"])["elbo"].tolist()
        ['-125.40 ± 0.55', '-1.235', '']
    """
    columns = {}
    for name in filter(table.columns.__contains__, names):
        errors = table.get(f"{name}_se", pd.Series(math.nan, table.index))
        columns[name.replace("_", " ")] = [
            "" if pd.isna(value) else _with_error(value, error)
            for value, error in zip(table[name], errors, strict=True)
        ]
    return pd.DataFrame(columns, index=table.index)


def _with_error(value: float, error: float) -> str:
    if not 0 < error < math.inf:
        return f"{value:.4g}"
    decimals = 1 - math.floor(math.log10(error))
    return f"{value:.{decimals}f} ± {error:.{decimals}f}" if 0 <= decimals <= 6 else f"{value:.4g} ± {error:.2g}"
