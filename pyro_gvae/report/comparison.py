"""Write the report of a comparison, one self-contained HTML page.

The page shows only the results in the run folder. It lists unfinished, torn and absent results, and leaves them out of
the finding and the tables.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from markupsafe import Markup
from matplotlib.figure import Figure

from ..config.units import codes_in_words
from ..runs.contents import Run, read_run
from ..runs.folder import check_writable
from ..runs.tables import (
    MEASURES,
    PAIRED_MEASURES,
    choose_baseline,
    paired_differences,
    seed_differences,
    summarize,
    table_text,
)
from . import comparison_figures as plots
from . import pictures
from .pages import embedded, printable, write_page
from .style import Style, estimator_styles, save_figure


def write_report(run: Path) -> Path:
    """Draw the figures of a run folder and write its report.

    This reads `config.json`, `metrics.jsonl` and `cells/`, and writes `figures/*.png`, `figures/*.svg` and
    `report.html`, a page that needs no network and no script. The same results give the same bytes.

    Args:
        run: The run folder, finished or not.

    Returns:
        The path of `report.html`.

    Raises:
        ValueError: If the folder is not a run folder; the message names what is absent or unreadable.
    """
    contents = read_run(run)
    check_writable(run)
    estimators = contents.estimators
    summary = summarize(contents.final).reindex(estimators).fillna({"seeds": 0}).astype({"seeds": int})
    styles = estimator_styles(estimators)
    figures = _draw(contents, summary, styles)
    return write_page(
        run / "report.html",
        "report.html.j2",
        name=printable(run.resolve().name),
        config=contents.config,
        codes=codes_in_words(contents.config["num_latents"], contents.config["num_categories"]),
        estimators=estimators,
        finding=finding(contents.final),
        remarks=remarks(summary),
        missing=contents.missing,
        summary=summary,
        summary_text=table_text(summary),
        measures=MEASURES,
        paired_measures=PAIRED_MEASURES,
        **_paired(contents.final),
        figures={name: embedded(save_figure(figure, run / "figures", name)) for name, figure in figures.items()},
        colors={name: style.color for name, style in styles.items()},
    )


# -------------------------------------------------------------------------------------------- reading


def finding(final: pd.DataFrame) -> Markup:
    """Say in one sentence which estimator has the highest exact log-evidence, and by how much.

    The two best are compared on the seeds that every estimator has finished. They count as different if the mean of
    their paired differences exceeds two standard errors.

    Args:
        final: One row for each finished (estimator, seed).

    Returns:
        Escaped HTML.
    """
    sound = final.groupby("estimator").filter(lambda rows: rows["test_log_evidence"].notna().all())
    present = sound.groupby("seed")["estimator"].transform("nunique")
    shared = sound[present == sound["estimator"].nunique()]
    ranking = shared.groupby("estimator")["test_log_evidence"].mean().sort_values(ascending=False)
    if ranking.empty:
        return Markup("There is no finding yet: no seed has been finished by every estimator.")
    best = ranking.index[0]
    if len(ranking) == 1:
        values = shared["test_log_evidence"]
        return Markup(
            "<b>{}</b> ends with an exact test log-evidence of {} nats per datum ({}); "
            "no other estimator has finished, so there is no comparison."
        ).format(best, _mean(values), _count(values))
    second, superlative = ranking.index[1], "higher" if len(ranking) == 2 else "highest"
    difference = seed_differences(shared, best, second)["test_log_evidence"]
    if len(difference) == 1:
        return Markup(
            "On the only finished seed, <b>{}</b> ends with the {} exact test log-evidence, "
            "{} nats per datum above <b>{}</b>; one seed has no standard error."
        ).format(best, superlative, _mean(difference), second)
    evidence = f"paired over {_count(difference)}, ahead on {(difference > 0).sum()}"
    if difference.mean() > 2 * difference.sem():
        return Markup(
            "<b>{}</b> ends with the {} exact test log-evidence, {} nats per datum above <b>{}</b> ({})."
        ).format(best, superlative, _mean(difference), second, evidence)
    return Markup(
        "<b>{}</b> and <b>{}</b> differ by less than two standard errors in exact test log-evidence: "
        "the first is {} nats per datum above the second ({})."
    ).format(best, second, _mean(difference), evidence)


def remarks(summary: pd.DataFrame) -> list[Markup]:
    """Say what else the table shows: the bound that is furthest from its model, the speeds, too few seeds.

    Args:
        summary: From `tables.summarize`.

    Returns:
        Sentences of escaped HTML; numbers that were not measured are left out.
    """
    sentences = []
    gaps = summary["gap"].dropna()
    if len(gaps) and gaps.abs().max() >= 0.01:
        name = gaps.abs().idxmax()
        side = "above" if gaps[name] > 0 else "below"
        text = "The bound that <b>{}</b> itself optimizes is {:.2f} nats per datum {} the ELBO of its discrete model"
        text = Markup(text).format(name, abs(gaps[name]), side)
        excess = summary.loc[name, "test_objective"] - summary.loc[name, "test_log_evidence"]
        beyond = (
            f", and {excess:.2f} above its log-evidence, which no bound of that model can exceed"
            if excess >= 0.01
            else ""
        )
        sentences.append(text + beyond + ".")
    speeds = summary["steps_per_second"].dropna()
    if len(speeds) > 1:
        fast, slow = speeds.idxmax(), speeds.idxmin()
        text = "<b>{}</b> made {} steps per second and <b>{}</b> made {}, a factor of {}."
        numbers = (f"{value:.3g}" for value in (speeds[fast], speeds[slow], speeds[fast] / speeds[slow]))
        sentences.append(Markup(text).format(fast, next(numbers), slow, *numbers))
    if 1 < summary["seeds"].max() < 5:
        sentences.append(Markup("With so few seeds, the standard errors themselves are inaccurate."))
    return sentences


def _mean(values: pd.Series) -> str:
    mean, error = values.mean(), values.sem()
    # An error that would round to 0.00 gets decimals up to its first digit.
    decimals = 2 if not 0 < error < 0.005 else min(4, math.ceil(-math.log10(error)))
    spread = f" ± {error:.{decimals}f}" if len(values) > 1 else ""
    return f"{mean:.{decimals}f}{spread}".replace("-", "−")


def _count(values: pd.Series) -> str:
    return "one seed" if len(values) == 1 else f"{len(values)} seeds"


def _paired(final: pd.DataFrame) -> dict[str, Any]:
    """Compute the paired differences from the baseline, or None if there is only one estimator."""
    if final["plan"].nunique() < 2:
        return {"paired": None}
    baseline = choose_baseline(final)
    paired = paired_differences(final, baseline)
    return {"paired": paired, "baseline": baseline, "paired_text": table_text(paired, PAIRED_MEASURES, sign="+")}


# -------------------------------------------------------------------------------------------- figures


def _draw(run: Run, summary: pd.DataFrame, styles: Mapping[str, Style]) -> dict[str, Figure]:
    """Draw the figures that the results allow."""
    figures = {}
    if len(run.final):
        figures["final-values"] = plots.final_values(summary, styles)
    if len(run.metrics):
        figures["learning-curves"] = plots.learning_curves(run.metrics, styles)
        figures["training-gap"] = plots.training_gap(run.metrics, styles)
    if run.pictures:
        height, width = run.config["image_shape"]
        figures["reconstructions"] = pictures.reconstructions(run.pictures, (height, width))
        figures["prior-samples"] = pictures.prior_samples(run.pictures, (height, width))
        figures["code-usage"] = pictures.code_usage(run.pictures)
    return figures
