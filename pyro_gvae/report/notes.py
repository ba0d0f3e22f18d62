"""Notes on curves: where they begin if that is below the axis, and the names of the stages of training."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes

from .style import SMALL_PRINT

#: Inches that a letter of small print takes, and inches of a figure that its axis labels take.
LETTER, LABELS = 0.072, 1.0
#: The share of the height of a panel that a note at its lower edge takes.
HEIGHT = 0.14


class Span(NamedTuple):
    """A stage of training in a figure.

    Args:
        name: its name.
        start: the step at which it begins.
        end: the step at which it ends.
    """

    name: str
    start: float
    end: float


def room_below(low: float, high: float) -> float:
    """Return a lower end of a panel that leaves room for a note below `low`."""
    return low - HEIGHT / (1 - HEIGHT) * (high - low)


def note_below(axes: Axes, text: str, *, columns: int = 1) -> None:
    """Say at the left end of a panel, with an arrow down, what lies below it; where curves rise, right of them.

    Args:
        axes: a panel with its curves and limits.
        text: the note; nothing is written if it is empty.
        columns: the number of panels beside each other.
    """
    if not text:
        return
    width = _share_of_width(axes, f"  {text}", columns)
    left, right = _where_curves_rise(axes)
    at = 0.0 if left > width or right + width > 1 else right
    axes.annotate(
        f"\N{DOWNWARDS ARROW} {text}",
        (at, 0.0),
        (5, 4),
        xycoords="axes fraction",
        textcoords="offset points",
        ha="left",
        va="bottom",
        **SMALL_PRINT,
    )


def _where_curves_rise(axes: Axes) -> tuple[float, float]:
    """Return where the first curve comes up into a panel, and where the last one is above the place of a note.

    Returns:
        Two shares of the width of the panel; 0 without such curves.
    """
    (first, last), (low, high) = axes.get_xlim(), axes.get_ylim()
    curves = [
        np.asarray(line.get_xydata()) for line in axes.lines if line.get_transform() == axes.transData
    ]  # no marks
    enters, leaves = (
        [x for curve in curves for x in _crossing(curve, level)] for level in (low, low + HEIGHT * (high - low))
    )
    begins, ends = min(enters, default=first), max(leaves, default=first)
    return (begins - first) / (last - first), (ends - first) / (last - first)


def _crossing(curve: np.ndarray, level: float) -> list[float]:
    """Return where a curve (R, 2) first rises above a level, or nothing if it begins above it or never does."""
    x, y = curve[np.isfinite(curve).all(axis=1)].T
    above = np.flatnonzero(y > level)
    if not len(above) or not above[0]:
        return []
    two = slice(above[0] - 1, above[0] + 1)
    return [float(np.interp(level, y[two], x[two]))]


def label_marks(axes: Axes, marks: Mapping[str, float], *, height: float, color: str) -> None:
    """Write what the marks of the row at 0 mean beside each other above them, each with a line to its mark.

    Args:
        axes: a panel with its limits and the names of its rows.
        marks: what each mark means, and its place.
        height: how far above the row, in its units.
        color: the colour of the words.
    """
    low, high = axes.get_xlim()
    ordered = sorted(marks, key=lambda text: marks[text])
    names = max(len(label.get_text()) for label in axes.get_yticklabels())
    widths = [_share_of_width(axes, f"{text}  ", margin=0.4 + LETTER * names) for text in ordered]
    lefts, end = [], 0.0
    for text, width in zip(ordered, widths, strict=True):
        lefts.append(max((marks[text] - low) / (high - low) - width / 2, end))
        end = lefts[-1] + width
    end = 1.0
    for number in reversed(range(len(lefts))):  # back into the panel
        lefts[number] = max(0.0, min(lefts[number], end - widths[number]))
        end = lefts[number]
    for text, left, width in zip(ordered, lefts, widths, strict=True):
        axes.annotate(
            text,
            (marks[text], 0.0),
            (left + width / 2, -height),
            textcoords=axes.get_yaxis_transform(),
            ha="center",
            va="bottom",
            fontsize=SMALL_PRINT["fontsize"],
            color=color,
            arrowprops={"arrowstyle": "-", "color": color, "lw": 0.7, "shrinkA": 0, "shrinkB": 7, "relpos": (0.5, 0)},
        )


def name_stages(axes: Axes, stages: Sequence[Span]) -> None:
    """Write the names of stages above a panel, each from its first step, or up to its last if it is short.

    Names that would touch stand above each other.

    Args:
        axes: a panel with its limits.
        stages: the stages, in order.
    """
    first, last = axes.get_xlim()
    rows: list[float] = []  # where the last name of each row ends
    for stage in stages:
        start, end = ((each - first) / (last - first) for each in (stage.start, stage.end))
        width = _share_of_width(axes, stage.name)
        fits = start + width <= 1
        left = start if fits else end - width
        row = next((number for number, taken in enumerate(rows) if taken <= left), len(rows))
        rows[row : row + 1] = [left + width]
        axes.annotate(
            stage.name if fits else f"{stage.name} \N{DOWNWARDS ARROW}",
            (start if fits else end, 1.0),
            (0, 4 + 12 * row),
            xycoords="axes fraction",
            textcoords="offset points",
            ha="left" if fits else "right",
            va="bottom",
            parse_math=False,
            **SMALL_PRINT,
        )


def _share_of_width(axes: Axes, text: str, columns: int = 1, *, margin: float = LABELS) -> float:
    """Estimate the width of small print as a share of the width of its panel, beside labels of `margin` inches."""
    figure = axes.get_figure(root=True)
    assert figure is not None  # axes of a figure
    return LETTER * len(text) / ((figure.get_figwidth() - margin) / columns)
