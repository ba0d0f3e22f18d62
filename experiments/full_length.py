"""Train at the full length of the ReinMax benchmark, from soft samples to unbiased gradients.

Question: the published runs of this benchmark (Liu et al. 2023, arXiv 2304.08612; Wang and Bui 2026, arXiv 2603.08257)
train for 160 epochs with one estimator. Does a plan of three stages end below their best train -ELBO?

Command: `python experiments/full_length.py --seeds 0 1 2` (`--smoke` for a tiny size, in seconds); `--sizes` and
`--epochs` make it shorter, and finished cells are not run again. It writes `experiments/results/full_length.csv` and
`docs/figures/full_length.png` and `.svg`.

Cost: one core, 160 epochs, per seed: 40 minutes at 8x4, and half an hour for its second plan; half an hour at 10x30 and
16x12, 40 minutes at 8x16, and an hour at 64x8. Second plans take twice as long.

The protocol is that of `reinmax_protocol.py`, with one Adam at 5e-4 for all stages. First come 20 epochs of soft
samples: Gumbel-Softmax with the categorical KL at temperature 0.67. At 8x4 `reinforce-loo` follows, and three epochs of
exact sums come last. At the other sizes ReinMax follows, at the temperature that was searched for it, and one epoch of
`local-expectation`, which sums over one latent at a time, comes last. A second plan of these sizes has `reinforce-loo`
in place of ReinMax. In a third one ReinMax takes the last epoch, too, at a tenth of the learning rate: it shows how
much of what the last epoch gains is due to less noise, and not to less bias. A second plan at 8x4, "soft, 3 exact",
uses soft samples until three epochs before the end, and Adam at 1e-3, as in `stages.py`. The train -ELBO is the mean
loss over the last epoch, as published. The test -ELBO is exact at 8x4, and at the other sizes a mean over 100 samples
per image; -log p(x) is exact at 8x4, and elsewhere an upper bound by the same samples.

Found: see `docs/results/full_length.md`.
"""

from dataclasses import replace
from functools import partial
from itertools import product
from typing import Annotated

import numpy as np
import pandas as pd
import tyro
from common import Places, Row, check_names, command, mean_and_error, run_cells, scores_on_test, tiny, train
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from reinmax_protocol import EPOCHS, PUBLISHED, SEARCHED, published

from pyro_gvae import TrainConfig
from pyro_gvae.config.presets import reinmax_protocol
from pyro_gvae.report.style import INK, MARKERS, PALETTE, SMALL_PRINT, in_house_style
from pyro_gvae.runs.tables import with_errors

NAME = "full_length"
SIZES = tuple(SEARCHED["reinmax"])
SUMMABLE = "8x4"
PUBLISHED_NAMES = (*SEARCHED, "reinmax-rao")
SOFT = "gumbel-softmax[kl=categorical,temperature=0.67]"
SUMMED, LONG = "soft, reinforce-loo, exact", "soft, 3 exact"
SAMPLED, UNBIASED = "soft, reinmax, local-expectation", "soft, reinforce-loo, local-expectation"
SLOWER = "soft, reinmax, slower reinmax"
STEPS_PER_EPOCH = 600
#: Plan -> stages in epochs, of which E is the total, and t the temperature that was searched; and the learning rate,
#: where L is the step at which the last epoch begins.
PLANS: dict[str, tuple[str, float | str]] = {
    SUMMED: (f"{SOFT}:20,reinforce-loo:{{E-23}},exact:3", 5e-4),
    LONG: (f"{SOFT}:{{E-3}},exact:3", 1e-3),
    SAMPLED: (f"{SOFT}:20,reinmax[temperature={{t}}]:{{E-21}},local-expectation:1", 5e-4),
    UNBIASED: (f"{SOFT}:20,reinforce-loo:{{E-21}},local-expectation:1", 5e-4),
    SLOWER: (
        f"{SOFT}:20,reinmax[temperature={{t}}]:{{E-21}},reinmax[temperature={{t}}]:1",
        "exponential:5e-4,1,5e-5,{L}",  # 5e-4 before step L, and 5e-5 from it on
    ),
}
FEWEST = 24  # an epoch of the second stage, between 20 soft epochs and three exact ones


def main(
    places: Annotated[Places, tyro.conf.arg(name="")],
    *,
    sizes: tuple[str, ...] = SIZES,
    epochs: int = 160,
    seeds: tuple[int, ...] = (0,),
    plans: tuple[str, ...] = (),
) -> pd.DataFrame:
    """Train at each size, and print the final scores beside the best published ones.

    Args:
        places: where to read and write.
        sizes: K x N: 8x4, 4x24, 8x16, 16x12, 64x8 or 10x30.
        epochs: total number of epochs, at least 24.
        seeds: seeds of the initial weights, the order of the data and the samples.
        plans: rows to train, by default all rows of the size.
    """
    if places.smoke:
        places, sizes, epochs, seeds = places.apart(NAME), (SUMMABLE,), FEWEST, (0,)
    if epochs < FEWEST:
        raise ValueError(f"Expected at least {FEWEST} epochs, 20 soft ones and four more, but found {epochs}.")
    check_names(sizes, SIZES)
    for size in sizes:
        check_names(plans, plans_of(size))
    cells: list[Row] = [
        {"size": size, "estimator": plan, "epochs": epochs, "seed": seed, "moment": str(epochs)}
        for size, seed in product(sizes, seeds)
        for plan in (plans or plans_of(size))
    ]
    table = run_cells(NAME, cells, partial(measure, places=places), places)
    table = table[table["epochs"] == epochs]
    print(report(table).to_string(index=False))
    places.save(NAME, draw(table))
    return table


def configuration(size: str, plan: str, epochs: int) -> TrainConfig:
    """Return the configuration of the protocol with a plan's stages."""
    temperature = SEARCHED["reinmax"][size].temperature
    stages, learning_rate = PLANS[plan]
    for name, text in {"E-3": epochs - 3, "E-23": epochs - 23, "E-21": epochs - 21, "t": temperature}.items():
        stages = stages.replace(f"{{{name}}}", str(text))
    if isinstance(learning_rate, str):
        learning_rate = learning_rate.replace("{L}", str(STEPS_PER_EPOCH * (epochs - 1)))
    base = reinmax_protocol("reinmax", size)
    return replace(base, stages=stages, optimizer="Adam", learning_rate=learning_rate)


def plans_of(size: str) -> tuple[str, ...]:
    return (SUMMED, LONG) if size == SUMMABLE else (SAMPLED, UNBIASED, SLOWER)


def measure(cell: Row, *, places: Places) -> list[Row]:
    """Train a cell; score it at the epochs of the published curves, and where its last stage begins."""
    config = places.placed(configuration(cell["size"], cell["estimator"], cell["epochs"]), seed=cell["seed"])
    before_last = sum(int(stage.amount.number) for stage in config.plan[:-1])
    moments = sorted({*(epoch for epoch in EPOCHS if epoch < before_last), before_last, cell["epochs"]})
    config = tiny(config) if places.smoke else config
    return train(config, [str(epoch) for epoch in moments], scores_on_test, places.folder(NAME, cell))


def best_published(size: str, part: str) -> tuple[str, float] | None:
    """Return the estimator with the lowest published -ELBO after 160 epochs, and that value, or None."""
    found = {name: published(size, name, part, 160) for name in PUBLISHED_NAMES}
    known = {name: value for name, value in found.items() if value is not None}
    return min(known.items(), key=lambda pair: pair[1]) if known else None


def report(table: pd.DataFrame) -> pd.DataFrame:
    """Tabulate final -ELBO and -log p(x), means over seeds, and the best published -ELBO after 160 epochs."""
    ends = table.groupby(["size", "estimator", "seed"], sort=False).tail(1)
    losses = ends.assign(
        train=-ends["train_objective"], test=-ends["test_elbo"], minus_log_px=-ends["test_log_evidence"]
    )
    values = ["train", "test", "minus_log_px", "seconds"]
    found = mean_and_error(losses, ["size", "estimator"], values)
    text = found[["size", "estimator", "seeds"]].join(with_errors(found, values))
    for part in ("train", "test"):
        best = [best_published(size, part) for size in found["size"]]
        text[f"best_published_{part}"] = ["" if one is None else f"{one[1]} ({one[0]})" for one in best]
    return text


@in_house_style
def draw(table: pd.DataFrame) -> Figure:
    """Draw the final train -ELBO at each size beside the published ones, and test -ELBO against epochs."""
    figure = Figure(figsize=(11, 5.6))
    ends, curves = figure.subplots(1, 2, width_ratios=(1.15, 1))
    draw_ends(ends, table)
    trained = set(zip(table["size"], table["estimator"], strict=True))
    shown = [(size, plan) for size in PUBLISHED for plan in plans_of(size) if (size, plan) in trained]
    for (size, plan), color, marker in zip(shown, PALETTE, MARKERS, strict=False):
        rows = table[(table["size"] == size) & (table["estimator"] == plan)]
        mean = mean_and_error(rows.assign(test=-rows["test_elbo"]), ["epoch"], ["test"])
        curves.plot(mean["epoch"], mean["test"], ls="-", marker=marker, ms=4, color=color, label=f"{size}: {plan}")
    for size, color in zip(PUBLISHED, (PALETTE[0], PALETTE[2]), strict=True):
        theirs = PUBLISHED[size]["reinmax"].test
        curves.plot(EPOCHS, theirs, "x--", ms=5, lw=1.1, color=color, label=f"{size}: ReinMax, published")
    lowest = np.nanmin(np.concatenate([line.get_ydata() for line in curves.lines]))
    curves.set(xscale="log", xlabel="epochs", title="test −ELBO, nats per datum", ylim=(lowest - 2, lowest + 60))
    curves.set_xticks(EPOCHS, [str(epoch) for epoch in EPOCHS])
    curves.minorticks_off()
    curves.legend(fontsize=8, loc="upper left", bbox_to_anchor=(0, -0.12))
    note = "in brackets: seeds; bars: standard error over seeds; other marks and dashed: published, means of ten seeds"
    figure.supxlabel(note, x=0.99, ha="right", **SMALL_PRINT)
    return figure


def draw_ends(axes: Axes, table: pd.DataFrame) -> None:
    """Draw the final train -ELBO of each size: that of its first plan, and those of the published estimators."""
    table = table[[plan == plans_of(size)[0] for size, plan in zip(table["size"], table["estimator"], strict=True)]]
    last = table.groupby(["size", "seed"], sort=False).tail(1)
    found = mean_and_error(last.assign(train=-last["train_objective"]), ["size"], ["train"])
    found = found.set_index("size").loc[[size for size in SIZES if size in set(found["size"])]]
    rows = np.arange(len(found))[::-1]
    names = [name for name in PUBLISHED_NAMES if published(SUMMABLE, name, "train", 160) is not None]
    for name, color, marker in zip(names, PALETTE[1:], MARKERS[1:], strict=False):
        theirs = [published(size, name, "train", 160) for size in found.index]
        axes.plot(theirs, rows, marker, color=color, ms=5, alpha=0.75, label=name)
    error = found["train_se"].fillna(0)
    axes.errorbar(
        found["train"], rows, xerr=error, fmt="D", color=INK, ms=7, zorder=3, label="ours: the first plan of the size"
    )
    axes.set_yticks(rows, [f"{size} ({seeds})" for size, seeds in found["seeds"].items()])
    axes.set(title="train −ELBO after 160 epochs, nats per datum", xlim=(None, 130), ylim=(-0.6, len(found) - 0.4))
    axes.grid(axis="y", lw=0.5, alpha=0.5)
    axes.legend(fontsize=8, loc="upper left", bbox_to_anchor=(0, -0.12), ncols=2)


if __name__ == "__main__":
    command(main)
