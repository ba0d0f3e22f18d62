"""Run the ReinMax benchmark for categorical VAEs, and add unpublished rows: exact sums, soft Gumbel-Softmax and others.

Question: does each estimator learn as its authors report (Liu et al. 2023, arXiv 2304.08612; Wang and Bui 2026, arXiv
2603.08257), and how do exact enumeration and soft Gumbel-Softmax compare in their protocol?

Command: `python experiments/reinmax_protocol.py --size 8x4 --epochs 20 --seeds 0 1 2` (`--smoke` for a tiny size, in
seconds). A later call with more epochs continues where this one stopped; full length is `--epochs 160` and ten seeds.
It writes `experiments/results/reinmax_protocol.csv` and `docs/figures/reinmax_protocol_SIZE.png` and `.svg`.

Cost: two cores, 8x4: an epoch takes 4 to 8 seconds for most estimators, about a minute for the exact ones, and half a
minute for `gumbel-rao`; an evaluation takes 10 seconds. 20 epochs of all 20 rows: about two hours per seed; of the five
published ones and soft Gumbel-Softmax: half an hour. One core, another size, five epochs: one to two minutes per row,
three for the Rao-Blackwellized ones at 10x30; `local-expectation` 18 to 107 (on an older core). `--workers 2` runs two
cells at a time.

Encoder 784-512-256-NK and back, ReLU, grey MNIST, batches of 100, constant learning rate and temperature. Reported are,
as published, the train -ELBO, which is the mean of the 1-sample minibatch losses over the epoch, and the test -ELBO,
which is exact here where codes can be summed (theirs uses one sample per image, with the same expectation), and next to
it the exact -log p(x). The train figure of `gumbel-softmax` is no ELBO, and those of `vimco` and
`reweighted-wake-sleep` are other bounds. Settings are those of the published search; estimators outside of it use
ReinMax's optimizer and learning rate, except that `gumbel-softmax`, `rebar`, `relax`, `reinforce` and
`reinforce-baseline` use Adam 5e-4, and exact ones Adam 1e-3.

Found (8x4, 20 epochs, three seeds): four of the five published curves are reproduced within 0.5 nats; straight-through
is 7.2 +- 0.5 below its published test curve (docs/results/reinmax_protocol.md discusses why). Of the unpublished rows,
exact sums have the best test -ELBO, 127.8 +- 1.2, which is 5.2 +- 1.4 below ReinMax; `reweighted-wake-sleep` is 2.90 +-
0.54 below, `local-expectation` 1.83 +- 0.95, soft Gumbel-Softmax 1.53 +- 0.43. One of three runs of `reinforce-loo`
settles on 4.2 of 8 categories. Larger sizes (5 epochs, one seed): `local-expectation` has the best ELBO at all five (by
1.4 to 6.2 nats), but in the same seconds ReinMax would get further; of the others, soft samples are best at 4x24 and
64x8, ReinMax at 8x16, 16x12 and 10x30. Soft samples have a better log p(x) than ReinMax at all sizes.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, NamedTuple

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
from pyro_gvae.report.style import INK, MARKERS, PALETTE, SMALL_PRINT, in_house_style

NAME = "reinmax_protocol"
EPOCHS = (1, 5, 10, 20, 40, 80, 160)

#: Row -> stage, for estimators without published settings.
OTHERS = {
    "exact": "exact",
    "exact-evidence": "exact-evidence",
    "gumbel-softmax": "gumbel-softmax[kl=categorical,temperature=0.67]",
    "gumbel-softmax, relaxed KL": "gumbel-softmax[kl=relaxed]",  # temperatures 2/3 and 2/5: Maddison et al., K = 8
    "reinmax-rao": "reinmax-rao[temperature=1.0]",
    "decoupled-st-gumbel-softmax": "decoupled-st-gumbel-softmax[temperature=0.7]",
    "reinforce": "reinforce",
    "reinforce-baseline": "reinforce-baseline",
    "reinforce-loo": "reinforce-loo",
    "vimco": "vimco",
    "reweighted-wake-sleep": "reweighted-wake-sleep",
    "local-expectation": "local-expectation",
    "disarm-iw": "disarm-iw",
    "rebar": "rebar",
    "relax": "relax",
}
#: Row -> learning rate, for rows with Adam at every size; exact ones have that of `stages.py`, which reads them. RAdam,
#: which the search chose for ReinMax at five sizes, begins with five plain gradient steps. For `reinforce`, and for
#: control variates that are not learnt yet, such a step is hundreds of nats times the score, and leaves an encoder that
#: always chooses the same code.
WITH_ADAM = {
    "exact": 1e-3,
    "exact-evidence": 1e-3,
    "gumbel-softmax": 5e-4,
    "gumbel-softmax, relaxed KL": 5e-4,
    "reinforce": 5e-4,
    "reinforce-baseline": 5e-4,
    "rebar": 5e-4,
    "relax": 5e-4,
}
#: Rows that sum over all codes, which is feasible at this size only. DisARM needs two categories and fits no size.
ONLY_8X4 = {"exact", "exact-evidence"}
ESTIMATORS = (*SEARCHED, *OTHERS)
#: Rows whose learning curves are drawn: those with published curves, and those to compare them with.
CURVES = (
    "reinmax",
    "reinmax-rao",
    "gumbel-rao",
    "st-gumbel-softmax",
    "straight-through",
    "gumbel-softmax",
    "reinforce-loo",
    "local-expectation",
    "exact",
)
BROWN = "#7A4A1D"  # a ninth colour


class Curve(NamedTuple):
    """Published train and test -ELBO of one estimator at `EPOCHS`, means of ten seeds."""

    train: Sequence[float]
    test: Sequence[float]


#: Size -> estimator -> learning curve: averages of the raw logs of Wang and Bui 2026.
PUBLISHED = {
    "8x4": {
        "reinmax": Curve(
            (208.7, 150.8, 139.8, 133.4, 129.5, 126.7, 125.1), (188.1, 148.7, 139.0, 133.2, 129.8, 127.9, 127.3)
        ),
        "reinmax-rao": Curve(
            (207.9, 146.2, 138.0, 132.4, 129.0, 126.6, 125.3), (186.3, 144.1, 137.1, 132.1, 129.2, 127.5, 126.6)
        ),
        "gumbel-rao": Curve(
            (206.8, 144.1, 138.1, 133.6, 130.1, 127.5, 125.7), (180.1, 142.7, 137.4, 133.4, 130.4, 128.5, 127.6)
        ),
        "st-gumbel-softmax": Curve(
            (216.9, 149.6, 142.2, 137.2, 133.3, 130.1, 127.6), (191.3, 147.6, 141.4, 136.8, 133.2, 130.6, 128.7)
        ),
        "straight-through": Curve(
            (205.1, 152.2, 148.8, 146.6, 137.7, 136.5, 136.4), (181.1, 151.1, 148.2, 146.2, 137.6, 136.9, 137.0)
        ),
    },
    "10x30": {
        "reinmax": Curve(
            (244.0, 143.7, 125.8, 115.2, 106.8, 101.3, 98.5), (193.9, 139.4, 124.1, 114.6, 107.1, 102.6, 100.8)
        ),
        "st-gumbel-softmax": Curve(
            (244.0, 149.3, 130.4, 118.6, 109.2, 102.9, 99.8), (194.3, 145.8, 128.6, 117.8, 109.3, 103.8, 101.7)
        ),
    },
}
#: Estimator -> size -> train -ELBO after 160 epochs, where there is no curve in `PUBLISHED`.
PUBLISHED_TRAIN = {
    "straight-through": {"4x24": 112.21, "8x16": 113.32, "16x12": 113.31, "64x8": 113.97, "10x30": 136.73},
    "st-gumbel-softmax": {"4x24": 101.49, "8x16": 99.20, "16x12": 100.42, "64x8": 103.87},
    "gumbel-rao": {"4x24": 100.14, "8x16": 99.63, "16x12": 109.72, "64x8": 112.48, "10x30": 102.28},
    "gapped-straight-through": {
        "8x4": 128.31,
        "4x24": 101.64,
        "8x16": 98.31,
        "16x12": 98.37,
        "64x8": 102.41,
        "10x30": 98.66,
    },
    "reinmax": {"4x24": 99.88, "8x16": 97.80, "16x12": 97.98, "64x8": 101.09},
    "reinmax-rao": {"4x24": 100.41, "8x16": 98.03, "16x12": 97.62, "64x8": 100.24, "10x30": 98.61},
}
#: The same for the test -ELBO.
PUBLISHED_TEST = {"gapped-straight-through": {"8x4": 129.15}}


def main(
    places: Annotated[Places, tyro.conf.arg(name="")],
    *,
    size: str = "8x4",
    epochs: int = 20,
    seeds: tuple[int, ...] = (0,),
    estimators: tuple[str, ...] = ESTIMATORS,
) -> pd.DataFrame:
    """Train in the protocol and print each estimator's -ELBO beside the published one.

    Args:
        places: where to read and write.
        size: K x N: 8x4, 4x24, 8x16, 16x12, 64x8 or 10x30.
        epochs: number of epochs to train; published are 160.
        seeds: seeds of the initial weights, the order of the data and the samples.
        estimators: rows to train.
    """
    if places.smoke:
        places, size, epochs, seeds = places.apart(NAME), "8x4", 2, (0,)
        estimators = ("reinmax", "gumbel-softmax", "exact")
    check_names([size], SEARCHED["reinmax"])
    check_names(estimators, ESTIMATORS)
    moments = [str(epoch) for epoch in sorted({epoch for epoch in EPOCHS if epoch < epochs} | {epochs})]
    cells: list[Row] = [
        {"size": size, "estimator": name, "seed": seed, "moment": moments[-1]}
        for seed in seeds
        for name in estimators
        if size == "8x4" or name not in ONLY_8X4
    ]

    def measure(cell: Row) -> list[Row]:
        config = places.placed(configuration(cell["estimator"], size), seed=cell["seed"])
        key = {name: cell[name] for name in ("size", "estimator", "seed")}
        return train(tiny(config) if places.smoke else config, moments, scores_on_test, places.folder(NAME, key))

    table = run_cells(NAME, cells, measure, places)
    table = table[table["size"] == size]
    print(compared(table).to_string(index=False, float_format="{:.2f}".format, na_rep=""))
    losses = ["test -ELBO", "test -log p(x)"]
    better = table.assign(**{losses[0]: -table["test_elbo"], losses[1]: -table["test_log_evidence"]})
    print_paired(better, ["epoch"], losses, "reinmax")
    places.save(f"{NAME}_{size}", draw(table))
    return table


def configuration(estimator: str, size: str) -> TrainConfig:
    """Return the configuration of the protocol with a row's stage and optimizer."""
    if estimator in SEARCHED:
        return reinmax_protocol(estimator, size)
    base = replace(reinmax_protocol("reinmax", size), stages=f"{OTHERS[estimator]}:160")
    if estimator in WITH_ADAM:
        return replace(base, optimizer="Adam", learning_rate=WITH_ADAM[estimator])
    return base


def published(size: str, estimator: str, part: str, epoch: float) -> float | None:
    """Return the published -ELBO, or None."""
    curve = PUBLISHED.get(size, {}).get(estimator)
    if curve is not None:
        return getattr(curve, part)[EPOCHS.index(int(epoch))] if epoch in EPOCHS else None
    final = PUBLISHED_TRAIN if part == "train" else PUBLISHED_TEST
    return final.get(estimator, {}).get(size) if epoch == 160 else None


def compared(table: pd.DataFrame) -> pd.DataFrame:
    """Tabulate means over seeds by estimator and epoch (nats per datum, lower is better), and ours minus published."""
    losses = table.assign(train=-table["train_objective"], test=-table["test_elbo"], log_px=-table["test_log_evidence"])
    values = ["train", "test", "log_px", "seconds", "categories_used"]
    found = mean_and_error(losses, ["size", "estimator", "epoch"], values)
    for part in ("train", "test"):
        theirs = [
            published(size, name, part, epoch)
            for size, name, epoch in found[["size", "estimator", "epoch"]].itertuples(index=False)
        ]
        found[f"{part}_published"] = pd.Series(theirs, dtype=float)
        found[f"{part}_difference"] = found[part] - found[f"{part}_published"]
    found = found.drop(columns=["seconds_se", "categories_used_se"])
    return found.rename(columns={"log_px": "-log p(x)", "log_px_se": "-log p(x)_se"})


@in_house_style
def draw(table: pd.DataFrame) -> Figure:
    """Draw test -ELBO against epochs and seconds (left), and all estimators at the last epoch in common (right).

    Means over seeds with standard errors. A curve averages only the seeds that were trained to its end, since it would
    jump where the set of seeds changes; its seconds are means too. Published values are dashed lines and crosses.
    """
    size, present = table["size"].iloc[0], set(table["estimator"])
    ends = at_last_common_epoch(table)
    figure = Figure(figsize=(13, max(6.5, 2.0 + 0.27 * len(present))))
    panels = figure.subplot_mosaic([["epoch", "ends"], ["seconds", "ends"]], width_ratios=(1, 1.05))
    names = [name for name in CURVES if name in present]
    for name, color, marker in zip(names, (*PALETTE, BROWN), (*MARKERS, "<"), strict=False):
        curve = settled(table[table["estimator"] == name])
        label = f"{name} ({curve['seeds'].iloc[0]})"
        for clock in ("epoch", "seconds"):
            look = {"color": color, "marker": marker, "ms": 4, "lw": 1.6, "label": label}
            draw_curve(panels[clock], curve[clock], -curve["test_elbo"], curve["test_elbo_se"], **look)
        theirs = [(epoch, published(size, name, "test", epoch)) for epoch in curve["epoch"]]
        known = [point for point in theirs if point[1] is not None]
        if len(known) > 1:
            panels["epoch"].plot(*zip(*known, strict=True), ls="--", lw=1.1, color=color)
    for clock, label in {"epoch": "epochs", "seconds": "seconds of training (means over seeds)"}.items():
        panels[clock].set(xscale="log", xlabel=label, ylabel="test −ELBO, nats per datum")
        log_axis(panels[clock].xaxis)
        means = np.concatenate([line.get_ydata() for line in panels[clock].lines] or [[0.0]])
        panels[clock].set_ylim(means.min() - 1, means.max() + 1)  # leave out bands, which may be wide
    panels["epoch"].set_title(f"ReinMax protocol, {size.replace('x', ' categories x ')} latents")
    found = draw_dots(panels["ends"], ends)
    [last] = ends["epoch"].unique()
    marks = found["estimator"].map(lambda name: published(size, name, "test", last)).dropna()
    if len(marks):
        panels["ends"].plot(marks, marks.index, "x", color=INK, ms=7, zorder=3, label="−ELBO, published")
        panels["ends"].set_xlim(right=max(panels["ends"].get_xlim()[1], marks.max() + 1))
    panels["ends"].set_xlabel(f"nats per datum on test images, epoch {last:g}")
    panels["ends"].legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=3, borderpad=0)
    figure.legend(*panels["epoch"].get_legend_handles_labels(), loc="outside lower left", ncols=4, fontsize=9)
    note = "in brackets: seeds; bands and bars: standard error over seeds"
    figure.supxlabel(f"{note}; dashed: published" if size in PUBLISHED else note, x=0.99, ha="right", **SMALL_PRINT)
    return figure


def at_last_common_epoch(table: pd.DataFrame) -> pd.DataFrame:
    """Return the rows at the last epoch that all estimators have reached."""
    epochs = table.groupby("estimator")["epoch"].agg(set)
    return table[table["epoch"] == max(set.intersection(*epochs))]


def settled(rows: pd.DataFrame) -> pd.DataFrame:
    """Average the seeds of one estimator that reached its last epoch; start at epoch 5 if the curve goes further."""
    last = rows["epoch"].max()
    whole = rows[rows.groupby("seed")["epoch"].transform("max") == last]
    return mean_and_error(whole[whole["epoch"] >= (5 if last > 5 else 0)], ["epoch"], ["test_elbo", "seconds"])


if __name__ == "__main__":
    command(main)
