"""Compare relaxed and exact training at equal numbers of steps and at equal time.

Question: which gives the discrete model with the higher log-likelihood, training with Gumbel-Softmax samples or exact
enumeration, after equally many steps and after equally many seconds, on digits and MNIST, from 100 to 32,768 codes?

Command: `python experiments/relaxed_vs_exact.py` (`--smoke` for tiny sizes, in seconds). `--problems`, `--seeds`,
`--temperatures` and `--scale`, which shortens all budgets, make it shorter; finished cells are not run again. It writes
`experiments/results/relaxed_vs_exact.csv`, and as PNG and SVG `docs/figures/relaxed_vs_exact` (learning curves) and
`relaxed_vs_exact_ends` (final scores against the temperature).

Cost: one core: the digits (`--problems "digits 10x2" "digits 8x4" "digits 8x5"`) forty minutes, MNIST 10x2 and 8x4 an
hour, MNIST 8x5 two hours; `--workers 2` halves that.

Black-and-white images (thresholds at 1/2), the networks of `PROBLEMS`, one Adam. Relaxed training uses the relaxed KL
(Maddison et al. 2017; the prior's temperature is 3/5 of the guide's, as in the paper) or the categorical KL (Jang et
al. 2017). Exact training also has a variant whose KL weight grows from 0 to 1 in the first 300 steps, except on MNIST
8x5, which has fewer steps. All runs of a seed start from the same weights and see the same batches. Reported are ELBO
and log p(x) of the discrete model, summed over all codes, on the first 1,000 test images, and the number of categories
in use: exp of the entropy of the aggregated posterior q(z_n) of these images, a mean over latents.

Found (three seeds; MNIST 8x5 only at temperature 0.67): at equal steps on digits, with the categorical KL at a
temperature of 0.3 or 0.67, soft samples cost 0.12 +- 0.07 to 0.43 +- 0.09 nats of log p(x), and with the relaxed KL 2.5
to 3.2. At equal seconds soft samples win from 4,096 codes on: on MNIST by 19.0 +- 3.9 to 91.9 +- 2.1 nats, on digits by
0.43 +- 0.11 to 1.80 +- 0.05 if the best of the six evaluations of each run, chosen on the test images, is compared. On
MNIST exact training may settle on one category of ten, as one seed of three did; with the relaxed KL none of nine runs
did.
"""

import math
from collections.abc import Sequence
from functools import partial
from itertools import product
from typing import Annotated, Any, NamedTuple

import numpy as np
import pandas as pd
import tyro
from common import (
    SETTINGS,
    Places,
    Row,
    check_names,
    command,
    draw_curve,
    in_words,
    log_axis,
    mean_and_error,
    paired,
    run_cells,
    scores_on_test,
    tiny,
    train,
)
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from pyro_gvae import TrainConfig
from pyro_gvae.report.style import PALETTE, SMALL_PRINT, in_house_style
from pyro_gvae.runs.tables import with_errors

NAME = "relaxed_vs_exact"
WARM = "exact, KL warm-up"
#: Number of steps until the KL has its full weight.
WARM_UP = 300
#: Fractions of the budget at which models are scored.
PARTS = (1 / 32, 1 / 16, 1 / 8, 1 / 4, 1 / 2, 1)
NUM_TEST = 1000


class Problem(NamedTuple):
    """A data set with a size of code, and the budgets of the two comparisons: steps and seconds."""

    config: TrainConfig
    steps: int
    seconds: float


#: "DATASET KxN" -> problem: 100, 4,096 and 32,768 codes.
PROBLEMS = {
    f"{data} {k}x{n}": Problem(
        TrainConfig(dataset=data, **SETTINGS[data], num_categories=k, num_latents=n), steps, seconds
    )
    for data, k, n, steps, seconds in (
        ("digits", 10, 2, 2300, 5),
        ("digits", 8, 4, 2300, 10),
        ("digits", 8, 5, 2300, 40),
        ("mnist", 10, 2, 1200, 20),
        ("mnist", 8, 4, 1200, 60),
        ("mnist", 8, 5, 200, 120),
    )
}


def main(
    places: Annotated[Places, tyro.conf.arg(name="")],
    *,
    problems: tuple[str, ...] = tuple(PROBLEMS),
    seeds: tuple[int, ...] = (0, 1, 2),
    temperatures: tuple[float, ...] = (0.3, 0.67, 1.0),
    scale: float = 1.0,
) -> pd.DataFrame:
    """Train with relaxed samples and exactly, and print the paired differences.

    Args:
        places: where to read and write.
        problems: keys of `PROBLEMS`: data sets with sizes of codes.
        seeds: seeds of the initial weights, the order of the data and the samples.
        temperatures: temperatures of the relaxation.
        scale: factor of all budgets.
    """
    if places.smoke:
        places, problems, seeds = places.apart(NAME), ("digits 8x4",), (0,)
        temperatures, scale = (0.5,), 0.01
    check_names(problems, PROBLEMS)
    kinds = [
        ("exact", 0.0),
        (WARM, 0.0),
        *product(("gumbel-softmax, relaxed KL", "gumbel-softmax, categorical KL"), temperatures),
    ]
    cells: list[Row] = [
        {
            "problem": problem,
            "budget": budget,
            "estimator": name,
            "temperature": heat,
            "seed": seed,
            "moment": moments[-1],
        }
        for problem in problems
        for budget, moments in budgets(PROBLEMS[problem], scale).items()
        for seed, (name, heat) in product(seeds, kinds)
        if name != WARM or PROBLEMS[problem].steps > WARM_UP
    ]
    table = run_cells(NAME, cells, partial(measure, places=places, scale=scale), places)
    final, table = complete(table, scale)
    found = differences(final)
    best = differences(table.loc[table.groupby(CELL)["test_log_evidence"].idxmax()])
    used = mean_and_error(final, ["problem", "budget", "estimator", "temperature"], ["categories_used"])
    print("categories in use", used.to_string(index=False, float_format="{:.2f}".format), sep="\n")
    for title, rows in (("at the end", found), ("each at its best moment", best)):
        text = with_errors(rows, ["test_log_evidence", "test_elbo", "seconds"])
        named = rows[["problem", "budget", "estimator", "seeds"]].join(text)
        print(f"\nrelaxed minus exact, {title}", named.to_string(index=False), sep="\n")
    places.save(NAME, draw_curves(table))
    places.save(f"{NAME}_ends", draw_ends(found))
    return table


CELL = ["problem", "budget", "estimator", "temperature", "seed"]


def complete(table: pd.DataFrame, scale: float) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Select the finished cells of this scale: return their last rows, and all of their rows."""
    ends = [
        {"problem": name, "budget": budget, "moment": moments[-1]}
        for name, problem in PROBLEMS.items()
        for budget, moments in budgets(problem, scale).items()
    ]
    final = table.merge(pd.DataFrame(ends))
    return final, table.merge(final[CELL])


def budgets(problem: Problem, scale: float) -> dict[str, list[str]]:
    """Return the moments at which models are scored, for each of the two comparisons."""
    return {
        "steps": [f"{max(1, round(problem.steps * scale * part))}steps" for part in PARTS],
        "seconds": [f"{problem.seconds * scale * part:g}s" for part in PARTS],
    }


def measure(cell: Row, *, places: Places, scale: float) -> list[Row]:
    """Train a cell and score it at each moment, including the number of categories in use."""
    problem = PROBLEMS[cell["problem"]]
    moments = budgets(problem, scale)[cell["budget"]]
    stage = {
        "exact": "exact",
        WARM: "exact",
        "gumbel-softmax, relaxed KL": "gumbel-softmax[kl=relaxed]",
        "gumbel-softmax, categorical KL": "gumbel-softmax[kl=categorical]",
    }[cell["estimator"]]
    heat = cell["temperature"]
    changes: dict[str, Any] = {"temperature": heat, "prior_temperature": 0.6 * heat} if heat else {}
    if cell["estimator"] == WARM:
        changes["beta"] = f"linear:0,1,{WARM_UP}"
    config = places.placed(problem.config, stages=f"{stage}:{moments[-1]}", seed=cell["seed"], **changes)
    judge = partial(scores_on_test, most=NUM_TEST)
    return train(tiny(config) if places.smoke else config, moments, judge, places.folder(NAME, cell))


def differences(final: pd.DataFrame) -> pd.DataFrame:
    """Compute relaxed minus exact for equal seeds: test ELBO, log p(x) (nats per datum, higher is better), seconds."""
    named = final.assign(estimator=[_name(*row) for row in final[["estimator", "temperature"]].itertuples(index=False)])
    return paired(named, ["problem", "budget"], ["test_elbo", "test_log_evidence", "seconds"])


def _name(estimator: str, temperature: float) -> str:
    return estimator if estimator in ("exact", WARM) else f"{estimator}, t={temperature:g}"


#: Colours for the kinds of training, line styles for the temperatures.
COLORS = {"exact": PALETTE[1], WARM: PALETTE[6], "relaxed KL": PALETTE[0], "categorical KL": PALETTE[2]}
STYLES = ("o:", "s-", "^--")


#: Number of problems next to each other in a figure.
COLUMNS = 3


def panels_of(problems: Sequence[str], **shared: Any) -> tuple[Figure, np.ndarray]:
    """Make a figure with a panel for each problem and budget, (problem, budget): equal steps above equal seconds."""
    columns = min(COLUMNS, len(problems))
    blocks = math.ceil(len(problems) / columns)
    figure = Figure(figsize=(max(7.0, 1.5 + 3.2 * columns), 1.0 + 5.0 * blocks))
    grid = figure.subplots(2 * blocks, columns, squeeze=False, **shared)
    panels = grid.reshape(blocks, 2, columns).swapaxes(1, 2).reshape(-1, 2)
    for axes in panels[len(problems) :].ravel():
        axes.remove()
    return figure, panels[: len(problems)]


@in_house_style
def draw_curves(table: pd.DataFrame) -> Figure:
    """Draw test log p(x) during training, against steps (above) and seconds (below), for each problem.

    Both are means over seeds; bands are one standard error to either side.
    """
    problems = list(table["problem"].unique())
    heats = sorted(set(table["temperature"]) - {0.0})
    figure, panels = panels_of(problems)
    looks = {("exact", 0.0): "o-", (WARM, 0.0): "D-"} | {
        (f"gumbel-softmax, {kl}", heat): style
        for kl in ("relaxed KL", "categorical KL")
        for heat, style in zip(heats, STYLES, strict=False)
    }
    for (place, problem), (row, clock) in product(enumerate(problems), enumerate(("step", "seconds"))):
        axes, budget = panels[place, row], "steps" if clock == "step" else clock
        shown = table[(table["problem"] == problem) & (table["budget"] == budget)]
        by = ["estimator", "temperature", "moment"]
        means = mean_and_error(shown, by, ["test_log_evidence", clock]).sort_values(clock)
        for (name, heat), look in looks.items():
            curve = means[(means["estimator"] == name) & (means["temperature"] == heat)]
            if len(curve):
                kind = name.removeprefix("gumbel-softmax, ")
                label = f"{kind}, t = {heat:g}" if heat else name
                drawn = {"color": COLORS[kind], "ms": 4, "lw": 1.4, "label": label}
                draw_curve(axes, curve[clock], curve["test_log_evidence"], curve["test_log_evidence_se"], look, **drawn)
        # Values from the first tenth of the budget would squeeze the rest.
        late = means.loc[means[clock] > 0.1 * means[clock].max(), "test_log_evidence"]
        margin = 0.06 * (means["test_log_evidence"].max() - late.min())
        axes.set(xscale="log", ylim=(late.min() - margin, means["test_log_evidence"].max() + margin))
        log_axis(axes.xaxis)
        config = PROBLEMS[problem].config
        codes = config.num_categories**config.num_latents
        axes.set_title(f"{problem}, {codes:,} codes" if row == 0 else "")
        axes.set_xlabel("steps" if row == 0 else "seconds on one core (means over seeds)")
        if place % COLUMNS == 0:
            axes.set_ylabel("test log p(x), nats per datum")
    figure.legend(*panels[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    seeds = table.groupby(["problem", "budget", "estimator", "temperature"])["seed"].nunique()
    figure.suptitle(f"means over {in_words(seeds)}; bands: standard error", x=0.99, ha="right", **SMALL_PRINT)
    return figure


#: Ticks of the symmetric logarithmic axis.
MARKS = (-100, -30, -10, -3, -1, -0.3, 0, 0.3, 1, 3, 10, 30, 100)


@in_house_style
def draw_ends(found: pd.DataFrame) -> Figure:
    """Draw relaxed minus exact against the temperature, at equal steps (above) and equal seconds (below), by problem.

    Lines are shifted a little, so that their error bars do not hide each other; exact training with a warm-up, which
    has no temperature, is at the left edge.
    """
    problems = list(found["problem"].unique())
    found[["kl", "temperature"]] = found["estimator"].str.extract(r", (\w+) KL, t=([\d.]+)")
    found = found.astype({"temperature": float}).sort_values("temperature")
    coolest = found["temperature"].min()
    figure, panels = panels_of(problems, sharex=True, sharey="row")
    for (place, problem), (row, budget) in product(enumerate(problems), enumerate(("steps", "seconds"))):
        axes, here = panels[place, row], found[(found["problem"] == problem) & (found["budget"] == budget)]
        axes.set_yscale("symlog", linthresh=0.3, linscale=0.5)
        axes.margins(y=0.1)
        axes.axhline(0, color="#888888", lw=1)
        bars: Any = {"ms": 4, "capsize": 2, "elinewidth": 1}
        for value, error in here.loc[
            here["estimator"] == WARM, ["test_log_evidence", "test_log_evidence_se"]
        ].to_numpy():
            axes.axhline(value, color=COLORS[WARM], lw=1, ls="-.")
            look = bars | {"fmt": "D-.", "color": COLORS[WARM], "label": f"{WARM}, log p(x)"}
            axes.errorbar(coolest - 0.1, value, yerr=np.nan_to_num(error), **look)
        lines = product(("relaxed", "categorical"), {"test_log_evidence": "o-", "test_elbo": "s--"}.items())
        for beside, (kl, (value, look)) in zip((-0.024, -0.008, 0.008, 0.024), lines, strict=True):
            shown = here[here["kl"] == kl]
            label = f"{kl} KL, {'log p(x)' if value == 'test_log_evidence' else 'ELBO'}"
            errors = shown[f"{value}_se"].fillna(0.0)
            drawn = bars | {"fmt": look, "color": COLORS[f"{kl} KL"], "label": label}
            axes.errorbar(shown["temperature"] + beside, shown[value], yerr=errors, **drawn)
        axes.set_title(problem if row == 0 else "")
        axes.set_xlabel("temperature" if row == 1 else "")
        axes.set_xticks(sorted(found["temperature"].dropna().unique()))
        axes.tick_params(labelbottom=True)
        if place % COLUMNS == 0:
            axes.set_ylabel(f"relaxed − exact, nats per datum\nat equal {budget}")
    for axes in panels[::COLUMNS].ravel():  # once a whole row is drawn
        low, high = axes.get_ylim()
        axes.set_yticks([mark for mark in MARKS if low <= mark <= high])
        axes.set_ylim(low, high)
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:.3g}".replace("-", "−"))
        axes.yaxis.set_minor_locator(NullLocator())
    figure.legend(*panels[0, 0].get_legend_handles_labels(), loc="outside upper left", ncols=3)
    note = f"means of paired differences over {in_words(found['seeds'])}; bars: standard error"
    figure.supxlabel(note, x=0.99, ha="right", **SMALL_PRINT)
    return figure


if __name__ == "__main__":
    command(main)
