"""Draw the curves of one training run, with marks where stages begin."""

from collections.abc import Sequence
from typing import NamedTuple

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from .notes import Span, name_stages, note_below, room_below
from .style import INK, PALETTE, in_house_style, signed

#: The quantities that may follow a schedule: column -> label.
SCHEDULED = {
    "learning_rate": "learning rate",
    "temperature": "temperature",
    "prior_temperature": "prior temperature",
    "beta": "KL weight beta",
    "unimix": "uniform share of the guide",
    "usage_entropy": "weight of the codes' use",
}


class StageStart(NamedTuple):
    """The step at which a stage begins, and its estimator."""

    step: float
    estimator: str


def stage_starts(metrics: pd.DataFrame) -> list[StageStart]:
    """Find where the stages of a run begin: at the last evaluation of the stage before, which marks its end.

    Args:
        metrics: one row for each evaluation, with `step`, `stage` and `estimator`.

    Example:
        >>> lines = {"step": [0, 5, 9], "stage": [0, 0, 1], "estimator": ["gumbel-softmax"] * 2 + ["exact"]}
        >>> [(int(stage.step), stage.estimator) for stage in stage_starts(pd.DataFrame(lines))]
        [(0, 'gumbel-softmax'), (5, 'exact')]
    """
    previous = metrics["step"].shift(1, fill_value=0)
    firsts = metrics.index[metrics["stage"] != metrics["stage"].shift(1)]
    return [StageStart(float(previous[row]), str(metrics.loc[row, "estimator"])) for row in firsts]


@in_house_style
def training_curves(metrics: pd.DataFrame) -> Figure:
    """Draw the training objective and the discrete ELBO of a run against steps.

    The vertical scale fits the curves after a fifth of the training; a note says where they began.

    Args:
        metrics: one row for each evaluation of one run.

    Returns:
        One panel.
    """
    figure = Figure(figsize=(10, 4.4))
    axes = figure.subplots()
    looks = {
        "train_objective": ("training objective", PALETTE[1], "--"),
        "train_elbo": ("discrete ELBO, train", PALETTE[0], "-"),
        "test_elbo": ("discrete ELBO, test", PALETTE[2], "-"),
    }
    shown = [name for name in looks if metrics[name].notna().any()]
    for name in shown:
        label, color, dashes = looks[name]
        known = metrics[metrics[name].notna()]
        marker = "o" if len(known) <= 25 else None
        axes.plot(known["step"], known[name], color=color, ls=dashes, lw=2, marker=marker, ms=3.5, label=label)
    below = _frame(axes, metrics, shown)
    axes.set_ylabel("nats per datum")
    _finish(axes, metrics)
    note_below(axes, below)
    if shown:
        figure.legend(loc="outside upper left", ncols=3)
    return figure


@in_house_style
def speed_and_schedules(metrics: pd.DataFrame) -> Figure:
    """Draw the steps per second between evaluations, and the quantities that follow a schedule, against steps."""
    changing = [name for name in SCHEDULED if name in metrics and metrics[name].nunique() > 1]
    figure = Figure(figsize=(10, 2.2 + 1.8 * len(changing)))
    panels = figure.subplots(1 + len(changing), 1, squeeze=False, sharex=True).ravel()
    known = metrics[metrics["steps_per_second"].notna()]
    panels[0].plot(known["step"], known["steps_per_second"], color=PALETTE[0], lw=2, marker="o", ms=3.5)
    panels[0].set_ylabel("steps per second")
    panels[0].set_ylim(bottom=0)
    for axes, name in zip(panels[1:], changing, strict=True):
        axes.plot(metrics["step"], metrics[name], color=INK, lw=2)
        axes.set_ylabel(SCHEDULED[name])
    for axes in panels:
        _finish(axes, metrics, named=axes is panels[0])
        axes.set_xlabel("")
    panels[-1].set_xlabel("training steps")
    return figure


def _frame(axes: Axes, metrics: pd.DataFrame, measures: Sequence[str]) -> str:
    """Set the vertical range, and return a note on where the curves begin if that is below it, with room for it."""
    settled = metrics.loc[metrics["step"] > 0.2 * metrics["step"].max(), list(measures)].stack()
    if settled.empty:
        return ""
    margin = 0.08 * (settled.max() - settled.min()) or 1.0
    low, high = settled.min() - margin, settled.max() + margin
    lowered, first = room_below(low, high), metrics[list(measures)].min().min()
    axes.set_ylim(lowered if first < low else low, high)
    return f"curves begin at {signed(first, ',.0f')}" if first < lowered else ""


def _finish(axes: Axes, metrics: pd.DataFrame, *, named: bool = True) -> None:
    """Label the steps, and mark each of several stages by a line and its name above; every other one is shaded."""
    last = float(metrics["step"].max()) or 1.0
    axes.set_xlim(0, 1.01 * last)  # so that the last points are whole
    axes.set_xlabel("training steps")
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    starts = stage_starts(metrics)
    ends = [start.step for start in starts[1:]] + [last]
    stages = [Span(start.estimator, start.step, end) for start, end in zip(starts, ends, strict=True)]
    for stage in stages[1:]:
        axes.axvline(stage.start, color="#888888", lw=1, ls=":")
    for stage in stages[1::2]:
        axes.axvspan(stage.start, stage.end, color=INK, alpha=0.07, lw=0)
    if named and len(stages) > 1:
        name_stages(axes, stages)
