"""Measure how to divide training into a relaxed stage and an exact one.

Question: at 8x4 on MNIST, how many relaxed epochs and how many exact ones are best, with which relaxation and which
temperature, compared with exact training alone and with single estimators, after equally many epochs and equally many
seconds? Does this beat the published figures after 160 epochs (train -ELBO 125.08, test 126.60), and when? And where
codes cannot be summed, at 10x30 and 8x16: what should follow a soft stage?

Command: `python experiments/stages.py --seeds 0 1 2` and `python experiments/stages.py --sizes 10x30 8x16` (`--smoke`
for a tiny size, in seconds); `--epochs` is the total number of epochs, and `--plans` selects rows. It writes
`experiments/results/stages.csv`, and as PNG and SVG `docs/figures/stages_SIZE` (learning curves) and `stages_SIZE_ends`
(final scores).

Cost: one core, 20 epochs: a relaxed epoch takes 6 seconds, an exact one 40 to 100, one of `exact-wake` a tenth more
(with an evidence weight, twice that), and an evaluation 4. All plans at 8x4: an hour and a half per seed; 10x30 and
8x16: three quarters of an hour. `--workers 2` runs two cells at a time.

The ReinMax protocol (see `reinmax_protocol.py`) with a single Adam for all stages. "soft" is Gumbel-Softmax with the
categorical KL at temperature 0.67. Single estimators, "alone", are the rows of `reinmax_protocol.csv` that were trained
for equally many epochs, each with the settings found by the search. Seconds are those of training, without evaluations.
Comparisons at equal seconds use the time of the baseline, `soft, 3 exact`, and interpolate curves linearly between two
evaluations.

Found (8x4): 17 soft epochs and 3 exact ones reach a test -ELBO of 125.21 +- 0.32 and a train -ELBO of 124.21 +- 0.29
(ten seeds), below the published figures, and pass 126.60 after 230 +- 22 seconds on one core (three seeds). The others
have three seeds. 15 soft epochs and 5 of `local-expectation`, which sums over one latent at a time, reach 125.61 +-
0.51 in 270 +- 4 seconds; with 5 of `reinforce-loo`, which sums over nothing, 125.98 +- 0.47 in 169 +- 11. A soft stage
at temperature 1 is as good as at 0.67 (0.07 +- 0.73 apart); at 0.3 it is worse by 3.6 +- 1.1. Exact sums alone reach
127.8 +- 1.2, ReinMax after soft samples 138.4 +- 1.4, and ReinMax for 60 epochs 132.53 +- 0.61. At 10x30 and 8x16 (one
seed) one epoch of `local-expectation` after 19 soft ones has the best ELBO, by 1.6 and 1.2 nats. As a last stage at 8x4
(three seeds) three epochs of `exact-wake` reach -log p(x) 117.64 +- 0.10 and -ELBO 131.22 +- 0.77; with an evidence
weight of one half, 118.96 +- 0.22 and 126.04 +- 0.54, which is 1.68 +- 0.18 nats of log p(x) better and 0.64 +- 0.02
nats of ELBO worse than three of `exact`. By the inclusive KL (seed 0), 117.80 and 151.14.
"""

import textwrap
from dataclasses import replace
from functools import partial
from itertools import product
from typing import Annotated

import numpy as np
import pandas as pd
import tyro
from common import (
    Places,
    Row,
    check_names,
    command,
    draw_curve,
    draw_dots,
    evidence_of,
    log_axis,
    mean_and_error,
    print_paired,
    run_cells,
    scores_on_test,
    tiny,
    train,
)
from matplotlib.figure import Figure

from pyro_gvae import TrainConfig
from pyro_gvae.config.presets import SEARCHED, reinmax_protocol
from pyro_gvae.report.style import MARKERS, PALETTE, SMALL_PRINT, in_house_style
from pyro_gvae.runs.tables import with_errors

NAME = "stages"
BASELINE = "soft, 3 exact"
SOFT = "gumbel-softmax[kl=categorical,temperature=0.67]"

#: Row -> stages, in epochs. E is the total; one row trains for 3 E, about as long as rows with exact stages take.
SUMMABLE = {
    "soft": f"{SOFT}:{{E}}",
    "soft, 1 exact": f"{SOFT}:{{E-1}},exact:1",
    BASELINE: f"{SOFT}:{{E-3}},exact:3",
    "soft, 5 exact": f"{SOFT}:{{E-5}},exact:5",
    "soft, 1 exact-wake": f"{SOFT}:{{E-1}},exact-wake:1",
    "soft, 3 exact-wake": f"{SOFT}:{{E-3}},exact-wake:3",
    "soft, 3 exact-wake, inclusive": f"{SOFT}:{{E-3}},exact-wake[encoder=inclusive]:3",
    "soft, 3 exact-wake, half": f"{SOFT}:{{E-3}},exact-wake[evidence_weight=0.5]:3",
    "soft, 2 exact, 1 exact-wake": f"{SOFT}:{{E-3}},exact:2,exact-wake:1",
    "soft, 3 exact-evidence": f"{SOFT}:{{E-3}},exact-evidence:3",
    "soft t=0.3, 3 exact": "gumbel-softmax[kl=categorical,temperature=0.3]:{E-3},exact:3",
    "soft t=1, 3 exact": "gumbel-softmax[kl=categorical,temperature=1.0]:{E-3},exact:3",
    "relaxed KL, 3 exact": "gumbel-softmax[kl=relaxed]:{E-3},exact:3",
    "st-gumbel-softmax, 3 exact": "st-gumbel-softmax[temperature=0.5]:{E-3},exact:3",
    "reinmax, 3 exact": "reinmax[temperature=1.3]:{E-3},exact:3",
    "soft, 5 reinmax": f"{SOFT}:{{E-5}},reinmax[temperature=1.3]:5",
    "soft, 5 reinforce-loo": f"{SOFT}:{{E-5}},reinforce-loo:5",
    "soft, 5 local-expectation": f"{SOFT}:{{E-5}},local-expectation:5",
    "reinmax": "reinmax[temperature=1.3]:{E}",
    "reinmax, 3 times as long": "reinmax[temperature=1.3]:{3E}",
}
#: The same where there are too many codes to sum; ReinMax's temperature is the one found by the search for the size.
NOT_SUMMABLE = {
    "soft": f"{SOFT}:{{E}}",
    "reinmax": "reinmax[temperature={t}]:{E}",
    "soft, 5 reinmax": f"{SOFT}:{{E-5}},reinmax[temperature={{t}}]:5",
    "soft, 5 reinforce-loo": f"{SOFT}:{{E-5}},reinforce-loo:5",
    "soft, 1 local-expectation": f"{SOFT}:{{E-1}},local-expectation:1",
}
#: Rows whose curves are drawn; there are too many to draw all of them.
SHOWN = (
    BASELINE,
    "soft, 5 reinforce-loo",
    "soft, 5 reinmax",
    "soft",
    "reinmax, 3 times as long",
    "reinmax-rao alone",
    "exact alone",
)
#: Best published train and test -ELBO at 8x4 after 160 epochs: ReinMax and ReinMax-Rao.
PUBLISHED = {"train": 125.08, "test": 126.60}


def main(
    places: Annotated[Places, tyro.conf.arg(name="")],
    *,
    sizes: tuple[str, ...] = ("8x4",),
    epochs: int = 20,
    seeds: tuple[int, ...] = (0,),
    plans: tuple[str, ...] = (),
    learning_rate: float = 1e-3,
) -> pd.DataFrame:
    """Train in stages; print the final scores of each plan, and when it passes the published figures.

    Args:
        places: where to read and write.
        sizes: K x N: 8x4, 4x24, 8x16, 16x12, 64x8 or 10x30.
        epochs: total number of epochs, at least 6.
        seeds: seeds of the initial weights, the order of the data and the samples.
        plans: rows to train, by default all rows of the size.
        learning_rate: learning rate of Adam.
    """
    if places.smoke:
        places, sizes, epochs, seeds = places.apart(NAME), ("8x4",), 6, (0,)
        plans = ("soft", BASELINE)
    if epochs < 6:
        raise ValueError(f"Expected at least 6 epochs, because the last stage takes up to 5, but found {epochs}.")
    check_names(sizes, SEARCHED["reinmax"])
    for size in sizes:
        check_names(plans, plans_of(size))
    cells: list[Row] = [
        {
            "size": size,
            "epochs": epochs,
            "learning_rate": learning_rate,
            "estimator": plan,
            "seed": seed,
            "moment": str(epochs),
        }
        for size, seed in product(sizes, seeds)
        for plan in (plans or plans_of(size))
    ]
    table = run_cells(NAME, cells, partial(measure, places=places), places)
    table = table[(table["epochs"] == epochs) & (table["learning_rate"] == learning_rate)]
    for size in sizes:
        of_size = pd.concat([table[table["size"] == size], single_estimators(places, size, epochs)])
        print(f"\n{size}, {epochs} epochs", report(of_size).to_string(index=False), sep="\n")
        base = BASELINE if size == "8x4" else "soft"
        at_equal = pd.concat([at_equal_epochs(of_size), at_equal_seconds(of_size, base)])
        print_paired(at_equal, ["budget"], ["test_elbo", "test_log_evidence"], base)
        places.save(f"{NAME}_{size}", draw(of_size))
        if size == "8x4":  # in the README, also on a phone
            places.save(f"{NAME}_{size}_narrow", draw(of_size, columns=1))
        places.save(f"{NAME}_{size}_ends", draw_ends(of_size))
    return table


def plans_of(size: str) -> dict[str, str]:
    return SUMMABLE if size == "8x4" else NOT_SUMMABLE


def configuration(cell: Row) -> TrainConfig:
    """Return the configuration of the protocol with a plan's stages."""
    size, epochs = cell["size"], cell["epochs"]
    text = plans_of(size)[cell["estimator"]].replace("{t}", str(SEARCHED["reinmax"][size].temperature))
    amounts = {"E": epochs, "E-1": epochs - 1, "E-3": epochs - 3, "E-5": epochs - 5, "3E": 3 * epochs}
    for name, amount in amounts.items():
        text = text.replace(f"{{{name}}}", str(amount))
    return replace(
        reinmax_protocol("reinmax", size), stages=text, optimizer="Adam", learning_rate=cell["learning_rate"]
    )


def measure(cell: Row, *, places: Places) -> list[Row]:
    """Train a cell; score it more and more rarely, at the end of its first stage, and more often in its last one."""
    config = places.placed(configuration(cell), seed=cell["seed"])
    first, *others = [int(stage.amount.number) for stage in config.plan]
    epochs = first + sum(others)
    every = 1 if cell["size"] == "8x4" else 5  # at other sizes scoring needs samples, and takes as long as a few epochs
    chosen = {1, 2, 5, *range(10, epochs, 10), *range(first, epochs, every), epochs}
    moments = [str(epoch) for epoch in sorted(chosen) if epoch <= epochs]
    return train(tiny(config) if places.smoke else config, moments, scores_on_test, places.folder(NAME, cell))


def single_estimators(places: Places, size: str, epochs: int) -> pd.DataFrame:
    """Read the single estimators of `reinmax_protocol.py` that were trained for equally many epochs."""
    path = places.results / "reinmax_protocol.csv"
    if not path.exists():
        return pd.DataFrame()
    table = pd.read_csv(path)
    table = table[(table["size"] == size) & (table["epoch"] <= epochs)]
    reached = table.groupby(["estimator", "seed"])["epoch"].transform("max") == epochs
    return table[reached].assign(epochs=epochs, estimator=lambda rows: rows["estimator"] + " alone")


def report(table: pd.DataFrame) -> pd.DataFrame:
    """Tabulate final -ELBO and -log p(x), means over seeds, and when each plan passes the best published figure."""
    cells = table.groupby(["estimator", "seed"], sort=False)
    final = cells.tail(1).assign(
        train=lambda rows: -rows["train_objective"],
        test=lambda rows: -rows["test_elbo"],
        log_px=lambda rows: -rows["test_log_evidence"],
    )
    passed = [passes(rows, PUBLISHED["test"]) for _, rows in cells]
    final["seconds_to_published"] = passed
    values = ["train", "test", "log_px", "seconds", "seconds_to_published"]
    found = mean_and_error(final, ["estimator"], values)
    return found[["estimator", "seeds"]].join(with_errors(found, values))


def passes(curve: pd.DataFrame, level: float) -> float:
    """Return the seconds of training at the first evaluation with a test -ELBO of at most `level`, or NaN."""
    reached = curve[-curve["test_elbo"] <= level]
    return float(reached["seconds"].iloc[0]) if len(reached) else float("nan")


def at_equal_epochs(table: pd.DataFrame) -> pd.DataFrame:
    in_time = table[table["epoch"] <= table["epochs"]]
    return in_time.groupby(["estimator", "seed"], sort=False).tail(1).assign(budget="epochs")


def at_equal_seconds(table: pd.DataFrame, baseline: str) -> pd.DataFrame:
    """Interpolate curves at the total seconds of the baseline with their seed; shorter ones keep their last value."""
    limits = at_equal_epochs(table).query("estimator == @baseline").set_index("seed")["seconds"]
    rows = []
    for (name, seed), curve in table.groupby(["estimator", "seed"], sort=False):
        if seed in limits.index:
            at = {
                value: float(np.interp(limits[seed], curve["seconds"], curve[value]))
                for value in ("test_elbo", "test_log_evidence", "seconds")
            }
            rows.append({"estimator": name, "seed": seed, "budget": "seconds"} | at)
    return pd.DataFrame(rows)


@in_house_style
def draw(table: pd.DataFrame, *, columns: int = 2) -> Figure:
    """Draw test -ELBO and -log p(x) against seconds of training; the dashed line is the best published value.

    Nats are means over seeds at each evaluation, and bands are standard errors. Seconds are means over the seeds that
    the most rows have, so that they compare rows on one machine.

    Args:
        table: the rows of one size.
        columns: the number of panels beside each other; 1 for a phone.
    """
    size = table["size"].iloc[0]
    names = SHOWN if size == "8x4" else tuple(dict.fromkeys((*SHOWN, *NOT_SUMMABLE)))
    names = tuple(name for name in names if name in set(table["estimator"]))
    table = table[table["estimator"].isin(names)]
    rows_of_seed = table.groupby("seed")["estimator"].nunique()
    timed = rows_of_seed.index[rows_of_seed == rows_of_seed.max()]
    figure = Figure(figsize=(5.5 * columns, 10.4 / columns))
    panels = figure.subplots(2 // columns, columns)
    values = ("test_elbo", "test_log_evidence")
    for name, color, marker in zip(names, PALETTE, MARKERS, strict=False):
        rows = table[table["estimator"] == name]
        mean = mean_and_error(rows, ["epoch"], [*values]).sort_values("epoch")
        seconds = mean_and_error(rows[rows["seed"].isin(timed)], ["epoch"], ["seconds"]).sort_values("epoch")
        look = {"color": color, "marker": marker, "ms": 4, "lw": 1.4, "label": f"{name} ({rows['seed'].nunique()})"}
        for axes, value in zip(panels, values, strict=True):
            draw_curve(axes, seconds["seconds"], -mean[value], mean[f"{value}_se"], **look)
    if size == "8x4":
        panels[0].axhline(PUBLISHED["test"], color="#888888", ls="--", lw=1)
        note = panels[0].annotate(
            "best published, 160 epochs", (0.01, PUBLISHED["test"]), (0, 3), ("axes fraction", "data"), "offset points",
            **SMALL_PRINT,
        )  # fmt: skip
        note.set_in_layout(False)  # it may be outside of the axes
    for axes, label in zip(panels, ("test −ELBO", f"test −{evidence_of(table)}"), strict=True):
        settled = -table.loc[table["epoch"] >= 5, list(values)].to_numpy()
        axes.set(xscale="log", xlabel="seconds of training, one core (means over shared seeds)")
        axes.set_title(f"{label}, nats per datum")
        axes.set_ylim(settled.min() - 1, np.quantile(settled, 0.95) + 1)
        log_axis(axes.xaxis)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=2 * columns, fontsize=9)
    note = f"{size}; {settings_in_words(table)}; in brackets: seeds; bands: standard error over seeds"
    figure.suptitle(textwrap.fill(note, 80 * columns), x=0.01, ha="left", **SMALL_PRINT)
    return figure


def settings_in_words(table: pd.DataFrame) -> str:
    """Describe how plans, and single estimators (which have no learning rate in the table), were trained."""
    plans = f"one Adam at {table['learning_rate'].max():g}"
    single = table["estimator"].str.endswith(" alone").any()
    return f"alone: each with its own settings in the ReinMax protocol; others: {plans}" if single else plans


@in_house_style
def draw_ends(table: pd.DataFrame) -> Figure:
    """Draw the final scores of each plan, means over seeds with standard errors, with the best ELBO at the top."""
    ends = table.groupby(["estimator", "seed"], sort=False).tail(1)
    figure = Figure(figsize=(8.5, 2.0 + 0.24 * ends["estimator"].nunique()))
    axes = figure.subplots()
    draw_dots(axes, ends)
    if table["size"].iloc[0] == "8x4":
        axes.axvline(PUBLISHED["test"], color="#888888", ls="--", lw=1, label="best published −ELBO, 160 epochs")
    axes.set_xlabel("nats per datum on test images")
    figure.legend(*axes.get_legend_handles_labels(), loc="outside upper center", ncols=3)
    note = f"in brackets: seeds; bars: standard error over seeds\n{settings_in_words(table)}"
    figure.supxlabel(note, x=0.99, ha="right", **SMALL_PRINT)
    return figure


if __name__ == "__main__":
    command(main)
