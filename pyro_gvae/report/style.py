"""Colours, markers, fonts and the minus sign that all figures share; saving figures."""

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..runs.files import replacing

# Okabe and Ito's yellow is too faint for a line on white; grey replaces it.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999999")


INK = "#444444"


MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")


SMALL_PRINT: Any = {"fontsize": 9, "color": "#666666"}


HOUSE_STYLE: Any = {
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 11,
    "axes.labelcolor": "#333333",
    "axes.edgecolor": "#888888",
    "figure.constrained_layout.use": True,
    "font.size": 10,
    "grid.color": "#e6e6e6",
    "image.interpolation": "nearest",
    "legend.frameon": False,
    "xtick.color": "#555555",
    "ytick.color": "#555555",
}


#: Dots per inch of a PNG, and of the pixel images in an SVG.
DPI = 150


in_house_style = matplotlib.rc_context(HOUSE_STYLE)


class Style(NamedTuple):
    """Colour and marker of one estimator."""

    color: str
    marker: str


def estimator_styles(estimators: Sequence[str]) -> dict[str, Style]:
    """Choose a colour and a marker for each estimator, the same in every figure of a run; the first 64 all differ."""
    return {
        name: Style(PALETTE[index % len(PALETTE)], MARKERS[(index + index // len(PALETTE)) % len(MARKERS)])
        for index, name in enumerate(estimators)
    }


def panel_grid(
    count: int, columns: int, size: tuple[float, float], share_axes: bool = False
) -> tuple[Figure, list[Axes]]:
    """Make a figure of `count` panels of `size` inches in `columns` columns; the rest of the last row stays empty."""
    rows = math.ceil(count / columns)
    figure = Figure(figsize=(columns * size[0], rows * size[1] + 0.4))
    grid = figure.subplots(rows, columns, squeeze=False, sharex=share_axes, sharey=share_axes).ravel()
    for axes in grid[count:]:
        axes.remove()
    for axes in grid[:count][-columns:]:
        axes.tick_params(labelbottom=True)
    return figure, list(grid[:count])


#: Letters of a title per inch, and inches that each further line takes.
LETTERS_AN_INCH, LINE = 10.5, 0.18


def wrapped(titles: Sequence[str], inches: float) -> tuple[list[str], float]:
    r"""Break titles of panels, after spaces and punctuation, so that they are as narrow as their panels.

    Args:
        titles: the titles.
        inches: the width of a panel.

    Returns:
        The titles, and the inches by which they make a row of panels higher.

    Example:
        >>> wrapped(["exact", "gumbel-softmax[kl=relaxed]:6,exact:2"], 2.5)
        (['exact', 'gumbel-softmax\n[kl=relaxed]:6,exact:2'], 0.18)
    """
    letters = int(LETTERS_AN_INCH * (inches - 0.3))
    found = []
    for title in titles:
        lines = [""]
        for part in re.findall(r".[^\s,:\[\n-]*(?:[\s,:-]|(?=\[)|$)", title):
            if lines[-1] and len(lines[-1] + part.rstrip()) > letters:
                lines.append("")
            lines[-1] += part
        found.append("\n".join(line.rstrip() for line in lines))
    return found, LINE * max((title.count("\n") for title in found), default=0)


def signed(value: float, form: str = ".2f") -> str:
    """Format a number for a page or a figure, with the minus sign of the axes.

    Example:
        >>> signed(-17.254), signed(3.0, "+.1f")
        ('−17.25', '+3.0')
    """
    return format(value, form).replace("-", "−")


def save_figure(figure: Figure, folder: Path, name: str) -> Path:
    """Save a figure as NAME.png and NAME.svg; the same figure gives the same bytes.

    Returns:
        The path of the SVG.
    """
    with replacing(folder / f"{name}.png") as path:
        figure.savefig(path, format="png", dpi=DPI)
    figure.set_layout_engine("none")  # keep the layout: finding it again takes as long as drawing
    with replacing(folder / f"{name}.svg") as path, matplotlib.rc_context({"svg.hashsalt": name}):
        figure.savefig(path, format="svg", dpi=DPI, metadata={"Date": None})
    return folder / f"{name}.svg"
