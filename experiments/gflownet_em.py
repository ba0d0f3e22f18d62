"""Compare relaxed samples and sums of few codes where the literature has a GFlowNet: sixteen latents, convolutions.

Question: GFlowNet-EM (Hu et al. 2023, arXiv 2302.06576) trains a VAE of 16 latents with K = 4, 8 or 10 categories whose
posterior is sampled by a GFlowNet. The paper has no row for Gumbel-Softmax or for partial sums. Which log p(x) do they
reach with a guide of independent latents, and how wide is the interval that certainly contains it?

Command: `python experiments/gflownet_em.py --seeds 0 1 2` (`--smoke` for a tiny size, in seconds); `--categories`,
`--plans` and `--steps` make it shorter, and finished cells are not run again. It writes
`experiments/results/gflownet_em.csv` and, for each K, `docs/figures/gflownet_em_K.png` and `.svg`.

Cost: one core, 5,000 steps, of which a soft one takes 0.07 s: six to twelve minutes a row and seed, 45 for `top-c`,
and four minutes for its final scores.

MNIST, black where grey is at most 0.5, batches of 128, Adam 1e-3, convolutional networks. Differences from the paper:
the guide is independent, the networks are those of this package, and training is shorter, so compare rows with each
other only. During training the ELBO uses 100 samples of each of 1,000 test images. At the end, on 200 test images, log
p(x) is bounded with 5,000 importance samples per image, as in the paper, and the certified bounds sum over 4,096 codes.

Found: see `docs/results/gflownet_em.md`.
"""

from dataclasses import replace
from functools import partial
from typing import Annotated

import pandas as pd
import torch
import tyro
from common import Places, Row, check_names, command, dataset, scores_on_test, tiny
from plans import Schedule, draw_plans, run_plans, train_plan
from torch import Tensor

from pyro_gvae import CategoricalVAE, TrainConfig
from pyro_gvae.evaluate.certified import certified_bounds
from pyro_gvae.evaluate.importance import importance_weighted
from pyro_gvae.runtime.rng import own_randomness
from pyro_gvae.train.setup import initial_model

NAME = "gflownet_em"
BASELINE = "soft"
SOFT = "gumbel-softmax[kl=categorical,temperature=0.67]"
#: Row -> stages; {all}, {half} and {rest} are numbers of steps.
PLANS = {
    BASELINE: f"{SOFT}:{{all}}steps",
    "reinmax": "reinmax:{all}steps",
    "soft, then reinforce-loo": f"{SOFT}:{{half}}steps,reinforce-loo:{{rest}}steps",
    "soft, then top-c": f"{SOFT}:{{half}}steps,top-c:{{rest}}steps",
    "soft, then vimco": f"{SOFT}:{{half}}steps,vimco:{{rest}}steps",
}
CATEGORIES = (4, 8, 10)
MOST_IMAGES = 1000
NUM_IMAGES, NUM_SAMPLES, NUM_CODES = 200, 5000, 4096
CONFIG = TrainConfig(
    dataset="mnist",
    binarize="threshold",
    num_latents=16,
    networks="conv",
    hidden=(128,),
    batch_size=128,
    learning_rate=1e-3,
)


def main(
    places: Annotated[Places, tyro.conf.arg(name="")],
    schedule: Annotated[Schedule, tyro.conf.arg(name="")],
    *,
    categories: tuple[int, ...] = CATEGORIES,
) -> pd.DataFrame:
    """Train each plan, and print where it ends and how far it is from soft samples alone.

    Args:
        places: where to read and write.
        schedule: what to train, for how long and how often.
        categories: values of K: 4, 8 or 10.
    """
    if places.smoke:
        places, categories, schedule = places.apart(NAME), (4,), Schedule((BASELINE, "soft, then top-c"), steps=20)
    check_names([str(number) for number in categories], [str(number) for number in CATEGORIES])
    tables = []
    for number in categories:
        table = run_plans(
            NAME,
            PLANS,
            schedule,
            partial(measure, places=places),
            places,
            ("test_bound", "test_elbo"),
            {"num_categories": number},
        )
        places.save(f"{NAME}_{number}", draw_plans(table, list(PLANS), "test_elbo", "test −ELBO, nats per datum"))
        tables.append(table)
    return pd.concat(tables)


def measure(cell: Row, *, places: Places) -> list[Row]:
    """Train a cell and score it at given fractions of its training."""
    config = replace(places.placed(CONFIG, seed=cell["seed"]), num_categories=cell["num_categories"])
    config = tiny(config) if places.smoke else config
    vae = initial_model(config, dataset(config))
    judge = partial(scores_on_test, most=20 if places.smoke else MOST_IMAGES)
    rows = train_plan(cell, PLANS[cell["estimator"]], config, vae, judge, places.folder(NAME, cell))
    rows[-1] |= final_scores(vae, dataset(config).test, few=places.smoke)
    return rows


@torch.no_grad()
def final_scores(vae: CategoricalVAE, test: Tensor, *, few: bool) -> Row:
    """Compute the ELBO and bounds of log p(x), sampled and certified, of the first test images, in nats per datum."""
    x = test[: 5 if few else NUM_IMAGES]
    with own_randomness(0):
        sampled = importance_weighted(vae, x, 10 if few else NUM_SAMPLES)
        certified = certified_bounds(vae, x, 16 if few else NUM_CODES)
    upper = float("nan") if certified.upper is None else certified.upper.mean().item()
    return {
        "test_bound": sampled.bound.mean().item(),
        "same_images_elbo": sampled.elbo.mean().item(),
        "certified_lower": certified.lower.mean().item(),
        "certified_upper": upper,
    }


if __name__ == "__main__":
    command(main)
