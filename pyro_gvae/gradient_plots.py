"""Figures of the gradient laboratory: its table in, `matplotlib.figure.Figure` out, in the style of `plots`."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from .plots import SMALL_PRINT, Style, estimator_styles, in_house_style


class Panel(NamedTuple):
    """A row of panels: a column of the table, what people call it, and its scale."""

    name: str
    label: str
    scale: str


PANELS = (
    Panel("relative_bias", "relative bias\n||E g − G|| / ||G||", "linear"),
    Panel("relative_std", "relative s.d.\n||sd g|| / ||E g||", "log"),
    Panel("cosine", "cosine of E g and G", "linear"),
    Panel("mse_at_budget", "relative squared error\nat equal seconds", "log"),
)


@in_house_style
def draw_against_temperature(table: pd.DataFrame, wrt: str = "logits") -> Figure | None:
    """Bias, standard deviation, cosine and error at equal seconds against the temperature, a column for each stage.

    Estimators without a temperature are dashed lines across; the exact one, whose bias and variance are zero, is left
    out. Error bars are one standard error.

    Args:
        table: from `gradients.jsonl`.
        wrt: which gradients.

    Returns:
        The figure, or None if there is nothing to draw.
    """
    shown = _shown(table, wrt)
    if shown.empty:
        return None
    styles = estimator_styles(list(shown["estimator"].unique()))
    panels = [panel for panel in PANELS if panel.name in shown and shown[panel.name].notna().any()]
    stages = list(shown.groupby(["trained_by", "seed", "epoch"], sort=False))
    figure = Figure(figsize=(2.6 + 2.9 * max(len(stages), 2), 1.0 + 2.1 * len(panels)))
    grid = figure.subplots(len(panels), len(stages), sharex=True, sharey="row", squeeze=False)
    for column, ((trained_by, seed, epoch), rows) in enumerate(stages):
        for axes, panel in zip(grid[:, column], panels, strict=True):
            for name, style in styles.items():
                _draw(axes, rows[rows["estimator"] == name], "temperature", panel, style)
        title = "at initialization" if epoch == 0 else f"epoch {epoch:g} by {trained_by}"
        grid[0, column].set_title(title if shown["seed"].nunique() == 1 else f"{title}, seed {seed}")
        grid[-1, column].set_xlabel("temperature")
    _finish(figure, grid[:, 0], panels, styles, shown, dashes=True)
    if shown["temperature"].notna().any():
        grid[0, 0].set_xscale("log")
        grid[0, 0].set_xticks(sorted(shown["temperature"].dropna().unique()))
        grid[0, 0].xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        grid[0, 0].xaxis.set_minor_formatter(NullFormatter())
        grid[0, 0].minorticks_off()
    return figure


@in_house_style
def draw_along_training(table: pd.DataFrame, wrt: str = "logits") -> Figure | None:
    """The same along the training, each estimator at the best of its temperatures.

    That is where the error at equal seconds, or the bias if that was not measured, has the smallest geometric mean over
    epochs.

    Args:
        table: from `gradients.jsonl`.
        wrt: which gradients.

    Returns:
        The figure, or None if no model was measured at two epochs.
    """
    shown = _shown(table, wrt)
    shown = shown[shown.groupby(["trained_by", "seed"])["epoch"].transform("nunique") > 1] if len(shown) else shown
    if shown.empty:
        return None
    shown = pd.concat([_best_temperature(rows) for _, rows in shown.groupby("estimator", sort=False)])
    styles = estimator_styles(list(shown["estimator"].unique()))
    panels = [panel for panel in PANELS if panel.name in shown and shown[panel.name].notna().any()]
    columns = min(2, len(panels))
    figure = Figure(figsize=(10, 0.8 + 2.8 * math.ceil(len(panels) / columns)))
    grid = figure.subplots(math.ceil(len(panels) / columns), columns, sharex=True, squeeze=False)
    for axes in grid.ravel()[len(panels) :]:
        axes.remove()
    for axes, panel in zip(grid.ravel(), panels, strict=False):
        for name, style in styles.items():
            _draw(axes, shown[shown["estimator"] == name], "epoch", panel, style)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    for axes in grid[-1]:
        axes.set_xlabel(f"epochs of training by {shown['trained_by'].iloc[0]}")
    _finish(figure, list(grid.ravel()[: len(panels)]), panels, styles, shown, dashes=False)
    return figure


def _shown(table: pd.DataFrame, wrt: str) -> pd.DataFrame:
    """Rows with numbers to draw."""
    rows = table[(table["wrt"] == wrt) & (table["estimator"] != "exact")]
    if "relative_bias" not in rows:
        return rows.iloc[:0]
    return rows[rows["relative_bias"].notna() | rows["relative_std"].notna()]


def _best_temperature(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows of an estimator at the best of its temperatures, named by it."""
    if rows["temperature"].isna().all():
        return rows
    error = next(rows[name] for name in ("mse_at_budget", "relative_bias") if name in rows)
    best = np.log(error.clip(lower=1e-12)).groupby(rows["temperature"]).mean().idxmin()
    kept = rows[rows["temperature"] == best]
    return kept.assign(estimator=[f"{name}, temperature {best:g}" for name in kept["estimator"]])


def _draw(axes: Axes, rows: pd.DataFrame, clock: str, panel: Panel, style: Style) -> None:
    errors = rows.get(f"{panel.name}_se", pd.Series(0.0, rows.index)).fillna(0.0)
    look: Any = {"color": style.color}
    if clock == "temperature" and rows["temperature"].isna().all():
        for value in rows[panel.name]:
            axes.axhline(value, ls="--", lw=1.5, **look)
        return
    ordered = rows.sort_values(clock)
    look |= {"marker": style.marker, "ms": 4, "lw": 1.8, "capsize": 2, "elinewidth": 1}
    axes.errorbar(ordered[clock], ordered[panel.name], yerr=errors[ordered.index], **look)


def _finish(
    figure: Figure,
    firsts: Any,
    panels: list[Panel],
    styles: Mapping[str, Style],
    shown: pd.DataFrame,
    *,
    dashes: bool,
) -> None:
    for axes, panel in zip(firsts, panels, strict=True):
        axes.set_ylabel(panel.label)
        axes.set_yscale(panel.scale)
        if panel.scale == "log":
            low, high = axes.get_ylim()
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 100 * low else (1,)))
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axes.yaxis.set_minor_formatter(NullFormatter())
        elif panel.name == "cosine":
            axes.set_ylim(min(0.0, axes.get_ylim()[0]), 1.03)
        else:  # an error bar that is larger than all values would leave these no room
            axes.set_ylim(0.0, 1.15 * shown[panel.name].max() or None)
    named = shown.groupby("estimator")["temperature"]
    flat = {name for name, heats in named if heats.isna().all()} if dashes else set()
    handles = [
        Line2D([], [], color=s.color, label=n, ls="--" if n in flat else "-", marker="" if n in flat else s.marker)
        for n, s in styles.items()
    ]
    figure.legend(handles=handles, loc="outside upper left", ncols=3)
    what = "the guide's logits" if shown["wrt"].iloc[0] == "logits" else "all parameters"
    figure.supxlabel(
        f"gradient with respect to {what}; G: exact; bars: standard error", x=0.99, ha="right", **SMALL_PRINT
    )
