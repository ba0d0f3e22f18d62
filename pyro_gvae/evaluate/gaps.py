"""How far the training objective is from log p(x), gap by gap: relaxation, amortization, mean field."""

from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import pyro
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter
from pyro import poutine
from torch import Tensor
from tqdm import tqdm

from .. import exact
from ..config.commands import GapsConfig
from ..exact import HasPair
from ..handlers import relax
from ..report.comparison_figures import INK, PALETTE, in_house_style
from ..runs.files import replacing, write_csv
from ..train.trained import load, trained_models

#: From the loosest bound to log p(x); each gap lies between two neighbours.
BOUNDS = ("relaxed_bound", "elbo", "mean_field_elbo", "log_evidence")
GAPS = {
    "relaxation_gap": "relaxation: exact ELBO of the guide - relaxed bound",
    "amortization_gap": "amortization: ELBO of the best mean-field posterior - exact ELBO of the guide",
    "mean_field_gap": "mean field: log p(x) - ELBO of the best mean-field posterior",
}


class Gaps(NamedTuple):
    """Bounds of log p(x) for each datum, all (B,), in nats."""

    relaxed_bound: Tensor
    elbo: Tensor
    mean_field_elbo: Tensor
    log_evidence: Tensor


@torch.no_grad()
def gaps(pair: HasPair, x: Tensor, *, num_particles: int = 100, max_memory: float | None = None) -> Gaps:
    """The bounds of log p(x) of one trained pair, from what relaxed training maximizes to the exact evidence.

    relaxed bound -> exact ELBO of the guide -> ELBO of the best mean-field posterior -> log p(x). Their differences are
    the relaxation gap (of either sign: the relaxed bound is one of another, relaxed model), the amortization gap (what
    the encoder loses by not optimizing each datum; Cremer et al. 2018, arXiv 1801.03558) and the mean-field gap (what
    independence of the latents loses).

    Args:
        pair: a `CategoricalVAE`, or a pair of programs with one factorized one-hot site that has a temperature.
        x: data (B, D).
        num_particles: P, relaxed samples per datum; nothing else is sampled.
        max_memory: bytes that the exact sums may take.

    Returns:
        The four bounds, each (B,), in nats.

    Raises:
        ValueError: if the codes are too many.
    """
    found = exact.bounds(pair, x, max_memory=max_memory)
    return Gaps(
        relaxed_bound(pair, x, num_particles=num_particles),
        found.elbo,
        exact.mean_field(pair, x, max_memory=max_memory).elbo,
        found.log_evidence,
    )


@torch.no_grad()
def relaxed_bound(pair: HasPair, x: Tensor, *, num_particles: int = 100) -> Tensor:
    """E_q[log p(x | z) + log p(z) - log q(z | x)] over relaxed samples: minus the loss of `Trace_ELBO`, for each datum.

    Args:
        pair: model and guide, relaxed or with a temperature at their sites.
        x: data (B, D).
        num_particles: P, samples per datum.

    Returns:
        The mean over P samples, shape (B,), in nats.
    """
    total = torch.zeros(len(x), dtype=x.dtype, device=x.device)
    with pyro.get_param_store().scope():
        for _ in range(num_particles):
            guide_trace = poutine.trace(relax(pair.guide)).get_trace(x)
            model_trace = poutine.trace(poutine.replay(relax(pair.model), trace=guide_trace)).get_trace(x)
            for trace, sign in ((model_trace, 1), (guide_trace, -1)):
                trace.compute_log_prob()
                total += sign * sum(site["log_prob"] for site in trace.nodes.values() if "log_prob" in site)
    return total / num_particles


def gaps_command(config: GapsConfig) -> str:
    """:func:`run_gaps` as a command: what is said in the end."""
    max_memory = None if config.max_memory is None else config.max_memory * 1e9
    table = run_gaps(config.run, num_data=config.num_data, num_particles=config.num_particles, max_memory=max_memory)
    return f"{gaps_table(table)}\n\nfigure: {config.run / 'figures' / 'gaps.png'}"


def run_gaps(
    run: Path, *, num_data: int = 1000, num_particles: int = 100, max_memory: float | None = None
) -> pd.DataFrame:
    """The gap decomposition of every trained model of a run folder, on its test set; writes gaps.csv and a figure.

    Args:
        run: a run folder of `compare` or `train`.
        num_data: how many test data to take, from the first on.
        num_particles: P, relaxed samples per datum.
        max_memory: bytes that the exact sums may take.

    Returns:
        One row for each (estimator, seed): the four bounds and three gaps, and the standard error of each over data
        (`_se`), in nats per datum.

    Raises:
        ValueError: if the folder is not a run folder or has no finished cell.
    """
    rows = []
    for which in tqdm(trained_models(run), desc="gaps", unit="model"):
        trained = load(run, which)
        found = gaps(trained.vae, trained.data.test[:num_data], num_particles=num_particles, max_memory=max_memory)
        row = {"estimator": which.estimator, "seed": which.seed, "data": len(found.elbo)}
        rows.append(row | summarize_gaps(found))
    if not rows:
        raise ValueError(f"Expected a finished cell in '{run}', but found none. Try pyro-gvae compare.")
    table = pd.DataFrame(rows)
    write_csv(run / "gaps.csv", table)
    figure = draw_gaps(table)
    for ending in ("png", "svg"):
        with replacing(run / "figures" / f"gaps.{ending}") as temporary:
            figure.savefig(temporary, format=ending, dpi=150)
    return table


def summarize_gaps(found: Gaps) -> dict[str, float]:
    """Mean over data and its standard error of each bound and each gap, in nats per datum.

    Example:
        >>> two = torch.tensor([-3.0, -5.0])
        >>> row = summarize_gaps(Gaps(two - 1, two, two + 0.5, two + 0.5))
        >>> row["elbo"], row["elbo_se"], row["relaxation_gap"], row["relaxation_gap_se"], row["amortization_gap"]
        (-4.0, 1.0, 1.0, 0.0, 0.5)
    """
    values = dict(zip(BOUNDS, found, strict=True))
    for name, lower, upper in zip(GAPS, found[:-1], found[1:], strict=True):
        values[name] = upper - lower
    return {
        key: number
        for name, value in values.items()
        for key, number in ((name, value.mean().item()), (f"{name}_se", (value.std() / len(value) ** 0.5).item()))
    }


def gaps_table(table: pd.DataFrame) -> str:
    """The rows of `run_gaps` for the terminal: each number with its standard error over data."""
    text = table[["estimator", "seed"]].copy()
    for name in (*BOUNDS, *GAPS):
        text[name.replace("_", " ")] = [
            f"{value:.2f} ± {error:.2f}" for value, error in zip(table[name], table[f"{name}_se"], strict=True)
        ]
    return f"{text.to_string(index=False)}\nTest set, nats per datum, mean ± standard error over data."


@in_house_style
def draw_gaps(table: pd.DataFrame) -> Figure:
    """The three gaps of each estimator, on an axis that is linear up to 0.1 nats and logarithmic beyond.

    Args:
        table: from `run_gaps`; seeds are averaged, error bars are the largest standard error over data of the seeds.

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
    axes.set(title="What lies between the relaxed bound and log p(x), test set", xlabel="nats per datum")
    axes.set_yticks(heights, means.index)
    axes.grid(axis="y", visible=False)
    axes.margins(x=0.12)
    figure.legend(loc="outside lower center", ncols=1)
    return figure
