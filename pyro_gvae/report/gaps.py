"""Write the gaps of a run folder's models as a table, a figure and a page."""

import shlex
from pathlib import Path
from typing import Any

import pandas as pd
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..config.commands import GapsConfig
from ..config.train import TrainConfig
from ..data.labels import shown
from ..evaluate.gaps import BOUNDS, GAPS, PRIOR_GAP, gaps, summarize_gaps
from ..runs.config import read_config
from ..runs.folder import check_writable
from ..runs.frames import write_csv
from ..runtime.progress import Progress
from ..train.trained import load_model, trained_models
from .pages import Shown, embedded, printable, write_page
from .settings import defaults_of, documentation, files_beside, sort_settings
from .style import INK, PALETTE, SMALL_PRINT, in_house_style, save_figure, signed

UNIT = "Test set, nats per datum, mean ± standard error over data."


def run_gaps(
    run: Path,
    *,
    num_data: int = 1000,
    num_particles: int = 100,
    max_memory: float | None = None,
    data_dir: Path = Path("data"),
) -> pd.DataFrame:
    """Measure the gaps of every trained model of a run folder on its test set; write gaps.csv, a figure and a page.

    A run without test data is measured on its training data.

    Args:
        run: a run folder of `compare` or `train`.
        num_data: number of test data, starting with the first.
        num_particles: P, the number of relaxed samples per datum.
        max_memory: bytes that the exact sums may use.
        data_dir: the folder of the data sets that have files.

    Returns:
        One row for each (estimator, seed): the number of data; whether soft codes were ever used in training
        (`relaxed`); the four bounds, the gaps between them and the prior gap, and the standard error of each over data
        (`_se`), in nats per datum. A model with integers has no relaxed bound.

    Raises:
        ValueError: if the folder is not a run folder or has no finished cell.
    """
    rows = []
    models = trained_models(run)
    check_writable(run)
    for which in Progress(models, desc="gaps", unit="model", disable=len(models) < 2):
        trained = load_model(run, which.estimator, which.seed, data_dir=data_dir)
        x = shown(trained.vae, trained.data, num_data)
        found = gaps(trained.vae, x, num_particles=num_particles, max_memory=max_memory)
        row = {"estimator": which.estimator, "seed": which.seed, "data": len(found.elbo)}
        rows.append(row | {"relaxed": _was_relaxed(trained.config)} | summarize_gaps(found))
    if not rows:
        raise ValueError(f"Expected a finished cell in '{run}', but found none. Try pyro-gvae compare.")
    table = pd.DataFrame(rows)
    write_csv(run / "gaps.csv", table)
    svg = save_figure(draw_gaps(table), run / "figures", "gaps")
    _write_gaps_page(run, table, svg, settings={"num_data": num_data, "num_particles": num_particles})
    return table


def _was_relaxed(config: TrainConfig) -> bool:
    """Return whether a stage trained any latent with soft codes."""
    return any(one.name == "gumbel-softmax" for stage in config.plan for one in stage.estimators)


def gaps_text(table: pd.DataFrame) -> pd.DataFrame:
    """Format the rows of `run_gaps`, each number with its standard error over data."""
    text = table[["estimator", "seed"]].copy()
    for name in (*BOUNDS, *GAPS, PRIOR_GAP):
        if name in table:
            text[name.replace("_", " ")] = [
                "" if pd.isna(value) else f"{value:.2f} ± {error:.2f}"
                for value, error in zip(table[name], table[f"{name}_se"], strict=True)
            ]
    return text


def gaps_table(table: pd.DataFrame) -> str:
    """Format the rows of `run_gaps` for the terminal."""
    return f"{gaps_text(table).to_string(index=False)}\n{UNIT}"


# -------------------------------------------------------------------------------------------- figure


@in_house_style
def draw_gaps(table: pd.DataFrame) -> Figure:
    """Draw each estimator's gaps from the relaxed bound up to log p(x): all on the left, the last two on the right.

    The relaxation gap may be a hundred times larger than the others, so the right panel shows those alone, from the
    ELBO up to log p(x), on an axis of its own. Both axes are linear.

    Args:
        table: from `run_gaps`; bars are means over seeds, error bars the largest standard error over data of any seed.

    Returns:
        The figure.
    """
    means = table.groupby("estimator", sort=False).mean(numeric_only=True)
    errors = table.groupby("estimator", sort=False).max(numeric_only=True)
    figure = Figure(figsize=(9, 1.9 + 0.55 * len(means)))
    whole, close = figure.subplots(1, 2, sharey=True)
    heights = range(len(means))[::-1]
    for height, name in zip(heights, means.index, strict=True):
        _draw_steps(whole, height, means.loc[name], errors.loc[name])
        _draw_lacks(close, height, means.loc[name], errors.loc[name])
    whole.set(title="From the relaxed bound to log p(x)", xlabel="nats per datum, test set")
    close.set(title="From the ELBO to log p(x)", xlabel="nats per datum, different scale")
    whole.set_yticks(heights, means.index)
    whole.set_ylim(-0.6, len(means) - 0.4)
    whole.margins(x=0.06)
    close.set_xlim(0, 1.8 * (means[["amortization_gap", "mean_field_gap"]].clip(lower=0).sum(axis=1).max() or 1))
    for axes in (whole, close):
        axes.grid(axis="y", visible=False)
        axes.grid(axis="x", visible=True)
    figure.legend(*_legend(whole), loc="outside lower center", ncols=1)
    return figure


def _legend(axes: Axes) -> tuple[list[Any], list[str]]:
    handles = [axes.barh(0, 0, color=PALETTE[number]) for number in range(len(GAPS))]
    return [*handles, axes.plot([], [], "|", color=INK, ms=14, mew=2)[0]], [*GAPS.values(), "log p(x)"]


def _draw_steps(axes: Axes, height: float, means: pd.Series, errors: pd.Series) -> None:
    """Draw one bar for each gap, from one bound to the next."""
    for number, (low, high, gap) in enumerate(zip(BOUNDS[:-1], BOUNDS[1:], GAPS, strict=True)):
        if pd.isna(means.get(low)):
            continue
        error = errors[f"{gap}_se"] if number == 0 else None  # the right panel shows the others
        axes.barh(height, means[high] - means[low], 0.5, left=means[low], color=PALETTE[number])
        if error is not None:
            axes.errorbar(means[low], height, xerr=error, color=INK, capsize=2, lw=1)
            place = (min(means[low], means[high]), height + 0.27)
            axes.annotate(f"{means[gap]:.2f}", place, (0, 1), textcoords="offset points", fontsize=8, color=INK)
    axes.plot(means["log_evidence"], height, "|", color=INK, ms=18, mew=2)


def _draw_lacks(axes: Axes, height: float, means: pd.Series, errors: pd.Series) -> None:
    """Draw the amortization gap and then the mean-field gap, from 0."""
    start = 0.0
    for number, gap in list(enumerate(GAPS))[1:]:
        axes.barh(height, means[gap], 0.5, left=start, color=PALETTE[number])
        start += means[gap]
    words = " + ".join(f"{means[gap]:.2f} ± {errors[f'{gap}_se']:.2f}" for gap in list(GAPS)[1:])
    axes.annotate(words, (max(start, 0), height), (6, 0), textcoords="offset points", va="center", **SMALL_PRINT)


# -------------------------------------------------------------------------------------------- page


def gaps_finding(table: pd.DataFrame) -> Markup:
    """Say in a sentence why the ELBO of the best model is below its log p(x).

    Args:
        table: from `run_gaps`.

    Returns:
        Escaped HTML.

    Example:
        >>> row = {"estimator": "exact", "log_evidence": -17.0, "amortization_gap": 0.4, "mean_field_gap": 0.1}
        >>> print(gaps_finding(pd.DataFrame([row])))
        <b>exact</b> has a log p(x) of −17.00 nats per datum. Its ELBO lacks ...
    """
    means = table.groupby("estimator", sort=False).mean(numeric_only=True)
    best = means["log_evidence"].idxmax()
    row = means.loc[best]
    text = Markup(
        "<b>{}</b> has {} log p(x){} {} nats per datum. Its ELBO lacks {} of that: {} because the encoder does not "
        "optimize each datum by itself (amortization), and {} because its latents are independent (mean field)."
    )
    superlative = ("the highest", ",") if len(means) > 1 else ("a", " of")
    numbers = (signed(row[name]) for name in ("log_evidence", "amortization_gap", "mean_field_gap"))
    evidence, amortization, mean_field = numbers
    lacks = signed(row["amortization_gap"] + row["mean_field_gap"])
    return text.format(best, *superlative, evidence, lacks, amortization, mean_field)


def gaps_remarks(table: pd.DataFrame) -> list[Markup]:
    """Say for each estimator how far its relaxed bound is from the ELBO of the discrete model.

    The relaxed bound of a decoder that was never trained with soft codes is low without meaning, which is said.

    Args:
        table: from `run_gaps`.

    Returns:
        Sentences of escaped HTML.
    """
    means = table.groupby("estimator", sort=False).mean(numeric_only=True)
    sentences = []
    for name, row in means.iterrows():
        gap = row.get("relaxation_gap")
        if gap is None or pd.isna(gap):
            continue
        excess = row["relaxed_bound"] - row["log_evidence"]
        side = "below" if gap > 0 else "above"
        beyond = Markup(", and {} above log p(x), which no bound of the discrete model can exceed").format(
            signed(excess)
        )
        unused = "" if row["relaxed"] else ", which was never trained with soft codes"
        sentences.append(
            Markup("The relaxed bound of <b>{}</b> is {} nats {} the ELBO of its discrete model{}{}.").format(
                name, signed(abs(gap)), side, unused, beyond if excess > 0 else ""
            )
        )
    return sentences


def _write_gaps_page(run: Path, table: pd.DataFrame, svg: Path, settings: dict[str, Any]) -> Path:
    written = read_config(run)
    return write_page(
        run / "gaps.html",
        "measured.html.j2",
        title=f"From the training objective to log p(x): {printable(run.resolve().name)}",
        kicker="pyro-gvae gaps",
        lead="The distance from the relaxed bound to the exact log p(x), in three parts with different causes.",
        finding=gaps_finding(table),
        remarks=gaps_remarks(table),
        left_out=[],
        command=None,
        figures=[
            Shown(
                "gaps",
                embedded(svg),
                "The gaps of each estimator",
                "Each bar goes from one bound to the next, up to log p(x). The relaxed bound belongs to another model, "
                "whose codes are soft, so it may lie on either side. For a model that was never relaxed in training, "
                "it shows how the decoder treats soft codes, which it has never seen.",
            )
        ],
        table=gaps_text(table),
        note=UNIT,
        reproduce=shlex.join(
            ["pyro-gvae", "gaps", str(run)]
            + [word for name, value in settings.items() for word in (f"--{name.replace('_', '-')}", str(value))]
        ),
        settings=sort_settings(settings, defaults_of(GapsConfig), written),
        files=files_beside(run, "gaps.html"),
        documentation=documentation("howto/evaluate.md"),
    )
