"""Relaxed or exact training: who wins, when?

Question: which gives the discrete model with the higher log-likelihood, training by Gumbel-Softmax samples or by exact
enumeration, after equally many steps and after equally many seconds, on digits and MNIST, from 100 to 32,768 codes?

Command: `python experiments/relaxed_vs_exact.py` (`--smoke` for tiny sizes, in seconds). `--problems`, `--seeds`,
`--temperatures` and `--scale`, which shortens all budgets, make it shorter; what has been measured is not measured
again. It writes `experiments/results/relaxed_vs_exact.csv`, and as PNG and SVG `docs/figures/relaxed_vs_exact` (how
training goes) and `relaxed_vs_exact_ends` (where it ends, against the temperature).

Cost: one core: the digits (`--problems "digits 10x2" "digits 8x4" "digits 8x5"`) forty minutes, MNIST 10x2 and 8x4 an
hour, MNIST 8x5 two hours; `--workers 2` halves that.

Black-and-white images (thresholds at 1/2), the networks of `PROBLEMS`, one Adam. Relaxed training has the relaxed KL
(Maddison et al. 2017; the prior's temperature is 3/5 of the guide's, as theirs is) or that of the categoricals (Jang et
al. 2017). Exact training is also done with a KL whose weight grows from 0 to 1 in the first 300 steps, but for MNIST
8x5, which has fewer. All begin with the same weights and see the same batches. Judged are ELBO and log p(x) of the
discrete model, summed over all codes, on the first 1,000 test images, and how many categories of a latent are in use:
exp of the entropy of q(z_n) over these images, a mean over latents.

Found (three seeds; MNIST 8x5 at a temperature of 0.67 alone): with the categoricals' KL at a temperature of 0.3 or
0.67, soft samples cost 0.12 +- 0.07 to 0.43 +- 0.09 nats of log p(x) at equal steps on digits, the relaxed KL 2.5 to
3.2. At equal seconds soft samples win from 4,096 codes on: on MNIST by 19.0 +- 3.9 to 91.9 +- 2.1 nats, on digits by
0.43 +- 0.11 to 1.80 +- 0.05 if each run is taken at the best of its six evaluations, chosen on the test images.
On MNIST exact training may settle on one category of ten, as one seed of three did; with the relaxed KL none of nine
runs did.
"""

from functools import partial
from itertools import product
from typing import Annotated, Any, NamedTuple

import pandas as pd
import tyro
from cells import (
    Places,
    Row,
    check_names,
    command,
    log_axis,
    mean_and_error,
    paired,
    run_cells,
    scores_on_test,
    tiny,
    train,
)
from matplotlib.figure import Figure

from pyro_gvae import CategoricalVAE, Dataset, TrainConfig
from pyro_gvae.code_statistics import guide_log_probs, mean_perplexity
from pyro_gvae.plots import PALETTE, in_house_style
from pyro_gvae.tables import with_errors

NAME = "relaxed_vs_exact"
WARM = "exact, KL warm-up"
#: Steps until the KL has its full weight.
WARM_UP = 300
#: Parts of the budget at which models are judged.
PARTS = (1 / 32, 1 / 16, 1 / 8, 1 / 4, 1 / 2, 1)
NUM_TEST = 1000


class Problem(NamedTuple):
    """A data set with a size of code, and how long it is trained: steps in the one comparison, seconds in the other."""

    config: TrainConfig
    steps: int
    seconds: float


DIGITS = {"dataset": "digits", "hidden": (128,), "batch_size": 64, "learning_rate": 3e-3}
MNIST = {"dataset": "mnist", "hidden": (512, 256), "batch_size": 100, "learning_rate": 1e-3}
#: "data set KxN" -> problem: 100, 4,096 and 32,768 codes.
PROBLEMS = {
    f"{data['dataset']} {k}x{n}": Problem(TrainConfig(**data, num_categories=k, num_latents=n), steps, seconds)
    for data, k, n, steps, seconds in (
        (DIGITS, 10, 2, 2300, 5),
        (DIGITS, 8, 4, 2300, 10),
        (DIGITS, 8, 5, 2300, 40),
        (MNIST, 10, 2, 1200, 20),
        (MNIST, 8, 4, 1200, 60),
        (MNIST, 8, 5, 200, 120),
    )
}


def main(
    places: Annotated[Places, tyro.conf.arg(name="")],
    *,
    problems: tuple[str, ...] = tuple(PROBLEMS),
    seeds: tuple[int, ...] = (0, 1, 2),
    temperatures: tuple[float, ...] = (0.3, 0.67, 1.0),
    scale: float = 1.0,
    smoke: bool = False,
) -> pd.DataFrame:
    """Train by relaxation and exactly, and print the paired differences.

    Args:
        places: where to read and write.
        problems: data sets and sizes of codes.
        seeds: of initial weights, order of the data and samples.
        temperatures: of the relaxation.
        scale: of all budgets.
        smoke: all of it on a tiny problem, in seconds, to see that it runs; no other setting is looked at, and numbers
            and figures go to runs/experiments/smoke.
    """
    if smoke:
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
    table = run_cells(NAME, cells, partial(measure, places=places, scale=scale, smoke=smoke), places)
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
    """The last rows of all cells of this scale that the file has, and all rows of theirs."""
    ends = [
        {"problem": name, "budget": budget, "moment": moments[-1]}
        for name, problem in PROBLEMS.items()
        for budget, moments in budgets(problem, scale).items()
    ]
    final = table.merge(pd.DataFrame(ends))
    return final, table.merge(final[CELL])


def budgets(problem: Problem, scale: float) -> dict[str, list[str]]:
    """The two comparisons, and the moments at which models are judged in them."""
    return {
        "steps": [f"{max(1, round(problem.steps * scale * part))}steps" for part in PARTS],
        "seconds": [f"{problem.seconds * scale * part:g}s" for part in PARTS],
    }


def measure(cell: Row, *, places: Places, scale: float, smoke: bool) -> list[Row]:
    """Train a cell and judge it at its moments."""
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
    return train(tiny(config) if smoke else config, moments, judge, places.folder(NAME, cell))


def judge(vae: CategoricalVAE, data: Dataset) -> Row:
    """Scores of the discrete model, and how many categories it uses."""
    used = mean_perplexity(guide_log_probs(vae, data.test[:NUM_TEST])).value
    return scores_on_test(vae, data, most=NUM_TEST) | {"categories_used": used}


def differences(final: pd.DataFrame) -> pd.DataFrame:
    """Relaxed minus exact on the same seeds: test ELBO, log p(x) (nats per datum, higher is better), seconds."""
    named = final.assign(estimator=[_name(*row) for row in final[["estimator", "temperature"]].itertuples(index=False)])
    return paired(named, ["problem", "budget"], ["test_elbo", "test_log_evidence", "seconds"])


def _name(estimator: str, temperature: float) -> str:
    return estimator if estimator in ("exact", WARM) else f"{estimator}, t={temperature:g}"


#: Colours of the kinds of training, line styles of the temperatures.
COLORS = {"exact": PALETTE[1], WARM: PALETTE[6], "relaxed KL": PALETTE[0], "categorical KL": PALETTE[2]}
STYLES = ("o:", "s-", "^--")


@in_house_style
def draw_curves(table: pd.DataFrame) -> Figure:
    """Test log p(x) along training, means over seeds: a column for each problem, against steps above seconds."""
    problems = list(table["problem"].unique())
    heats = sorted(set(table["temperature"]) - {0.0})
    figure = Figure(figsize=(max(9, 1.2 + 2.7 * len(problems)), 6.4))
    grid = figure.subplots(2, len(problems), squeeze=False)
    looks = {("exact", 0.0): "o-", (WARM, 0.0): "D-"} | {
        (f"gumbel-softmax, {kl}", heat): style
        for kl in ("relaxed KL", "categorical KL")
        for heat, style in zip(heats, STYLES, strict=False)
    }
    for (row, (budget, clock)), (column, problem) in product(
        enumerate((("steps", "step"), ("seconds", "seconds"))), enumerate(problems)
    ):
        axes, shown = grid[row, column], table[(table["problem"] == problem) & (table["budget"] == budget)]
        means = shown.groupby(["estimator", "temperature", "moment"]).mean(numeric_only=True)
        for (name, heat), look in looks.items():
            if (name, heat) in means.index:
                kind = name.removeprefix("gumbel-softmax, ")
                label = f"{kind}, t = {heat:g}" if heat else name
                curve = means.loc[(name, heat)].sort_values(clock)
                axes.plot(curve[clock], curve["test_log_evidence"], look, color=COLORS[kind], ms=4, lw=1.4, label=label)
        # What comes before a tenth of the budget would leave the rest no room.
        late = means.loc[means[clock] > 0.1 * means[clock].max(), "test_log_evidence"]
        margin = 0.06 * (means["test_log_evidence"].max() - late.min())
        axes.set(xscale="log", ylim=(late.min() - margin, means["test_log_evidence"].max() + margin))
        log_axis(axes.xaxis)
        config = PROBLEMS[problem].config
        codes = config.num_categories**config.num_latents
        axes.set_title(f"{problem}, {codes:,} codes" if row == 0 else "")
        axes.set_xlabel("steps" if row == 0 else "seconds on one core")
    for axes in grid[:, 0]:
        axes.set_ylabel("test log p(x), nats per datum")
    figure.legend(*grid[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    return figure


#: Marks of an axis that is linear between the least of them.
MARKS = (-30, -10, -3, -1, -0.3, 0, 0.3, 1, 3, 10, 30, 100)


@in_house_style
def draw_ends(found: pd.DataFrame) -> Figure:
    """Relaxed minus exact against the temperature: a column for each problem, steps above seconds."""
    problems = list(found["problem"].unique())
    found[["kl", "temperature"]] = found["estimator"].str.extract(r", (\w+) KL, t=([\d.]+)")
    found = found.astype({"temperature": float}).sort_values("temperature")
    figure = Figure(figsize=(max(9, 2.2 + 2.5 * len(problems)), 6))
    grid = figure.subplots(2, len(problems), sharex=True, sharey="row", squeeze=False)
    for (row, budget), (column, problem) in product(enumerate(("steps", "seconds")), enumerate(problems)):
        axes = grid[row, column]
        axes.axhline(0, color="#888888", lw=1)
        warm = found[(found["problem"] == problem) & (found["budget"] == budget) & (found["estimator"] == WARM)]
        for value in warm["test_log_evidence"]:
            axes.axhline(value, color=COLORS[WARM], lw=1.2, ls="-.", label=f"{WARM}, log p(x)")
        for kl, (value, look) in product(
            ("relaxed", "categorical"), {"test_log_evidence": "o-", "test_elbo": "s--"}.items()
        ):
            shown = found[(found["problem"] == problem) & (found["budget"] == budget) & (found["kl"] == kl)]
            label = f"{kl} KL, {'log p(x)' if value == 'test_log_evidence' else 'ELBO'}"
            axes.errorbar(
                shown["temperature"],
                shown[value],
                yerr=shown[f"{value}_se"],
                fmt=look,
                color=COLORS[f"{kl} KL"],
                ms=4,
                label=label,
            )
        if row == 0:
            axes.set_title(problem)
        else:
            axes.set_xlabel("temperature")
    for axes, budget in zip(grid[:, 0], ("steps", "seconds"), strict=True):
        axes.set_ylabel(f"relaxed − exact, nats\nat equal {budget}")
        low, high = axes.get_ylim()
        axes.set_yscale("symlog", linthresh=0.3, linscale=0.5)
        axes.set_yticks([mark for mark in MARKS if low <= mark <= high], minor=False)
        axes.set_ylim(low, high)
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:.3g}".replace("-", "−"))
    handles, labels = grid[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper left", ncols=4)
    return figure


if __name__ == "__main__":
    command(main)
