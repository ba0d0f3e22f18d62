"""Compare sampling without replacement with exact sums, in the protocol of its authors.

Question: Kool, van Hoof and Welling (2020, arXiv 2002.06043) train a VAE with N = 2 and N = 20 latents of 10 categories
by estimators that sample codes without replacement. Two latents have only 100 codes, which can be summed: how far is
each estimator from the exact sum, and is gradient noise the reason? And how do the estimators compare at N = 20, where
nothing can be summed?

Command: `python experiments/kool.py --seeds 0 1 2` (`--smoke` for a tiny size, in seconds); `--latents`, `--estimators`
and `--epochs` make it shorter. Finished cells are not run again, and a later call with more epochs continues where this
one stopped. It writes `experiments/results/kool.csv`, `docs/figures/kool.png` and `.svg`.

Cost: one core, 20 epochs, per row and seed, at N = 2: two minutes for exact sums and one sample, five for four samples,
ten for `local-expectation` and twenty for `top-c`.

Encoder 784-512-256-10 N and back with LeakyReLU of slope 0.01, MNIST binarized at a grey level of 0.5, batches of 200,
Adam 1e-3, no annealing, as published, with two differences: they train for 1,000 epochs, and keep the last 10,000
training images for validation. Estimators that sample take four codes, as published. Test -ELBO and -log p(x) are those
of the discrete model; at N = 20 they are estimated with 100 codes per image.

Found: see `docs/results/kool.md`.
"""

from dataclasses import replace
from functools import partial
from itertools import product
from typing import Annotated

import numpy as np
import pandas as pd
import torch
import tyro
from common import (
    Places,
    Row,
    check_names,
    command,
    dataset,
    draw_curve,
    log_axis,
    mean_and_error,
    print_paired,
    run_cells,
    scores_on_test,
    tiny,
    train,
)
from matplotlib.figure import Figure
from torch import nn

from pyro_gvae import CategoricalVAE, TrainConfig
from pyro_gvae.models.networks import mlp_decoder, mlp_encoder
from pyro_gvae.report.style import SMALL_PRINT, estimator_styles, in_house_style
from pyro_gvae.runs.tables import with_errors

NAME = "kool"
EXACT = "exact"
LOO = "reinforce-loo"
MOMENTS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)
#: Row -> stages, in epochs; E stands for the total number of epochs.
SAMPLED = {
    LOO: "reinforce-loo[num_particles=4]:{E}",
    "reinforce-wor": "reinforce-wor[num_particles=4]:{E}",
    "unordered-set": "unordered-set[num_particles=4]:{E}",
    "relax": "relax:{E}",
    "st-gumbel-softmax": "st-gumbel-softmax:{E}",
    "gumbel-softmax": "gumbel-softmax:{E}",
    "gumbel-softmax, relaxed KL": "gumbel-softmax[kl=relaxed]:{E}",
    "top-c": "top-c:{E}",
}
#: N -> rows.
ROWS = {
    2: {EXACT: "exact:{E}"} | SAMPLED | {"local-expectation": "local-expectation:{E}"},
    20: SAMPLED,
}
CONFIG = TrainConfig(
    dataset="mnist",
    binarize="threshold",
    num_categories=10,
    hidden=(512, 256),
    batch_size=200,
    learning_rate=1e-3,
)


def main(
    places: Annotated[Places, tyro.conf.arg(name="")],
    *,
    latents: tuple[int, ...] = tuple(ROWS),
    estimators: tuple[str, ...] = (),
    epochs: int = 20,
    seeds: tuple[int, ...] = (0,),
) -> pd.DataFrame:
    """Train each row, and print its final scores and their differences from `reinforce-loo`.

    Args:
        places: where to read and write.
        latents: numbers of latents N: 2 or 20.
        estimators: rows to train, by default all rows of each N.
        epochs: number of epochs to train; published are 1,000.
        seeds: seeds of the initial weights, the order of the data and the samples.
    """
    if places.smoke:
        places, latents, epochs, seeds, estimators = places.apart(NAME), (2,), 2, (0,), (LOO, EXACT)
    check_names([str(number) for number in latents], [str(number) for number in ROWS])
    for number in latents:
        check_names(estimators, ROWS[number])
    moments = [str(epoch) for epoch in sorted({epoch for epoch in MOMENTS if epoch < epochs} | {epochs})]
    cells: list[Row] = [
        {"latents": number, "estimator": name, "seed": seed, "moment": moments[-1]}
        for number, seed in product(latents, seeds)
        for name in (estimators or ROWS[number])
    ]
    table = run_cells(NAME, cells, partial(measure, moments=moments, places=places), places)
    table = table[table["latents"].isin(latents) & (table["epoch"] <= epochs)]
    ends = table[table["epoch"] == epochs]
    values = ["test_elbo", "test_log_evidence", "categories_used", "seconds"]
    found = mean_and_error(ends, ["latents", "estimator"], values)
    print(found[["latents", "estimator", "seeds"]].join(with_errors(found, values)).to_string(index=False))
    print_paired(ends, ["latents"], ["test_elbo", "test_log_evidence"], LOO)
    places.save(NAME, draw(table))
    return table


def measure(cell: Row, *, moments: list[str], places: Places) -> list[Row]:
    """Train a cell and score it at each moment."""
    stages = ROWS[cell["latents"]][cell["estimator"]].format(E=moments[-1])
    config = replace(places.placed(CONFIG, seed=cell["seed"]), num_latents=cell["latents"], stages=stages)
    config = tiny(config) if places.smoke else config
    key = {name: cell[name] for name in ("latents", "estimator", "seed")}
    return train(config, moments, scores_on_test, places.folder(NAME, key), vae=leaky_vae(config))


def leaky_vae(config: TrainConfig) -> CategoricalVAE:
    """Build the published networks; the seed sets the initial weights."""
    sizes, data_dim = (config.num_latents, config.num_categories), dataset(config).train.shape[1]
    with torch.random.fork_rng():
        torch.manual_seed(config.seed)
        encoder = mlp_encoder(data_dim, config.hidden, *sizes)
        decoder = mlp_decoder(*sizes, config.hidden[::-1], data_dim)
        vae = CategoricalVAE(data_dim, *sizes, encoder=leaky(encoder), decoder=leaky(decoder))
    return vae.to(config.device)


def leaky(network: nn.Sequential) -> nn.Sequential:
    """Return the same layers with LeakyReLU in place of ReLU."""
    return nn.Sequential(*(nn.LeakyReLU() if isinstance(layer, nn.ReLU) else layer for layer in network))


@in_house_style
def draw(table: pd.DataFrame) -> Figure:
    """Draw, for each N, the test -ELBO against epochs and against seconds; the line of exact sums is thick."""
    numbers = list(dict.fromkeys(table["latents"]))
    figure = Figure(figsize=(11, 4.8 * len(numbers)))
    styles = estimator_styles(list(dict.fromkeys(name for rows in ROWS.values() for name in rows)))
    for pair, number in zip(figure.subplots(len(numbers), 2, sharey="row", squeeze=False), numbers, strict=True):
        of_size = table[table["latents"] == number]
        names = [name for name in ROWS[number] if name in set(of_size["estimator"])]
        for name in names:
            color, marker = styles[name]
            rows = of_size[of_size["estimator"] == name]
            mean = mean_and_error(rows, ["epoch"], ["test_elbo", "seconds"]).sort_values("epoch")
            label = f"{name} ({rows['seed'].nunique()})"
            look = {"color": color, "marker": marker, "ms": 4, "lw": 2.8 if name == EXACT else 1.4, "label": label}
            for axes, clock in zip(pair, ("epoch", "seconds"), strict=True):
                draw_curve(axes, mean[clock], -mean["test_elbo"], mean["test_elbo_se"], **look)
        for axes, label in zip(pair, ("epochs", "seconds of training (means over seeds)"), strict=True):
            axes.set(xscale="log", xlabel=label)
            log_axis(axes.xaxis)
        losses = -of_size["test_elbo"]
        pair[0].set_ylim(losses.min() - 1, np.quantile(losses, 0.9) + 1)
        pair[0].set_ylabel("test −ELBO, nats per datum")
        pair[0].set_title(f"{number} latents × 10 categories", loc="left")
        pair[1].legend(fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
    note = "in brackets: seeds; bands: standard error over seeds"
    figure.supxlabel(note, x=0.99, ha="right", **SMALL_PRINT)
    return figure


if __name__ == "__main__":
    command(main)
