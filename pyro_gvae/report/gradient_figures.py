"""Draw the figures of the gradient laboratory from its table."""

import math
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from .style import PALETTE, SMALL_PRINT, Style, estimator_styles, in_house_style


class Panel(NamedTuple):
    """A row of panels: a column of the table, its label, and the scale of its axis."""

    name: str
    label: str
    scale: str


#: Smaller differences of the cosine from 1 are drawn as this one: they are noise, which can be negative.
LEAST_TURN = 1e-4
PANELS = (
    Panel("relative_bias", "bias, as a share\nof the exact gradient", "linear"),
    Panel("relative_std", "standard deviation,\nas a share of the mean", "log"),
    Panel("turn", f"1 − cosine with the exact\n(at least {LEAST_TURN:g})", "log"),
    Panel("mse_at_budget", "relative squared error\nat equal seconds", "log"),
)

#: A logarithmic axis ends at this many times the median. A note lists the values above it: if the axis included them,
#: the other curves could not be distinguished.
AXIS_END = 20.0


class Look(NamedTuple):
    """The look of one estimator's lines; up to 16 are all different, with or without markers."""

    style: Style
    line: str
    across: str  # the line style of an estimator without a temperature
    face: Literal["full", "none"]


@in_house_style
def draw_against_temperature(table: pd.DataFrame, wrt: str = "logits") -> Figure | None:
    """Draw bias, standard deviation, cosine and error at equal seconds against temperature, a column per model.

    Estimators without a temperature are dashed or dotted horizontal lines. The exact one, whose bias and variance are
    zero, is left out. Error bars are one standard error.

    Args:
        table: from `gradients.jsonl`.
        wrt: which gradients to draw, "logits" or "parameters".

    Returns:
        The figure, or None if there is nothing to draw.
    """
    shown = _shown(table, wrt)
    if shown.empty:
        return None
    looks = _looks(list(shown["estimator"].unique()))
    panels = [panel for panel in PANELS if panel.name in shown and shown[panel.name].notna().any()]
    stages = list(shown.groupby(["trained_by", "seed", "epoch"], sort=False))
    figure = Figure(figsize=(2.6 + 2.9 * max(len(stages), 2), 1.0 + 2.1 * len(panels)))
    grid = figure.subplots(len(panels), len(stages), sharex=True, sharey="row", squeeze=False)
    for column, ((trained_by, seed, epoch), rows) in enumerate(stages):
        for axes, panel in zip(grid[:, column], panels, strict=True):
            for name, look in looks.items():
                _draw(axes, rows[rows["estimator"] == name], "temperature", panel, look)
        title = "at initialization" if epoch == 0 else f"epoch {epoch:g} by {trained_by}"
        grid[0, column].set_title(title if shown["seed"].nunique() == 1 else f"{title}, seed {seed}")
        grid[-1, column].set_xlabel("temperature")
    _finish(figure, grid[:, 0], panels, looks, shown, dashes=True)
    for (_, rows), column in zip(stages, grid.T, strict=True):
        for axes, panel in zip(column, panels, strict=True):
            _note_values_above(axes, rows, panel, width=46)
    if shown["temperature"].notna().any():
        grid[0, 0].set_xscale("log")
        grid[0, 0].set_xticks(sorted(shown["temperature"].dropna().unique()))
        grid[0, 0].xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        grid[0, 0].xaxis.set_minor_formatter(NullFormatter())
        grid[0, 0].minorticks_off()
    return figure


@in_house_style
def draw_along_training(table: pd.DataFrame, wrt: str = "logits") -> Figure | None:
    """Draw the same quantities against epochs of training, for each estimator at its best temperature.

    The best temperature has the smallest geometric mean over epochs of the error at equal seconds, or of the bias if
    that error was not measured.

    Args:
        table: from `gradients.jsonl`.
        wrt: which gradients to draw, "logits" or "parameters".

    Returns:
        The figure, or None if no model was measured at two epochs.
    """
    shown = _shown(table, wrt)
    shown = shown[shown.groupby(["trained_by", "seed"])["epoch"].transform("nunique") > 1] if len(shown) else shown
    if shown.empty:
        return None
    shown = pd.concat([_best_temperature(rows) for _, rows in shown.groupby("estimator", sort=False)])
    looks = _looks(list(shown["estimator"].unique()))
    panels = [panel for panel in PANELS if panel.name in shown and shown[panel.name].notna().any()]
    columns = min(2, len(panels))
    figure = Figure(figsize=(10, 0.8 + 2.8 * math.ceil(len(panels) / columns)))
    grid = figure.subplots(math.ceil(len(panels) / columns), columns, sharex=True, squeeze=False).ravel()
    for axes in grid[len(panels) :]:
        axes.remove()
    for axes, panel in zip(grid, panels, strict=False):
        for name, look in looks.items():
            _draw(axes, shown[shown["estimator"] == name], "epoch", panel, look)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    for axes in grid[: len(panels)][-columns:]:
        axes.set_xlabel(f"epochs of training by {shown['trained_by'].iloc[0]}")
        axes.tick_params(labelbottom=True)
    _finish(figure, grid[: len(panels)], panels, looks, shown, dashes=False)
    for axes, panel in zip(grid, panels, strict=False):
        _note_values_above(axes, shown, panel, width=84)
    return figure


def _shown(table: pd.DataFrame, wrt: str) -> pd.DataFrame:
    """Select the rows with numbers to draw."""
    rows = table[(table["wrt"] == wrt) & (table["estimator"] != "exact")]
    if "relative_bias" not in rows:
        return rows.iloc[:0]
    rows = rows[rows["relative_bias"].notna() | rows["relative_std"].notna()]
    if "cosine" not in rows:
        return rows
    return rows.assign(turn=(1 - rows["cosine"].astype(float)).clip(lower=LEAST_TURN), turn_se=rows.get("cosine_se"))


def _best_temperature(rows: pd.DataFrame) -> pd.DataFrame:
    """Select the rows of an estimator at its best temperature, and add that to its name."""
    if rows["temperature"].isna().all():
        return rows
    error = next(rows[name] for name in ("mse_at_budget", "relative_bias") if name in rows)
    best = np.log(error.clip(lower=1e-12)).groupby(rows["temperature"]).mean().idxmin()
    kept = rows[rows["temperature"] == best]
    return kept.assign(estimator=[f"{name}, t = {best:g}" for name in kept["estimator"]])


def _looks(estimators: Sequence[str]) -> dict[str, Look]:
    """Choose a look for each estimator; when the colours repeat, line style and marker face change."""
    rounds: tuple[tuple[str, str, Literal["full", "none"]], ...] = (("-", "--", "full"), ("-.", ":", "none"))
    return {
        name: Look(style, *rounds[min(index // len(PALETTE), len(rounds) - 1)])
        for index, (name, style) in enumerate(estimator_styles(estimators).items())
    }


def _draw(axes: Axes, rows: pd.DataFrame, clock: str, panel: Panel, look: Look) -> None:
    errors = rows.get(f"{panel.name}_se", pd.Series(0.0, rows.index)).astype(float).fillna(0.0)
    drawn: Any = {"color": look.style.color}
    if clock == "temperature" and rows["temperature"].isna().all():
        for value in rows[panel.name]:
            axes.axhline(value, ls=look.across, lw=2, **drawn)
        return
    ordered = rows.sort_values(clock)
    drawn |= {"marker": look.style.marker, "fillstyle": look.face, "ls": look.line, "ms": 4, "lw": 1.8}
    axes.errorbar(ordered[clock], ordered[panel.name], yerr=errors[ordered.index], capsize=2, elinewidth=1, **drawn)


def _note_values_above(axes: Axes, rows: pd.DataFrame, panel: Panel, *, width: int) -> None:
    """List in small print above a panel the estimators that exceed its axis, with the range of their values."""
    above = rows[rows[panel.name] > axes.get_ylim()[1]] if panel.scale == "log" else rows.iloc[:0]
    if above.empty:
        return
    named = [
        f"{name.partition(',')[0]} {' to '.join(_rounded(value) for value in sorted({values.min(), values.max()}))}"
        for name, values in above.groupby("estimator", sort=False)[panel.name]
    ]
    unbroken = ", ".join(name.replace(" ", "\N{NO-BREAK SPACE}") for name in named)
    note = textwrap.fill(f"above: {unbroken}", width, break_on_hyphens=False)
    axes.set_title(note, loc="right", **SMALL_PRINT | {"fontsize": 7.5})


def _rounded(value: float) -> str:
    """Format a number rounded to two significant digits.

    Example:
        >>> _rounded(238.4), _rounded(4380512.0)
        ('240', '4,400,000')
    """
    return f"{float(f'{value:.2g}'):,.10g}"


def _finish(
    figure: Figure,
    firsts: Any,
    panels: list[Panel],
    looks: Mapping[str, Look],
    shown: pd.DataFrame,
    *,
    dashes: bool,
) -> None:
    """Scale the axes, and add the legend and a note."""
    for axes, panel in zip(firsts, panels, strict=True):
        _scale(axes, panel, shown[panel.name].dropna())
    named = shown.groupby("estimator")["temperature"]
    flat = {name for name, values in named if values.isna().all()} if dashes else set()
    handles = [
        Line2D([], [], color=look.style.color, ls=look.across, lw=2, label=name)
        if name in flat
        else Line2D(
            [], [], color=look.style.color, ls=look.line, marker=look.style.marker, fillstyle=look.face, label=name
        )
        for name, look in looks.items()
    ]
    figure.legend(handles=handles, loc="outside upper left", ncols=3)
    what = "the guide's logits" if shown["wrt"].iloc[0] == "logits" else "all parameters"
    errors = any(shown.get(f"{panel.name}_se", pd.Series(dtype=float)).notna().any() for panel in panels)
    note = f"gradient with respect to {what}{'; bars: standard error' if errors else ''}"
    note += "" if dashes else "; t: temperature"
    figure.supxlabel(note, x=0.99, ha="right", **SMALL_PRINT)


def _scale(axes: Axes, panel: Panel, values: pd.Series) -> None:
    """Label the axis of a panel, and give it the range of its values."""
    axes.set_ylabel(panel.label)
    if panel.scale == "log" and values.max() < 1.01 * values.min():  # which have no range of their own
        axes.set_ylim(values.min() / 2, 2 * values.max())
    axes.set_yscale(panel.scale)
    if panel.scale == "linear":  # the values decide, since a very long error bar would compress all of them
        axes.set_ylim(0.0, 1.15 * values.max() or None)
        return
    low, high = axes.get_ylim()
    if panel.name == "turn":  # at most 2, with error bars that may go down to 0
        low = max(low, LEAST_TURN / 1.5)
    else:
        high = min(high, max(AXIS_END * values.median(), low))
    axes.set_ylim(low, high)
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 100 * low else (1,)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
