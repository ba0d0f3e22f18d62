"""Measure the gain, and the cost, of priors whose latents depend on each other.

Question: a prior of N independent latents gives poor samples and a poor ELBO. How much higher is log p(x) on test
images, and on test rows of a table, with each other prior, trained together with the rest of the model or fitted to the
codes of a model that is already trained?

Command: `python experiments/priors.py` (`--smoke` for a tiny size, in seconds); `--sizes`, `--priors` and `--seeds`
make it shorter, and finished cells are not run again. It writes `experiments/results/priors.csv` and
`docs/figures/priors.png` and `.svg`, and from the run folders of the first seed samples of MNIST, as
`priors_samples.png` and `.svg`.

Cost: one core, half an hour a seed for 8x4 and twenty minutes for 10x30 without the prior `transformer`; most of it is
the measurement. `transformer` takes minutes to fit afterwards, and much longer if it is trained together. The table
takes minutes.

The table is scikit-learn's breast_cancer: 569 rows of 30 columns. 8x4 is trained with soft samples and then exactly,
and log p(x) is a sum over all codes. 10x30 is trained by ReinMax with a sampled KL, which works with every prior; log
p(x) is a lower bound by importance sampling. 10x30 has no joint prior, since its 10^30 codes cannot be summed. Rows
`after` start from the model with the uniform prior and replace only the prior. The prior `autoregressive` is a masked
MLP; `transformer` is the same with a small causal transformer.

Found: see `docs/results/priors.md`.
"""

import copy
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from itertools import product
from typing import Annotated, Any, get_args

import numpy as np
import pandas as pd
import tyro
from common import (
    SETTINGS,
    Places,
    Row,
    check_names,
    command,
    dataset,
    mean_and_error,
    run_cells,
    scores_on_test,
    tiny,
    train,
)
from matplotlib.figure import Figure

from pyro_gvae import CategoricalVAE, Dataset, TrainConfig, load_run, sample
from pyro_gvae.config.models import INDEPENDENT
from pyro_gvae.config.names import DatasetName, PriorName
from pyro_gvae.models.priors import as_prior
from pyro_gvae.report.pictures import prior_samples
from pyro_gvae.report.style import PALETTE, in_house_style
from pyro_gvae.runs.tables import with_errors
from pyro_gvae.runtime.rng import own_randomness
from pyro_gvae.train.refit import fit_prior
from pyro_gvae.train.setup import initial_model

NAME = "priors"
UNIFORM = "uniform"
TOGETHER, AFTER = "together", "after"


#: Network, batch size and optimizer for the table, on whose few rows models soon overfit.
OF_TABLE: dict[str, Any] = {
    "hidden": (32,),
    "batch_size": 32,
    "learning_rate": 3e-3,
    "optimizer": "AdamW[weight_decay=0.1]",
}


def _config(dataset: DatasetName, num_categories: int, num_latents: int, stages: str) -> TrainConfig:
    sizes = {"num_categories": num_categories, "num_latents": num_latents}
    return TrainConfig(dataset=dataset, stages=stages, **sizes, **SETTINGS.get(dataset, OF_TABLE))


SIZES: dict[str, TrainConfig] = {
    "8x4": _config("mnist", 8, 4, "gumbel-softmax:10,exact:1"),
    "10x30": _config("mnist", 10, 30, "reinmax[kl=sampled]:10"),
    "table 8x4": _config("breast_cancer", 8, 4, "gumbel-softmax:40,exact:5"),
    "table 10x30": _config("breast_cancer", 10, 30, "reinmax[kl=sampled]:45"),
}
#: Name of a prior -> value of `--prior`, where they differ.
WITH_OPTIONS = {"transformer": "autoregressive[network=transformer]"}
NAMES: tuple[str, ...] = (*get_args(PriorName), *WITH_OPTIONS)
#: Epochs of fitting a prior to the codes of a trained model.
FITTED = 10
#: Size and prior of the models whose samples are drawn, and the number of samples of each.
SAMPLED = (("8x4", UNIFORM), ("10x30", UNIFORM), ("10x30", "tree"), ("10x30", "autoregressive"))
NUM_SAMPLES = 36


def main(
    places: Annotated[Places, tyro.conf.arg(name="")],
    *,
    sizes: tuple[str, ...] = tuple(SIZES),
    priors: tuple[str, ...] = NAMES,
    seeds: tuple[int, ...] = (0, 1, 2),
) -> pd.DataFrame:
    """Train each size with each prior; print test ELBO, log p(x) and seconds of training.

    Args:
        places: where to read and write.
        sizes: rows of `SIZES`.
        priors: names of priors; "uniform" also fits the other priors to the codes of its model.
        seeds: seeds of the initial weights, the order of the data and the samples.
    """
    if places.smoke:
        places, sizes, priors, seeds = places.apart(NAME), ("8x4",), (UNIFORM, "tree"), (0,)
    check_names(sizes, SIZES)
    check_names(priors, NAMES)
    cells: list[Row] = [
        {"size": size, "prior": prior, "way": TOGETHER, "seed": seed}
        for size, seed, prior in product(sizes, seeds, priors)
        if not (size.endswith("10x30") and prior == "joint")
    ]
    table = run_cells(NAME, cells, partial(measure, places=places), places)
    values = ["test_elbo", "test_log_evidence", "seconds"]
    found = mean_and_error(table, ["size", "prior", "way"], values)
    print(found[["size", "prior", "way", "seeds"]].join(with_errors(found, values)).to_string(index=False))
    places.save(NAME, draw(found))
    trained = [cell for cell in cells if cell["seed"] == seeds[0] and (cell["size"], cell["prior"]) in SAMPLED]
    if trained and all(places.folder(NAME, cell).exists() for cell in trained):  # run folders are not committed
        shown = {f"{cell['size']}, {cell['prior']}": samples_of(cell, places) for cell in trained}
        shape = dataset(config_of(trained[0], places)).image_shape
        places.save(f"{NAME}_samples", prior_samples(shown, shape))
    return table


def config_of(cell: Row, places: Places) -> TrainConfig:
    """Return the configuration of a cell."""
    config = SIZES[cell["size"]]
    if places.smoke:
        config = replace(tiny(config), stages="gumbel-softmax:1,exact:1")
    return places.placed(config, prior=WITH_OPTIONS.get(cell["prior"], cell["prior"]), seed=cell["seed"])


def samples_of(cell: Row, places: Places) -> dict[str, np.ndarray]:
    """Draw pixel means of codes from the prior of a trained cell."""
    config = config_of(cell, places)
    run = load_run(places.folder(NAME, cell), data_dir=places.mnist)
    vae = run.load_into(initial_model(config, dataset(config)))
    with own_randomness(cell["seed"]):
        return {"samples": sample(vae, NUM_SAMPLES).numpy()}


def measure(cell: Row, *, places: Places) -> list[Row]:
    """Train a cell and score it; for the uniform prior, also with other priors fitted to its codes."""
    config = config_of(cell, places)
    epochs = sum(int(stage.amount.number) for stage in config.plan)
    scored = scores_with_priors if cell["prior"] == UNIFORM else scores_on_test
    [row] = train(config, [str(epochs)], scored, places.folder(NAME, cell))
    fitted = {name: row.pop(name) for name in NAMES if name in row}
    rows = [row]
    for name, own in fitted.items():
        later = {"prior": name, "way": AFTER, "seconds": row["seconds"] + own.pop("fitted_seconds")}
        rows.append(row | own | later)
    return rows


def scores_with_priors(vae: CategoricalVAE, data: Dataset) -> Row:
    """Compute test scores; and, under the name of each other prior, those with that prior fitted to the codes."""
    found = scores_on_test(vae, data)
    for name in NAMES:
        if name in INDEPENDENT or (name == "joint" and vae.num_latents > 4):
            continue
        own = copy.deepcopy(vae)
        own.prior = as_prior(WITH_OPTIONS.get(name, name), vae.num_latents, vae.num_categories)
        start = time.perf_counter()
        fit_prior(own, data.train, epochs=FITTED)
        found[name] = {"fitted_seconds": time.perf_counter() - start} | scores_on_test(own, data)
    return found


@in_house_style
def draw(found: pd.DataFrame) -> Figure:
    """Draw -log p(x) of each prior, one panel for each size and data set."""
    sizes: Sequence[str] = list(dict.fromkeys(found["size"]))
    names = [name for name in NAMES if name in set(found["prior"])][::-1]
    rows_of_panels, columns = -(-len(sizes) // 2), min(2, len(sizes))
    figure = Figure(figsize=(5.2 * columns, 0.6 + (0.8 + 0.45 * len(names)) * rows_of_panels))
    panels = figure.subplots(rows_of_panels, columns, squeeze=False).flatten()
    for axes in panels[len(sizes) :]:
        axes.set_visible(False)
    for axes, size in zip(panels, sizes, strict=False):
        for way, color, marker in ((TOGETHER, PALETTE[0], "o"), (AFTER, PALETTE[1], "s")):
            rows = found[(found["size"] == size) & (found["way"] == way)]
            places = [names.index(name) for name in rows["prior"]]
            error = rows["test_log_evidence_se"].fillna(0)
            axes.errorbar(-rows["test_log_evidence"], places, xerr=error, fmt=marker, color=color, label=way)
        axes.set(title=size, xlabel="test −log p(x), nats per datum")
        axes.set_yticks(range(len(names)), names)
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return figure


if __name__ == "__main__":
    command(main)
