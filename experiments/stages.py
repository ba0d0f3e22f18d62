"""Relax first, then sum exactly: how much of each?

Question: at 8x4 on MNIST, how many relaxed epochs and how many exact ones, by which relaxation and at which temperature
first, next to exact training alone and to single estimators, after equally many epochs and after equally many seconds?
Does it beat the published figures after 160 epochs (train -ELBO 125.08, test 126.60), and when? And where nothing can
be summed, at 10x30 and 8x16: what should follow a soft stage?

Command: `python experiments/stages.py --seeds 0 1 2` and `python experiments/stages.py --sizes 10x30 8x16` (`--smoke`
for a tiny size, in seconds); `--epochs` says how many in all, `--plans` which rows. It writes
`experiments/results/stages.csv`, and as PNG and SVG `docs/figures/stages_SIZE` (how training goes) and
`stages_SIZE_ends` (where it ends).

Cost: one core, 20 epochs: a relaxed epoch takes 6 seconds, an exact one 40 to 100, one of `exact-wake` a tenth more and
with an evidence weight twice that, an evaluation 4. All plans at 8x4: an hour and a half a seed; 10x30 and 8x16: three
quarters of an hour. `--workers 2` shares them out.

The ReinMax protocol (see `reinmax_protocol.py`) with one Adam, which goes through all stages. "soft" is Gumbel-Softmax
with the categoricals' KL at temperature 0.67. Single estimators, "alone", are the rows of `reinmax_protocol.csv` that
were trained for as many epochs, each with the settings that were searched for it. Seconds are those of training,
without evaluations; equal seconds are those of the baseline, `soft, 3 exact`, and curves are read off between two
evaluations on a straight line.

Found (8x4, three seeds): 17 soft epochs and 3 exact ones reach a test -ELBO of 125.40 +- 0.55 and a train -ELBO of
124.39 +- 0.58, below the published figures, and pass 126.60 after 230 +- 22 seconds on one core; 15 soft epochs and 5
of `local-expectation`, which sums over one latent at a time, reach 125.61 +- 0.51 in 270 +- 4 seconds, and with 5 of
`reinforce-loo`, which sums over nothing, 125.98 +- 0.47 in 169 +- 11. A soft stage at temperature 1 is as good as at
0.67 (0.07 +- 0.73), at 0.3 worse by 3.6 +- 1.1. Exact sums alone reach 127.8 +- 1.2, ReinMax after soft samples 138.4
+- 1.4, and ReinMax for 60 epochs 132.53 +- 0.61. At 10x30 and 8x16 (one seed) one epoch of `local-expectation` after 19
soft ones has the best ELBO, by 1.6 and 1.2 nats.
"""

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

#: Row -> stages, in epochs; E is the number in all, but for one that takes the seconds of those that end exactly.
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
#: The same where codes are too many; temperatures of ReinMax are those that were searched for the size.
NOT_SUMMABLE = {
    "soft": f"{SOFT}:{{E}}",
    "reinmax": "reinmax[temperature={t}]:{E}",
    "soft, 5 reinmax": f"{SOFT}:{{E-5}},reinmax[temperature={{t}}]:5",
    "soft, 5 reinforce-loo": f"{SOFT}:{{E-5}},reinforce-loo:5",
    "soft, 1 local-expectation": f"{SOFT}:{{E-1}},local-expectation:1",
}
#: Rows whose curves are drawn where there are many.
SHOWN = (
    BASELINE,
    "soft, 5 reinforce-loo",
    "soft, 5 reinmax",
    "soft",
    "reinmax, 3 times as long",
    "reinmax-rao alone",
    "exact alone",
)
#: Train and test -ELBO of the best estimators after 160 epochs, 8x4: ReinMax and ReinMax-Rao.
PUBLISHED = {"train": 125.08, "test": 126.60}


def main(
    places: Annotated[Places, tyro.conf.arg(name="")],
    *,
    sizes: tuple[str, ...] = ("8x4",),
    epochs: int = 20,
    seeds: tuple[int, ...] = (0,),
    plans: tuple[str, ...] = (),
    learning_rate: float = 1e-3,
    smoke: bool = False,
) -> pd.DataFrame:
    """Train in stages, and print where each plan ends and when it passes the published figures.

    Args:
        places: where to read and write.
        sizes: K x N: 8x4, 4x24, 8x16, 16x12, 64x8 or 10x30.
        epochs: in all; 6 at least.
        seeds: of initial weights, order of the data and samples.
        plans: rows; all of the size if none are named.
        learning_rate: of Adam.
        smoke: all of it on a tiny problem, in seconds, to see that it runs; no other setting is looked at, and numbers
            and figures go to runs/experiments/smoke.
    """
    if smoke:
        places, sizes, epochs, seeds = places.apart(NAME), ("8x4",), 6, (0,)
        plans = ("soft", BASELINE)
    if epochs < 6:
        raise ValueError(f"Expected at least 6 epochs, of which up to 5 are the last stage's, but found {epochs}.")
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
    table = run_cells(NAME, cells, partial(measure, places=places, smoke=smoke), places)
    table = table[(table["epochs"] == epochs) & (table["learning_rate"] == learning_rate)]
    for size in sizes:
        of_size = pd.concat([table[table["size"] == size], single_estimators(places, size, epochs)])
        print(f"\n{size}, {epochs} epochs", report(of_size).to_string(index=False), sep="\n")
        base = BASELINE if size == "8x4" else "soft"
        at_equal = pd.concat([at_equal_epochs(of_size), at_equal_seconds(of_size, base)])
        print_paired(at_equal, ["budget"], ["test_elbo", "test_log_evidence"], base)
        places.save(f"{NAME}_{size}", draw(of_size))
        places.save(f"{NAME}_{size}_ends", draw_ends(of_size))
    return table


def plans_of(size: str) -> dict[str, str]:
    return SUMMABLE if size == "8x4" else NOT_SUMMABLE


def configuration(cell: Row) -> TrainConfig:
    """The protocol with a plan's stages."""
    size, epochs = cell["size"], cell["epochs"]
    text = plans_of(size)[cell["estimator"]].replace("{t}", str(SEARCHED["reinmax"][size].temperature))
    amounts = {"E": epochs, "E-1": epochs - 1, "E-3": epochs - 3, "E-5": epochs - 5, "3E": 3 * epochs}
    for name, amount in amounts.items():
        text = text.replace(f"{{{name}}}", str(amount))
    return replace(
        reinmax_protocol("reinmax", size), stages=text, optimizer="Adam", learning_rate=cell["learning_rate"]
    )


def measure(cell: Row, *, places: Places, smoke: bool) -> list[Row]:
    """Train a cell; it is judged ever more seldom, at the end of its first stage, and more often in its last."""
    config = places.placed(configuration(cell), seed=cell["seed"])
    first, *others = [int(stage.amount.number) for stage in config.plan]
    epochs = first + sum(others)
    every = 1 if cell["size"] == "8x4" else 5  # elsewhere a judgement, by samples, takes as long as some epochs
    chosen = {1, 2, 5, *range(10, epochs, 10), *range(first, epochs, every), epochs}
    moments = [str(epoch) for epoch in sorted(chosen) if epoch <= epochs]
    return train(tiny(config) if smoke else config, moments, scores_on_test, places.folder(NAME, cell))


def single_estimators(places: Places, size: str, epochs: int) -> pd.DataFrame:
    """What `reinmax_protocol.py` has of estimators that were trained as long, each with its own settings."""
    path = places.results / "reinmax_protocol.csv"
    if not path.exists():
        return pd.DataFrame()
    table = pd.read_csv(path)
    table = table[(table["size"] == size) & (table["epoch"] <= epochs)]
    reached = table.groupby(["estimator", "seed"])["epoch"].transform("max") == epochs
    return table[reached].assign(epochs=epochs, estimator=lambda rows: rows["estimator"] + " alone")


def report(table: pd.DataFrame) -> pd.DataFrame:
    """Where each plan ends, -ELBO and -log p(x), means over seeds; and when it passes the best published figure."""
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
    """Seconds of training at the first evaluation with a test -ELBO of that level; NaN if there is none."""
    reached = curve[-curve["test_elbo"] <= level]
    return float(reached["seconds"].iloc[0]) if len(reached) else float("nan")


def at_equal_epochs(table: pd.DataFrame) -> pd.DataFrame:
    in_time = table[table["epoch"] <= table["epochs"]]
    return in_time.groupby(["estimator", "seed"], sort=False).tail(1).assign(budget="epochs")


def at_equal_seconds(table: pd.DataFrame, baseline: str) -> pd.DataFrame:
    """Each curve at the seconds that the baseline takes with that seed; a curve that ends before stays as it ended."""
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
def draw(table: pd.DataFrame) -> Figure:
    """Test -ELBO and -log p(x) against seconds of training; the dashed line is the best published.

    Both are means over seeds at each evaluation, the seconds as well as the nats; bands are standard errors of the
    latter.
    """
    size = table["size"].iloc[0]
    names = SHOWN if size == "8x4" else tuple(dict.fromkeys((*SHOWN, *NOT_SUMMABLE)))
    names = tuple(name for name in names if name in set(table["estimator"]))
    table = table[table["estimator"].isin(names)]
    figure = Figure(figsize=(11, 5.2))
    panels = figure.subplots(1, 2)
    values = ("test_elbo", "test_log_evidence")
    for name, color, marker in zip(names, PALETTE, MARKERS, strict=False):
        rows = table[table["estimator"] == name]
        mean = mean_and_error(rows, ["epoch"], [*values, "seconds"]).sort_values("epoch")
        look = {"color": color, "marker": marker, "ms": 4, "lw": 1.4, "label": f"{name} ({rows['seed'].nunique()})"}
        for axes, value in zip(panels, values, strict=True):
            draw_curve(axes, mean["seconds"], -mean[value], mean[f"{value}_se"], **look)
    if size == "8x4":
        panels[0].axhline(PUBLISHED["test"], color="#888888", ls="--", lw=1)
        note = panels[0].annotate(
            "best published, 160 epochs", (0.01, PUBLISHED["test"]), (0, 3), ("axes fraction", "data"), "offset points",
            **SMALL_PRINT,
        )  # fmt: skip
        note.set_in_layout(False)  # it may lie outside of the axes
    for axes, label in zip(panels, ("test −ELBO", f"test −{evidence_of(table)}"), strict=True):
        settled = -table.loc[table["epoch"] >= 5, list(values)].to_numpy()
        axes.set(xscale="log", xlabel="seconds of training, one core (means over seeds)")
        axes.set_title(f"{label}, nats per datum")
        axes.set_ylim(settled.min() - 1, np.quantile(settled, 0.95) + 1)
        log_axis(axes.xaxis)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=9)
    note = f"{size}; {settings_in_words(table)}; in brackets: seeds; bands: standard error over seeds"
    figure.suptitle(note, x=0.01, ha="left", **SMALL_PRINT)
    return figure


def settings_in_words(table: pd.DataFrame) -> str:
    """How the plans were trained, and how the single estimators, which have no learning rate in the table."""
    plans = f"one Adam at {table['learning_rate'].max():g}"
    single = table["estimator"].str.endswith(" alone").any()
    return f"alone: each with its own settings in the ReinMax protocol; others: {plans}" if single else plans


@in_house_style
def draw_ends(table: pd.DataFrame) -> Figure:
    """Where each plan ends, means over seeds with standard errors, the best ELBO at the top."""
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
