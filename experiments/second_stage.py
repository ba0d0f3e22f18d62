"""Compare estimators for a second stage, after a soft one, where there are too many codes to sum.

Question: after fifteen soft epochs at 8x16 and 10x30, does `top-c`, which sums over the 32 most probable codes of each
datum and samples the rest, lower the test -ELBO in fewer seconds than `local-expectation` and ReinMax?

Command: `OMP_NUM_THREADS=1 python experiments/second_stage.py --seeds 0 1 2` (`--smoke` for a tiny size, in seconds);
`--sizes` makes it shorter, and finished cells are not run again. It writes `experiments/results/second_stage.csv` and
`docs/figures/second_stage.png` and `.svg`.

Cost: one core, a quarter of an hour for each size and seed.

The ReinMax protocol (see `reinmax_protocol.py`) with a single Adam for both stages. All rows of a seed have the same
weights at the switch. The lengths of the second stages are chosen so that all take about the same time, some 150
seconds on one core. Each is scored at six moments; curves are interpolated linearly between them, at seconds since the
switch. The ELBO is that of the discrete model, with ten samples for each of the 10,000 test images.

Found (three seeds, commit f7707ae, alone on one core): `top-c` is ahead of `local-expectation` at every common second,
by 0.6 to 1.5 nats, and behind ReinMax from 30 seconds on (at 10x30 always): by 3.31 +- 0.15 and 3.38 +- 0.04 nats after
120 seconds. After 1,200 steps `top-c` has gained 5.3 and 5.7 nats, and ReinMax after 1,260 steps 3.0 and 3.9, but
ReinMax takes seven steps in the time of one.
"""

import math
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
    dataset,
    draw_curve,
    mean_and_error,
    print_paired,
    run_cells,
    tiny,
    train,
)
from matplotlib.figure import Figure

from pyro_gvae import CategoricalVAE, Dataset
from pyro_gvae.config.presets import SEARCHED, reinmax_protocol
from pyro_gvae.data.columns import num_data
from pyro_gvae.evaluate.importance import log_importance_weights
from pyro_gvae.report.style import MARKERS, PALETTE, SMALL_PRINT, in_house_style
from pyro_gvae.runs.tables import with_errors

NAME = "second_stage"
BASELINE = "top-c"
SOFT = "gumbel-softmax[kl=categorical,temperature=0.67]"
SOFT_EPOCHS = 15
LEARNING_RATES = {"8x16": 5e-4, "10x30": 1e-3}  # those of `stages.py`
#: Size -> estimator -> steps of the second stage; all take about the same time.
STEPS = {
    "8x16": {BASELINE: 2000, "local-expectation": 600, "reinmax": 12600},
    "10x30": {BASELINE: 2000, "local-expectation": 200, "reinmax": 12600},
}
#: Fractions of the second stage at which it is scored.
PARTS = (0.1, 0.2, 0.4, 0.6, 0.8, 1.0)
NUM_SAMPLES = 10
#: Seconds since the switch at which curves are compared.
COMMON = (15.0, 30.0, 60.0, 90.0, 120.0)


def main(
    places: Annotated[Places, tyro.conf.arg(name="")],
    *,
    sizes: tuple[str, ...] = tuple(STEPS),
    seeds: tuple[int, ...] = (0,),
) -> pd.DataFrame:
    """Train each second stage after the same soft one; print differences of the ELBO at equal seconds.

    Args:
        places: where to read and write.
        sizes: K x N: 8x16 or 10x30.
        seeds: seeds of the initial weights, the order of the data and the samples.
    """
    if places.smoke:
        places, sizes, seeds = places.apart(NAME), ("8x16",), (0,)
    check_names(sizes, STEPS)
    cells: list[Row] = [
        {"size": size, "estimator": name, "seed": seed, "moment": "1"}
        for size, seed in product(sizes, seeds)
        for name in STEPS[size]
    ]
    table = run_cells(NAME, cells, partial(measure, places=places), places)
    curves = since_the_switch(table)
    common = at_common_seconds(curves)
    means = mean_and_error(common, ["size", "at", "estimator"], ["test_elbo"])
    print(means[["size", "at", "estimator", "seeds"]].join(with_errors(means, ["test_elbo"])).to_string(index=False))
    print_paired(common, ["size", "at"], ["test_elbo"], BASELINE)
    places.save(NAME, draw(curves))
    return table


def measure(cell: Row, *, places: Places) -> list[Row]:
    """Train a cell and score it at the switch and at fractions of its second stage, which are its `moment`s."""
    size, name = cell["size"], cell["estimator"]
    soft, steps = (1, STEPS[size][name] // 100) if places.smoke else (SOFT_EPOCHS, STEPS[size][name])
    written = f"reinmax[temperature={SEARCHED['reinmax'][size].temperature}]" if name == "reinmax" else name
    config = replace(
        places.placed(reinmax_protocol("reinmax", size), seed=cell["seed"]),
        stages=f"{SOFT}:{soft},{written}:{steps}steps",
        optimizer="Adam",
        learning_rate=LEARNING_RATES[size],
    )
    config = tiny(config) if places.smoke else config
    switch = soft * -(-num_data(dataset(config).train) // config.batch_size)
    when = [f"{soft}", *(f"{switch + max(1, round(part * steps))}steps" for part in PARTS)]
    rows = train(config, when, sampled_scores, places.folder(NAME, cell))
    return [row | {"moment": f"{part:g}"} for part, row in zip((0, *PARTS), rows, strict=True)]


def sampled_scores(vae: CategoricalVAE, data: Dataset) -> Row:
    """Compute the discrete ELBO and a lower bound of log p(x) on test images from the same samples, nats per datum."""
    log_weights = log_importance_weights(vae, data.test, NUM_SAMPLES)
    bound = log_weights.logsumexp(0).mean().item() - math.log(NUM_SAMPLES)
    return {"test_elbo": log_weights.mean().item(), "test_bound": bound}


def since_the_switch(table: pd.DataFrame) -> pd.DataFrame:
    """Add the column `after`: seconds of training since the end of the soft stage."""
    switched = table.groupby(["size", "estimator", "seed"], sort=False)["seconds"].transform("first")
    return table.assign(after=table["seconds"] - switched)


def at_common_seconds(curves: pd.DataFrame) -> pd.DataFrame:
    """Interpolate each curve at `COMMON`, as far as it reaches."""
    rows = []
    for (size, name, seed), curve in curves.groupby(["size", "estimator", "seed"], sort=False):
        for at in COMMON:
            if at <= curve["after"].iloc[-1]:
                elbo = float(np.interp(at, curve["after"], curve["test_elbo"]))
                rows.append({"size": size, "at": at, "estimator": name, "seed": seed, "test_elbo": elbo})
    return pd.DataFrame(rows, columns=["size", "at", "estimator", "seed", "test_elbo"])


@in_house_style
def draw(curves: pd.DataFrame) -> Figure:
    """Draw test -ELBO against seconds since the switch, one panel per size: means over seeds with standard errors."""
    sizes = list(dict.fromkeys(curves["size"]))
    figure = Figure(figsize=(5.4 * len(sizes), 4.4))
    for axes, size in zip(figure.subplots(1, len(sizes), squeeze=False)[0], sizes, strict=True):
        of_size = curves[curves["size"] == size]
        for name, color, marker in zip(STEPS[size], PALETTE, MARKERS, strict=False):
            rows = of_size[of_size["estimator"] == name]
            mean = mean_and_error(rows, ["moment"], ["test_elbo", "after"])
            look = {"color": color, "marker": marker, "ms": 4, "lw": 1.5, "label": name}
            draw_curve(axes, mean["after"], -mean["test_elbo"], mean["test_elbo_se"], **look)
        title = f"{size.replace('x', ' categories × ')} latents ({of_size['seed'].nunique()} seeds)"
        axes.set(title=title, xlabel="seconds since the soft stage, one core")
    figure.axes[0].set_ylabel("test −ELBO, nats per datum")
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    figure.suptitle("means over seeds; bands: standard error", x=0.01, ha="left", **SMALL_PRINT)
    return figure


if __name__ == "__main__":
    command(main)
