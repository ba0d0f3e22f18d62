"""Measure how misleading a relaxed training curve is.

Question: how does the difference between the loss that relaxed training reports and log p(x) of the discrete model
split into gaps (relaxation, amortization, mean field), during training and as a function of the temperature?

Command: `python experiments/bound_gaps.py` (`--smoke` for a tiny size, in seconds); `--dataset digits` is quick. It
writes `experiments/results/bound_gaps.csv`, `docs/figures/bound_gaps_DATASET.png` and `.svg`.

Cost: two cores, MNIST: two minutes for each relaxed cell and five for each exact one: an hour with three seeds, half of
that with `--workers 2`. The digits: ten minutes.

8 categories, 4 latents, so that everything can be summed; Adam. Relaxed training uses either the relaxed KL, whose loss
is a bound for a relaxed model (the prior's temperature is 3/5 of the guide's), or the categorical KL, whose loss is no
bound. `claim` is minus the loss on the test images, with 20 samples per image; the gaps are those of `pyro-gvae gaps`:

    relaxed bound -> ELBO of the guide -> ELBO of the best mean-field posterior -> log p(x)

Found (MNIST, 20 epochs, three seeds): the loss with the categorical KL claims 0.62 +- 0.05 nats (t = 0.2), 3.5 +- 0.1
(0.4), 19.0 +- 0.5 (0.67) and 47.9 +- 0.5 (1) more than the discrete ELBO of the model it trains; at t = 1 it claims
even 24.8 +- 0.7 more than log p(x). The relaxed bound is between 6.9 +- 0.2 below (t = 0.2) and 25.5 +- 0.2 above (t =
1) that ELBO. Digits, 100 epochs, three seeds: the categorical KL claims 0.51 +- 0.01 (t = 0.2) to 4.80 +- 0.08 (t = 1)
more; the relaxed bound is 2.2 to 4.5 below.
"""

from functools import partial
from itertools import product
from typing import Annotated, Literal

import pandas as pd
import tyro
from common import (
    SETTINGS,
    Places,
    Row,
    command,
    draw_curve,
    in_words,
    log_axis,
    mean_and_error,
    print_paired,
    run_cells,
    tiny,
    train,
)
from matplotlib.figure import Figure

from pyro_gvae import CategoricalVAE, Dataset, TrainConfig, estimator
from pyro_gvae.evaluate.gaps import gaps, summarize_gaps
from pyro_gvae.evaluate.metrics import own_objective
from pyro_gvae.report.style import PALETTE, SMALL_PRINT, in_house_style
from pyro_gvae.runs.tables import with_errors

NAME = "bound_gaps"
EPOCHS = (1, 2, 5, 10, 20, 50, 100)
#: Relaxed samples per datum.
NUM_PARTICLES = 20
#: Row -> estimator and options; the temperatures are the model's own.
ROWS = {
    "relaxed KL": ("gumbel-softmax", {"kl": "relaxed"}),
    "categorical KL": ("gumbel-softmax", {"kl": "categorical"}),
    "exact": ("exact", {}),
}
#: Lines in the figure: the gaps between the claim and log p(x).
SHOWN = {
    "lie": "claim − ELBO of the discrete model",
    "amortization_gap": "amortization gap",
    "mean_field_gap": "mean-field gap",
}


def main(
    places: Annotated[Places, tyro.conf.arg(name="")],
    *,
    dataset: Literal["mnist", "digits"] = "mnist",
    epochs: int = 20,
    seeds: tuple[int, ...] = (0, 1, 2),
    temperatures: tuple[float, ...] = (0.2, 0.4, 0.67, 1.0),
    exact_epochs: int = 5,
    num_test: int = 500,
) -> pd.DataFrame:
    """Train models, and measure the gaps during training.

    Args:
        places: where to read and write.
        dataset: the data set to train on.
        epochs: number of epochs of relaxed training.
        seeds: seeds of the initial weights, the order of the data and the samples.
        temperatures: temperatures of the relaxation.
        exact_epochs: number of epochs of exact training, which shows the gaps that do not come from relaxation.
        num_test: number of test images on which the gaps are measured.
    """
    if places.smoke:
        places, dataset, epochs, exact_epochs = places.apart(NAME), "digits", 2, 1
        seeds, temperatures, num_test = (0,), (0.4,), 20
    grid = [(row, heat) for row, heat in product(("relaxed KL", "categorical KL"), temperatures)] + [("exact", 0.0)]
    cells: list[Row] = [
        {"dataset": dataset, "estimator": row, "temperature": heat, "seed": seed, "moment": last}
        for seed, (row, heat) in product(seeds, grid)
        for last in [str(exact_epochs if row == "exact" else epochs)]
    ]
    table = run_cells(NAME, cells, partial(measure, places=places, num_test=num_test), places)
    table = table[table["dataset"] == dataset]
    values = ["claim", "relaxed_bound", "elbo", "mean_field_elbo", "log_evidence", "lie", "relaxation_gap"]
    found = mean_and_error(table, ["estimator", "temperature", "epoch"], values)
    print(found[["estimator", "temperature", "epoch", "seeds"]].join(with_errors(found, values)).to_string(index=False))
    last = table[table["moment"].astype(str) == str(epochs)]
    heats = last.assign(loss=last["estimator"], estimator="t = " + last["temperature"].astype(str))
    scores = ["lie", "elbo", "log_evidence"]
    print_paired(heats, ["epoch", "loss"], scores, f"t = {temperatures[0]}")
    places.save(f"{NAME}_{dataset}", draw(table))
    return table


def measure(cell: Row, *, places: Places, num_test: int) -> list[Row]:
    """Train a cell and decompose the claim of its loss at each moment."""
    last, heat = int(cell["moment"]), cell["temperature"]
    moments = [str(epoch) for epoch in sorted({epoch for epoch in EPOCHS if epoch < last} | {last})]
    name, options = ROWS[cell["estimator"]]
    brackets = f"[{','.join(f'{key}={value}' for key, value in options.items())}]" if options else ""
    config = places.placed(
        TrainConfig(dataset=cell["dataset"], stages=f"{name}{brackets}:1000", **SETTINGS[cell["dataset"]]),
        seed=cell["seed"],
        **({"temperature": heat, "prior_temperature": 0.6 * heat} if heat else {}),
    )
    decompose = partial(decomposed, row=cell["estimator"], num_test=num_test)
    key = {name: cell[name] for name in ("dataset", "estimator", "temperature", "seed")}
    return train(tiny(config) if places.smoke else config, moments, decompose, places.folder(NAME, key))


def decomposed(vae: CategoricalVAE, data: Dataset, *, row: str, num_test: int) -> Row:
    """Compute the claim, bounds and gaps on test images in nats per datum, with standard errors over data as `_se`."""
    x = data.test[:num_test]
    name, options = ROWS[row]
    chosen = estimator(name, **options)
    claim = sum(own_objective(vae, chosen, x) for _ in range(NUM_PARTICLES)) / NUM_PARTICLES
    found = summarize_gaps(gaps(vae, x, num_particles=NUM_PARTICLES))
    return {"claim": claim, "lie": claim - found["elbo"]} | {name: float(value) for name, value in found.items()}


@in_house_style
def draw(table: pd.DataFrame) -> Figure:
    """Draw claim, discrete ELBO and log p(x) during training (above) and the gaps (below), one column per temperature.

    Lines are means over seeds; bands are one standard error to either side.
    """
    heats = sorted(heat for heat in table["temperature"].unique() if heat > 0)
    figure = Figure(figsize=(max(9, 2.0 + 2.7 * len(heats)), 7.5))
    grid = figure.subplots(2, len(heats), sharey="row", squeeze=False)
    bounds = ["claim", "elbo", "log_evidence"]
    mean = mean_and_error(table, ["estimator", "temperature", "epoch"], [*bounds, *SHOWN]).sort_values("epoch")
    for (upper, lower), heat in zip(grid.T, heats, strict=True):
        for kl, color in zip(("relaxed KL", "categorical KL"), PALETTE, strict=False):
            curve = mean[(mean["estimator"] == kl) & (mean["temperature"] == heat)]
            for value, look in {"claim": "--", "elbo": "-", "log_evidence": ":"}.items():
                label = {"claim": "claim of the loss", "elbo": "discrete ELBO", "log_evidence": "log p(x)"}[value]
                named = {"color": color, "label": f"{kl}: {label}"}
                draw_curve(upper, curve["epoch"], curve[value], curve[f"{value}_se"], look, **named)
            for value, look in zip(SHOWN, ("-o", "-s", "-^"), strict=True):
                named = {"color": color, "ms": 4, "label": f"{kl}: {SHOWN[value]}"}
                draw_curve(lower, curve["epoch"], curve[value], curve[f"{value}_se"], look, **named)
        upper.set_title(f"temperature {heat:g} ({in_words(mean.loc[mean['temperature'] == heat, 'seeds'])})")
        lower.set_xlabel("epochs")
        lower.axhline(0, color="#888888", lw=0.8)
        for axes in (upper, lower):
            axes.set_xscale("log")
            log_axis(axes.xaxis)
    settled = mean.loc[mean["epoch"] >= 2, bounds].to_numpy()
    grid[0, 0].set_ylim(settled.min() - 2, settled.max() + 2)
    grid[0, 0].set_ylabel("test set, nats per datum")
    grid[1, 0].set_ylabel("gaps, nats per datum")
    lower_handles = grid[1, 0].get_legend_handles_labels()
    handles = [a + b for a, b in zip(grid[0, 0].get_legend_handles_labels(), lower_handles, strict=True)]
    figure.legend(*handles, loc="outside lower center", ncols=2, fontsize=8)
    note = "lines: means over seeds; bands: standard error over seeds"
    figure.supxlabel(note, x=0.99, ha="right", **SMALL_PRINT)
    return figure


if __name__ == "__main__":
    command(main)
