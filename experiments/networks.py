"""Measure the default widths of hidden layers on small tables, and convolutions on images.

Question: how far behind 128 units is the layer that the commands guess for a small table, and do convolutions learn
faster than multilayer perceptrons, by step or by time?

Command: `python experiments/networks.py` (`--smoke` for a tiny size, in seconds); `--problems` and `--seeds` make it
shorter, and finished cells are not run again. It writes `experiments/results/networks.csv`.

Cost: one core, three seeds: eight minutes.

The runs are those of `pyro-gvae train --dataset wine`, and of the other data sets, with its default learning rates and
batch sizes, soft samples or exact sums. Test ELBO and log p(x) are exact sums over the codes, in nats per datum, of at
most 1,000 test data.

Found: see `docs/howto/networks.md`.
"""

from dataclasses import replace
from functools import partial
from itertools import product
from typing import Annotated, NamedTuple

import pandas as pd
import tyro
from common import Places, Row, check_names, command, mean_and_error, run_cells, scores_on_test, train

from pyro_gvae import TrainConfig
from pyro_gvae.config.stages import Amount
from pyro_gvae.runs.tables import with_errors

NAME = "networks"
MOST_IMAGES = 1000


class Problem(NamedTuple):
    """A data set, an estimator, the networks by name, and the numbers of steps after which a run is scored."""

    dataset: str
    estimator: str
    networks: dict[str, TrainConfig]
    steps: tuple[int, ...]


_OF_128 = TrainConfig(hidden=(128,))
_WINE, _DIABETES = {"64": TrainConfig(), "128": _OF_128}, {"32": TrainConfig(), "128": _OF_128}
_IMAGES = {"MLP": TrainConfig(), "convolutions": replace(_OF_128, networks="conv")}
PROBLEMS = {
    "wine": Problem("wine", "gumbel-softmax", _WINE, (250, 500, 1000)),
    "diabetes": Problem("diabetes", "gumbel-softmax", _DIABETES, (250, 500, 1000)),
    "digits, soft samples": Problem("digits", "gumbel-softmax", _IMAGES, (500, 1500)),
    "digits, exact sums": Problem("digits", "exact", _IMAGES, (20, 200)),
    "mnist, soft samples": Problem("mnist", "gumbel-softmax", _IMAGES, (600, 1800)),
}


def main(
    places: Annotated[Places, tyro.conf.arg(name="")],
    *,
    problems: tuple[str, ...] = tuple(PROBLEMS),
    seeds: tuple[int, ...] = (0, 1, 2),
) -> pd.DataFrame:
    """Train each problem with each of its networks, and print scores and times.

    Args:
        places: where to read and write.
        problems: data and estimator.
        seeds: seeds of the initial weights, the order of the data and the samples.
    """
    if places.smoke:
        places, problems, seeds = places.apart(NAME), ("wine", "digits, exact sums"), (0,)
    check_names(problems, PROBLEMS)
    cells: list[Row] = [
        {"problem": problem, "estimator": name, "seed": seed}
        for problem, seed in product(problems, seeds)
        for name in PROBLEMS[problem].networks
    ]
    table = run_cells(NAME, cells, partial(measure, places=places), places)
    values = ["test_elbo", "test_log_evidence", "seconds"]
    shown = table[table["problem"].isin(problems)]
    found = mean_and_error(shown, ["problem", "estimator", "moment"], values)
    text = found[["problem", "estimator", "moment", "seeds"]].join(with_errors(found, values))
    print(text.to_string(index=False))
    return table


def measure(cell: Row, *, places: Places) -> list[Row]:
    """Train a cell and score it after the numbers of steps of its problem."""
    problem = PROBLEMS[cell["problem"]]
    steps = (2, 4) if places.smoke else problem.steps
    config = places.placed(problem.networks[cell["estimator"]], seed=cell["seed"], dataset=problem.dataset)
    config = replace(config, stages=f"{problem.estimator}:{steps[-1]}steps")
    config = replace(config, num_latents=2, num_categories=3) if places.smoke else config
    moments = [str(Amount.parse(f"{number}steps")) for number in steps]
    return train(config, moments, partial(scores_on_test, most=MOST_IMAGES), places.folder(NAME, cell))


if __name__ == "__main__":
    command(main)
