"""Draw the figures of a comparison from its tables.

These are pure functions that return a `matplotlib.figure.Figure`. They do not use pyplot, so they change no global
state and need no display. The colours are those of Okabe and Ito (2008), which people of every colour vision can
distinguish; markers and line styles also distinguish the estimators.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from ..runs.tables import BOUND, EVIDENCE, is_bounded
from .notes import label_marks, note_below, room_below
from .style import INK, Style, in_house_style, panel_grid, signed, wrapped

#: Letters that fit into a row of a legend 10 inches wide; a column needs six more than its longest label.
LEGEND_LETTERS = 115


@in_house_style
def final_values(summary: pd.DataFrame, styles: Mapping[str, Style]) -> Figure:
    """Draw the final values of each estimator: its own objective, the discrete ELBO and the log-evidence, or its bound.

    Args:
        summary: From `tables.summarize`.
        styles: From `estimator_styles`.

    Returns:
        One row for each estimator, in nats per datum, with standard errors; words say what the marks of the first mean.
    """
    figure = Figure(figsize=(10, 1.4 + 0.5 * len(summary)))
    axes = figure.subplots()
    evidence = (BOUND.name, "bound of log p(x)") if is_bounded(summary) else (EVIDENCE.name, "log-evidence, log p(x)")
    kinds = {  # column: label, marker, its size, its face; chosen so that all remain visible where they overlap
        "test_objective": ("own objective, which training reports", "o", 11, "white"),
        "test_elbo": ("discrete ELBO", "o", 6, None),
        evidence[0]: (evidence[1], "|", 20, None),
    }
    for row, (name, values) in enumerate(summary.iterrows()):
        style = styles[name]
        # A thick pale bar from the ELBO to the bound shows the gap.
        axes.plot([values["test_elbo"], values["test_objective"]], [row, row], color=style.color, alpha=0.25, lw=7)
        for kind, (_, marker, size, face) in kinds.items():
            look: Any = {"marker": marker, "ms": size, "mew": 1.5, "color": style.color, "mfc": face or style.color}
            axes.errorbar(values[kind], row, xerr=values[f"{kind}_se"], capsize=3, ls="none", **look)
    axes.set_yticks(range(len(summary)), list(summary.index))
    axes.set_ylim(len(summary) - 0.5, -1.1)
    axes.set_xlabel("nats per datum, test set (higher is better)")
    axes.grid(axis="x")
    first = summary.iloc[0]
    marks = {label: float(first[kind]) for kind, (label, *_) in kinds.items() if np.isfinite(first[kind])}
    label_marks(axes, marks, height=0.62, color=styles[summary.index[0]].color)
    return figure


@in_house_style
def learning_curves(metrics: pd.DataFrame, styles: Mapping[str, Style]) -> Figure:
    """Draw test ELBO and log-evidence, or its bound, of the discrete model against steps and seconds of training.

    Thin lines are seeds, bold lines their means; a star is the highest mean, if it lies before the end. The vertical
    scale fits the curves after a fifth of the training; a note says how far below it they began. Seconds are on a log
    scale if the estimators' speeds differ much.

    Args:
        metrics: One row for each evaluation, from `metrics.jsonl`.
        styles: From `estimator_styles`, for every estimator to show.

    Returns:
        Two rows (ELBO, log-evidence), two columns (steps, seconds), each row with a common scale.
    """
    figure = Figure(figsize=(10, 7))
    panels = figure.subplots(2, 2, sharex="col", sharey="row")
    any_best, below = False, []
    measures = {"test_elbo": "test ELBO"}
    measures |= {BOUND.name: BOUND.heading} if is_bounded(metrics) else {EVIDENCE.name: "test log-evidence log p(x)"}
    for row, (measure, label) in zip(panels, measures.items(), strict=True):
        for name, style in styles.items():
            runs = metrics[metrics["estimator"] == name]
            for axes, clock in zip(row, ("step", "seconds"), strict=True):
                _draw_seeds(axes, runs, clock, measure, color=style.color, marker=style.marker)
                any_best |= _mark_best(axes, runs, clock, measure, style)
        row[0].set_ylabel(f"{label}\n(nats per datum)")
        below.append(_frame_curves(row[0], metrics, [measure]))
    _label_steps(panels[1, 0])
    for axes, note in zip(panels[:, 0], below, strict=True):
        note_below(axes, note, columns=2)
    _label_seconds(panels[1, 1], metrics)
    handles = [Line2D([], [], color=s.color, marker=s.marker, ms=4, lw=2.2, label=n) for n, s in styles.items()]
    if any_best:
        star: Any = {"ls": "none", "marker": "*", "ms": 11, "mec": "white"}
        handles.append(Line2D([], [], color=INK, label="best, before the end", **star))
    if metrics.groupby("estimator")["seed"].nunique().max() > 1:
        handles.append(Line2D([], [], color=INK, lw=2.2, label="mean over seeds"))
        handles.append(Line2D([], [], color=INK, lw=0.8, alpha=0.5, label="single seed"))
    longest = max(len(str(handle.get_label())) for handle in handles)
    columns = max(1, min(5, len(handles), LEGEND_LETTERS // (longest + 6)))
    figure.legend(handles=handles, loc="outside upper left", ncols=columns)
    return figure


@in_house_style
def training_gap(metrics: pd.DataFrame, styles: Mapping[str, Style]) -> Figure:
    """Draw the training objective and the discrete ELBO of each estimator, both on training data.

    Args:
        metrics: One row for each evaluation, from `metrics.jsonl`.
        styles: From `estimator_styles`, for every estimator to show.

    Returns:
        One panel for each estimator with both curves against steps; the gap between their means is shaded.
    """
    columns = min(3, len(styles))
    width = min(7.0, 10.5 / columns)
    titles, more = wrapped(list(styles), width)
    figure, panels = panel_grid(len(styles), columns, size=(width, 3.3 + more), share_axes=True)
    for axes, title, (name, style) in zip(panels, titles, styles.items(), strict=True):
        runs = metrics[(metrics["estimator"] == name) & metrics["train_objective"].notna()]
        for measure, dashes in (("train_objective", "--"), ("train_elbo", "-")):
            _draw_seeds(axes, runs, "step", measure, color=style.color, linestyle=dashes)
        mean = seed_mean(runs).dropna(subset=["train_objective", "train_elbo"])
        axes.fill_between(
            mean["step"], mean["train_elbo"], mean["train_objective"], color=style.color, alpha=0.18, lw=0
        )
        axes.set_title(f"{title}\n{_gap_in_words(mean)}")
    for axes in panels[::columns]:
        axes.set_ylabel("train set (nats per datum)")
    for axes in panels[-columns:]:
        _label_steps(axes)
    note = _frame_curves(panels[0], metrics[metrics["step"] > 0], ["train_objective", "train_elbo"])
    for axes in panels:
        note_below(axes, note, columns=columns)
    handles = [
        Line2D([], [], color=INK, lw=2.2, ls="--", label="training objective"),
        Line2D([], [], color=INK, lw=2.2, label="discrete ELBO"),
        Patch(color=INK, alpha=0.18, lw=0, label="gap"),
    ]
    figure.legend(handles=handles, loc="outside upper left", ncols=3)
    return figure


def seed_mean(runs: pd.DataFrame) -> pd.DataFrame:
    """Average over seeds at each step; NaN if a seed has no number there, since a mean over changing seeds would jump.

    Args:
        runs: Rows of one estimator.

    Returns:
        One row for each step, with the means of the numeric columns.
    """
    seeds = runs["seed"].nunique()
    return (runs.groupby("step").sum(numeric_only=True, min_count=seeds) / seeds).reset_index()


def curve_limits(metrics: pd.DataFrame, measures: Sequence[str]) -> tuple[float, float] | None:
    """Find the range of the curves after a fifth of the training, over runs that improved.

    The first point, before training, and the last point of a run that diverged are often ten times as far down as the
    values of interest.

    Args:
        metrics: One row for each evaluation.
        measures: The columns that share the axis.

    Returns:
        Low and high with a margin, or `None` if no run has improved yet.
    """
    settled = []
    for _, run in metrics.groupby(["estimator", "seed"]):
        for measure in measures:
            curve = run.loc[np.isfinite(run[measure].astype(float)), ["step", measure]].sort_values("step")
            if len(curve) > 1 and curve[measure].iloc[-1] > curve[measure].iloc[0]:
                settled.append(curve.loc[curve["step"] > 0.2 * curve["step"].iloc[-1], measure])
    if not settled:
        return None
    values = pd.concat(settled)
    margin = 0.06 * (values.max() - values.min()) or 1.0
    return values.min() - margin, values.max() + margin


def _draw_seeds(axes: Axes, runs: pd.DataFrame, clock: str, measure: str, **look: Any) -> None:
    """Draw thin lines for the seeds, if there are several, and a bold one for their mean."""
    if runs["seed"].nunique() > 1:
        for _, run in runs.groupby("seed"):
            axes.plot(run[clock], run[measure], lw=0.8, alpha=0.4, **look | {"marker": None})
    mean = seed_mean(runs)
    if len(mean) > 25:
        look["markevery"] = len(mean) // 12
    axes.plot(mean[clock], mean[measure], lw=2.2, ms=4, **look)


def _mark_best(axes: Axes, runs: pd.DataFrame, clock: str, measure: str, style: Style) -> bool:
    """Mark the highest point of the mean over seeds, and return True, if it lies before the end."""
    mean = seed_mean(runs).dropna(subset=[measure])
    if mean.empty or mean[measure].idxmax() == mean.index[-1]:
        return False
    best = mean.loc[mean[measure].idxmax()]
    look: Any = {"ms": 13, "mec": "white", "color": style.color, "zorder": 5}
    axes.plot(best[clock], best[measure], ls="none", marker="*", **look)
    return True


def _frame_curves(axes: Axes, metrics: pd.DataFrame, measures: Sequence[str]) -> str:
    """Set the vertical range, with room for a note if there are values below it, and return the note."""
    limits = curve_limits(metrics, measures)
    if limits is None:
        return ""
    low, high = limits
    lowered = room_below(low, high)
    ordered = metrics.sort_values("step").groupby(["estimator", "seed"])[list(measures)]
    first, last = (np.nanmin(values.to_numpy(float)) for values in (ordered.first(), ordered.last()))
    axes.set_ylim(lowered if min(first, last) < low else low, high)
    notes = [f"curves begin at {signed(first, ',.0f')}"] if first < lowered else []
    notes += [f"a run ends at {signed(last, ',.0f')}"] if last < lowered else []
    return " and ".join(notes)


def _gap_in_words(mean: pd.DataFrame) -> str:
    if mean.empty:
        return "gap not measured"
    last = mean.iloc[-1]
    return f"gap {signed(last['train_objective'] - last['train_elbo'], '+z.2f')} nats at step {last['step']:,.0f}"


def _label_steps(axes: Axes) -> None:
    axes.set_xlabel("training steps")
    axes.set_xlim(left=0)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True, min_n_ticks=1))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))


def _label_seconds(axes: Axes, metrics: pd.DataFrame) -> None:
    longest = metrics.groupby("estimator")["seconds"].max()
    slow = longest.max() > 5 * longest.min() > 0
    axes.set_xlabel("seconds of training (log scale)" if slow else "seconds of training")
    if slow:
        # Zero seconds cannot be shown on a log scale: the axis starts after a fifth of the training.
        axes.set_xscale("log", nonpositive="mask")
        settled = metrics.loc[metrics["step"] > 0.2 * metrics["step"].max(), "seconds"]
        axes.set_xlim(settled.min() / 1.5, settled.max() * 1.2)
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 3)))
    else:
        axes.set_xlim(left=0)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
