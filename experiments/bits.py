"""Measure what a soft start gains with 200 bits, in the benchmark by which unbiased estimators are compared.

Question: in the protocol of DisARM and RODEO (Dong et al. 2020, arXiv 2006.10680; Shi et al. 2022, arXiv 2202.09497),
which ELBO do unbiased estimators for bits reach in a given number of steps, and which if training starts with soft
(relaxed) bits?

Command: `python experiments/bits.py --seeds 0 1 2 --steps 10000` (`--smoke` for a tiny size, in seconds); `--plans`
selects rows. Finished cells are not run again; a call with more steps starts from scratch, since the soft part is a
share of all steps. It writes `experiments/results/bits.csv` and, for each number of steps,
`docs/figures/bits_STEPS.png` and `.svg`.

Cost: one core, 10,000 steps: two to six minutes per row and seed. Full length is `--steps 1000000`: three to ten hours.

200 bits, encoder 784-200-200-200 and decoder 200-200-200-784 with LeakyReLU of slope 0.3, uniform prior, MNIST
binarized anew for each batch, 50,000 training images (ours are chosen by a seed, theirs are the first), batches of 100,
Adam 1e-3. Reported are the train -ELBO with one sample per training image, as published, and the test -ELBO with ten.
Published after 10^6 steps, means of five seeds: DisARM 102.75 and double CV 102.14 with two evaluations of log p(x, z)
per step, ARMS 100.84 and RODEO 100.46 with three.

Found: see `docs/results/bits.md`.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Annotated

import pandas as pd
import torch
import tyro
from common import Places, Row, command, dataset
from matplotlib.figure import Figure
from plans import Schedule, draw_plans, run_plans, train_plan
from torch import nn

from pyro_gvae import Dataset, TrainConfig
from pyro_gvae.evaluate.importance import log_importance_weights
from pyro_gvae.models.bernoulli_vae import BernoulliVAE
from pyro_gvae.report.style import SMALL_PRINT

NAME = "bits"
BASELINE = "disarm"
SOFT = "gumbel-softmax[kl=categorical,temperature=0.5]"
#: Row -> stages; {all}, {half} and {rest} stand for numbers of steps.
PLANS = {
    BASELINE: "disarm:{all}steps",
    "double-cv": "double-cv:{all}steps",
    "arms": "arms:{all}steps",
    "reinforce-loo": "reinforce-loo[num_particles=2]:{all}steps",
    "soft": f"{SOFT}:{{all}}steps",
    "soft, then disarm": f"{SOFT}:{{half}}steps,disarm:{{rest}}steps",
    "soft, then arms": f"{SOFT}:{{half}}steps,arms:{{rest}}steps",
}
#: Train -ELBO of RODEO after 10^6 steps with three evaluations per step.
RODEO = 100.46
CONFIG = TrainConfig(
    dataset="mnist",
    binarize="dynamic",
    validation_share=1 / 6,
    model="bernoulli",
    num_latents=200,
    num_categories=2,
    hidden=(200, 200),
    batch_size=100,
    learning_rate=1e-3,
)


def main(
    places: Annotated[Places, tyro.conf.arg(name="")], schedule: Annotated[Schedule, tyro.conf.arg(name="")]
) -> pd.DataFrame:
    """Train each plan, and print its final scores and their differences from DisARM.

    Args:
        places: where to read and write.
        schedule: what to train, for how long and how often.
    """
    if places.smoke:
        places, schedule = places.apart(NAME), Schedule((BASELINE, "soft, then disarm"), steps=20)
    table = run_plans(
        NAME,
        PLANS,
        schedule,
        partial(measure, places=places),
        places,
        ("train_elbo", "test_elbo"),
    )
    places.save(f"{NAME}_{table['steps'].iloc[0]}", draw(table))
    return table


def measure(cell: Row, *, places: Places) -> list[Row]:
    """Train a cell and score it at given fractions of its training."""
    config = places.placed(CONFIG, seed=cell["seed"])
    if places.smoke:
        config = replace(config, dataset="digits", hidden=(16, 16), num_latents=6)
    stages, folder = PLANS[cell["estimator"]], places.folder(NAME, cell)
    return train_plan(cell, stages, config, leaky_vae(config), scores, folder)


def leaky_vae(config: TrainConfig) -> BernoulliVAE:
    """Build the published networks with the uniform prior; the seed sets the initial weights."""
    with torch.random.fork_rng():
        torch.manual_seed(config.seed)
        vae = BernoulliVAE(dataset(config).train.shape[1], config.num_latents, config.hidden)
    vae.encoder, vae.decoder = leaky(vae.encoder), leaky(vae.decoder)
    vae.prior_logits.requires_grad_(False)
    return vae.to(config.device)


def leaky(layers: Sequence[nn.Module]) -> nn.Sequential:
    """Return the same layers with LeakyReLU in place of ReLU."""
    return nn.Sequential(*(nn.LeakyReLU(0.3) if isinstance(layer, nn.ReLU) else layer for layer in layers))


def scores(vae: BernoulliVAE, data: Dataset) -> Row:
    """Compute ELBOs of the discrete model in nats per datum: one sample per train image, ten per test image."""
    train_elbo = log_importance_weights(vae, torch.bernoulli(data.train), 1).mean()
    test_elbo = log_importance_weights(vae, data.test, 10).mean()
    return {"train_elbo": train_elbo.item(), "test_elbo": test_elbo.item()}


def draw(table: pd.DataFrame) -> Figure:
    """Draw the train -ELBO of the plans, and the best published one."""
    figure = draw_plans(table, list(PLANS), "train_elbo", "train −ELBO, nats per datum")
    for axes in figure.axes:
        axes.axhline(RODEO, color="#888888", ls="--", lw=1)
    note = figure.axes[0].annotate(
        "best published, 10⁶ steps", (0.01, RODEO), (0, 3), ("axes fraction", "data"), "offset points", **SMALL_PRINT
    )
    note.set_in_layout(False)
    return figure


if __name__ == "__main__":
    command(main)
