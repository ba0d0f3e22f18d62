"""Write the gaps of a run folder's models as a table and a figure."""

from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from ..evaluate.gaps import BOUNDS, GAPS, PRIOR_GAP, gaps, summarize_gaps
from ..runs.folder import check_writable
from ..runs.frames import write_csv
from ..runtime.progress import Progress
from ..train.trained import load_model, trained_models
from .style import INK, PALETTE, in_house_style, save_figure


def run_gaps(
    run: Path,
    *,
    num_data: int = 1000,
    num_particles: int = 100,
    max_memory: float | None = None,
    data_dir: Path = Path("data"),
) -> pd.DataFrame:
    """Measure the gaps of every trained model of a run folder on its test set; write gaps.csv and a figure.

    Args:
        run: a run folder of `compare` or `train`.
        num_data: number of test data, starting with the first.
        num_particles: P, the number of relaxed samples per datum.
        max_memory: bytes that the exact sums may use.
        data_dir: the folder of the data sets that have files.

    Returns:
        One row for each (estimator, seed): the four bounds, the gaps between them and the prior gap, and the standard
        error of each over data (`_se`), in nats per datum.

    Raises:
        ValueError: if the folder is not a run folder or has no finished cell.
    """
    rows = []
    models = trained_models(run)
    check_writable(run)
    for which in Progress(models, desc="gaps", unit="model"):
        trained = load_model(run, which.estimator, which.seed, data_dir=data_dir)
        found = gaps(trained.vae, trained.data.test[:num_data], num_particles=num_particles, max_memory=max_memory)
        row = {"estimator": which.estimator, "seed": which.seed, "data": len(found.elbo)}
        rows.append(row | summarize_gaps(found))
    if not rows:
        raise ValueError(f"Expected a finished cell in '{run}', but found none. Try pyro-gvae compare.")
    table = pd.DataFrame(rows)
    write_csv(run / "gaps.csv", table)
    save_figure(draw_gaps(table), run / "figures", "gaps")
    return table


def gaps_table(table: pd.DataFrame) -> str:
    """Format the rows of `run_gaps` for the terminal, each number with its standard error over data."""
    text = table[["estimator", "seed"]].copy()
    for name in (*BOUNDS, *GAPS, *({PRIOR_GAP} & set(table.columns))):
        text[name.replace("_", " ")] = [
            f"{value:.2f} ± {error:.2f}" for value, error in zip(table[name], table[f"{name}_se"], strict=True)
        ]
    return f"{text.to_string(index=False)}\nTest set, nats per datum, mean ± standard error over data."


@in_house_style
def draw_gaps(table: pd.DataFrame) -> Figure:
    """Draw the three gaps of each estimator, on an axis that is linear up to 0.1 nats and logarithmic beyond.

    Args:
        table: from `run_gaps`; bars are means over seeds, error bars the largest standard error over data of any seed.

    Returns:
        The figure.
    """
    means = table.groupby("estimator", sort=False).mean(numeric_only=True)
    errors = table.groupby("estimator", sort=False).max(numeric_only=True)
    figure = Figure(figsize=(9, 1.7 + 0.9 * len(means)))
    axes = figure.subplots()
    heights = range(len(means))[::-1]
    for offset, (name, meaning) in enumerate(GAPS.items()):
        places = [height + 0.27 * (1 - offset) for height in heights]
        look: Any = {"color": PALETTE[offset], "ecolor": INK, "label": meaning}
        axes.barh(places, means[name], 0.23, xerr=errors[f"{name}_se"], **look)
        for place, value, error in zip(places, means[name], errors[f"{name}_se"], strict=True):
            right = (max(value + error, 0), place)
            axes.annotate(f"{value:.2f}", right, (6, 0), textcoords="offset points", va="center", fontsize=9)
    axes.set_xscale("symlog", linthresh=0.1)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.set(title="Gaps between the relaxed bound and log p(x), test set", xlabel="nats per datum")
    axes.set_yticks(heights, means.index)
    axes.grid(axis="y", visible=False)
    axes.margins(x=0.12)
    figure.legend(loc="outside lower center", ncols=1)
    return figure
