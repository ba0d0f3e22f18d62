"""Measure how many latents and categories a data set needs, and the sizes at which pruning ends.

Question: how does log p(x) of test images grow with the number of latents N and of categories K? And does a run that
starts large and prunes (`--prune`) end with a size and a log p(x) that one would choose from this grid?

Command: `python experiments/sizes.py` (`--smoke` for a tiny size, in seconds); `--datasets`, `--seeds` and `--epochs`
change its length, and finished cells are not run again. `--datasets mnist` also works. It writes
`experiments/results/sizes.csv`, and `docs/figures/sizes_DATASET.png` and `.svg`.

Cost: one core, digits with three seeds: about ten minutes.

All sizes have the same networks, and are trained with soft samples and the categorical KL for equally many epochs. No
size of the grid has more than 65,536 codes, so log p(x) is a sum over all of them. Runs that prune do so after a third
and two thirds of their epochs, with the default thresholds or a higher threshold of information.

Found: see `docs/results/sizes.md`.
"""

from functools import partial
from itertools import product
from typing import Annotated, Literal

import pandas as pd
import tyro
from common import SETTINGS, Places, Row, command, in_words, mean_and_error, run_cells, scores_on_test, tiny, train
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from pyro_gvae import CategoricalVAE, Dataset, TrainConfig
from pyro_gvae.report.style import PALETTE, SMALL_PRINT, in_house_style
from pyro_gvae.runs.tables import with_errors

NAME = "sizes"
CATEGORIES, LATENTS = (2, 4, 8, 16), (1, 2, 3, 4, 8)
MOST_CODES = 2**16
#: (K, N) at which runs with pruning start, and their thresholds: the default, and a higher one, in nats.
LARGE = (
    (4, 8, "information=0.01"),
    (4, 8, "information=0.5"),
    (16, 4, "information=0.01"),
    (16, 4, "information=1"),
)
NOT = "none"


def main(
    places: Annotated[Places, tyro.conf.arg(name="")],
    *,
    datasets: tuple[Literal["digits", "mnist"], ...] = ("digits",),
    epochs: int = 60,
    seeds: tuple[int, ...] = (0, 1, 2),
) -> pd.DataFrame:
    """Train each size, and large sizes with pruning; print test ELBO, log p(x) and the final sizes.

    Args:
        places: where to read and write.
        datasets: names of data sets.
        epochs: epochs of each run.
        seeds: seeds of the initial weights, the order of the data and the samples.
    """
    if places.smoke:
        places, datasets, epochs, seeds = places.apart(NAME), ("digits",), 2, (0,)
    sizes = [(k, n, NOT) for k, n in product(CATEGORIES, LATENTS) if k**n <= (4 if places.smoke else MOST_CODES)]
    sizes += [(3, 2, "information=1e-6")] if places.smoke else LARGE
    cells: list[Row] = [
        {"dataset": name, "categories": k, "latents": n, "prune": prune, "epochs": epochs, "seed": seed}
        for name, seed, (k, n, prune) in product(datasets, seeds, sizes)
    ]
    table = run_cells(NAME, cells, partial(measure, places=places), places)
    for name in datasets:
        found = means(table[(table["dataset"] == name) & (table["epochs"] == epochs)])
        values = ["test_elbo", "test_log_evidence", "latents_left", "categories_left"]
        columns = ["categories", "latents", "prune", "seeds"]
        print(name, found[columns].join(with_errors(found, values)).to_string(index=False), sep="\n")
        places.save(f"{NAME}_{name}", draw(found))
    return table


def means(table: pd.DataFrame) -> pd.DataFrame:
    """Compute means over seeds and their standard errors."""
    values = ["test_elbo", "test_log_evidence", "latents_left", "categories_left"]
    return mean_and_error(table, ["categories", "latents", "prune"], values)


def measure(cell: Row, *, places: Places) -> list[Row]:
    """Train a size, and score it."""
    name = cell["dataset"]
    config = TrainConfig(dataset=name, stages=f"gumbel-softmax:{cell['epochs']}", **SETTINGS[name])
    if places.smoke:
        config = tiny(config)
    every = max(1, cell["epochs"] // 3)
    prune = None if cell["prune"] == NOT else f"{every}[{cell['prune']}]"
    sizes = {"num_categories": cell["categories"], "num_latents": cell["latents"]}
    config = places.placed(config, prune=prune, seed=cell["seed"], **sizes)
    return train(config, [str(cell["epochs"])], scored, places.folder(NAME, cell))


def scored(vae: CategoricalVAE, data: Dataset) -> Row:
    """Compute test scores, and the final numbers of latents and categories."""
    return scores_on_test(vae, data) | {"latents_left": vae.num_latents, "categories_left": vae.num_categories}


@in_house_style
def draw(found: pd.DataFrame) -> Figure:
    """Draw -log p(x) against N, one curve for each K; stars are the final sizes of runs that prune."""
    figure = Figure(figsize=(7, 4.2))
    axes = figure.subplots()
    grid, pruned = found[found["prune"] == NOT], found[found["prune"] != NOT]
    colors = dict(zip(grid["categories"].unique(), PALETTE, strict=False))
    for k, color in colors.items():
        rows = grid[grid["categories"] == k]
        error = rows["test_log_evidence_se"].fillna(0)
        axes.errorbar(rows["latents"], -rows["test_log_evidence"], yerr=error, fmt="o-", color=color, label=f"K = {k}")
    look: dict[str, object] = {"marker": "*", "s": 160, "zorder": 3, "edgecolor": "white", "linewidth": 0.8}
    for row in pruned.itertuples():
        place = row.latents_left, -row.test_log_evidence
        axes.scatter(*place, color=colors.get(row.categories, PALETTE[-1]), **look)
        offset, side = ((8, -2), "left") if row.latents_left < max(LATENTS) else ((-8, -10), "right")
        words = f"{row.prune.partition('=')[2]} nats"
        axes.annotate(words, place, offset, textcoords="offset points", ha=side, va="center", **SMALL_PRINT)
    axes.scatter([], [], color=SMALL_PRINT["color"], label="pruned, with threshold", **look)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set(xlabel="N, number of latents", ylabel="test −log p(x), nats per datum", title=in_words(found["seeds"]))
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=5)
    return figure


if __name__ == "__main__":
    command(main)
