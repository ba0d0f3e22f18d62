"""Write a recommendation and its measurements as one self-contained page."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from ..runs.tables import with_errors
from ..runtime.memory import in_words
from .pages import Shown, embedded, printable, write_page
from .settings import Settings, documentation, files_beside
from .style import INK, PALETTE, SMALL_PRINT, in_house_style, save_figure

MEASURES = ("relative_bias", "relative_std", "cosine", "progress")


def write_advice_report(
    folder: Path,
    table: pd.DataFrame,
    finding: str,
    reasons: Sequence[str],
    *,
    train_by: str,
    settings: Settings,
    command: str,
) -> Path:
    """Write report.html of a recommendation: what to train with, why, what to type, and what was measured.

    Args:
        folder: where the page goes, with its figure.
        table: the rows of :func:`~pyro_gvae.diagnostics.advise.advise`.
        finding: the recommendation, one sentence.
        reasons: sentences with the measured numbers.
        train_by: the command that follows the advice.
        settings: the settings of the measurement, sorted.
        command: the command that measured.

    Returns:
        The path of the page.
    """
    figure = draw_speeds(table)
    figures = []
    if figure is not None:
        svg = save_figure(figure, folder / "figures", "speeds")
        caption = (
            "Progress per second of each estimator, in units of one exact step: this is what the recommendation "
            "compares. Whiskers: two standard errors of the progress; the time of a step is a median."
        )
        figures.append(Shown("speeds", embedded(svg), "Progress per second", caption))
    return write_page(
        folder / "report.html",
        "measured.html.j2",
        title=f"Which estimator? {printable(folder.resolve().name)}",
        kicker="pyro-gvae advise",
        lead="Estimators measured for a short time on a model of this size and these data.",
        finding=finding,
        remarks=list(reasons),
        left_out=[],
        command=train_by,
        figures=figures,
        table=advice_text(table),
        note="Mean ± standard error. Bias and standard deviation are relative to the norm of the exact gradient.",
        reproduce=command,
        settings=settings,
        files=files_beside(folder),
        documentation=documentation("howto/choose.md"),
    )


def advice_text(table: pd.DataFrame) -> pd.DataFrame:
    """Format the rows of :func:`~pyro_gvae.diagnostics.advise.advise` that have numbers."""
    text = table[["estimator"]].join(with_errors(table, ("temperature", *MEASURES)))
    text["ms per step"] = (1e3 * table["seconds"]).map("{:.3g}".format)
    text["memory"] = [in_words(value) if pd.notna(value) else "" for value in table["memory"]]
    return text[table["refused"].isna()]


@in_house_style
def draw_speeds(table: pd.DataFrame) -> Figure | None:
    """Draw the progress per second of each measured estimator, the fastest on top.

    Args:
        table: the rows of :func:`~pyro_gvae.diagnostics.advise.advise`.

    Returns:
        The figure, or None if no progress was measured.
    """
    if "progress" not in table or table["progress"].isna().all():
        return None
    rows = table[table["progress"].notna() & table["seconds"].notna()]
    rows = rows.assign(speed=rows["progress"] / rows["seconds"], error=2 * rows["progress_se"] / rows["seconds"])
    rows = rows.sort_values("speed")
    labels = [
        name if pd.isna(temperature) else f"{name}, t = {temperature:g}"
        for name, temperature in zip(rows["estimator"], rows["temperature"], strict=True)
    ]
    figure = Figure(figsize=(8, 1.4 + 0.26 * len(rows)))
    axes = figure.subplots()
    colors = [PALETTE[2] if unbiased else PALETTE[1] for unbiased in rows["unbiased"].astype(bool)]
    places = np.arange(len(rows))
    axes.barh(places, rows["speed"], 0.7, color=colors, xerr=rows["error"].fillna(0.0), ecolor=INK)
    axes.set_yticks(places, labels)
    for place, speed, seconds in zip(places, rows["speed"], rows["seconds"], strict=True):
        words = f"{1e3 * seconds:.3g} ms a step"
        axes.annotate(words, (max(speed, 0), place), (8, 0), textcoords="offset points", va="center", **SMALL_PRINT)
    axes.set_xlim(0, 1.25 * rows["speed"].max())
    axes.set(xlabel="progress of exact steps per second; t: temperature")
    axes.grid(axis="y", visible=False)
    handles = [Patch(color=PALETTE[2], label="unbiased"), Patch(color=PALETTE[1], label="biased")]
    axes.legend(handles=handles, loc="lower right")
    return figure
