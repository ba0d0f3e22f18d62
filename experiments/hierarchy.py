"""Compare score functions with 50 particles, and a soft start, on three layers of bits written in plain Pyro.

Question: for a sigmoid belief network of three linear layers of 200 bits on binarized MNIST, the model on which OVIS
(Liévin et al. 2020, arXiv 2008.01998) is compared with VIMCO, which bound of log p(x) does each estimator reach in a
given number of steps and seconds, and does starting with soft bits help here as well?

Command: `python experiments/hierarchy.py --seeds 0 1 2 --steps 10000` (`--smoke` for a tiny size, in seconds);
`--plans` selects rows, and finished cells are not run again. It writes `experiments/results/hierarchy.csv` and,
for each number of steps, `docs/figures/hierarchy_STEPS.png` and `.svg`.

Cost: one core, 10,000 steps, per seed: thirteen minutes with 50 particles, one and a half for soft samples.

The program is a plain Pyro model and guide: layers of 200 bits with linear maps between them, the guide bottom-up, the
model top-down, MNIST binarized at a grey level of 0.5, batches of 24, Adam 3e-4, 50 particles. The published runs
binarize MNIST at random and train for millions of steps, so compare rows with each other, not with the published
values. The bound is that of the discrete model, with 200 samples for each of 2,000 test images; the ELBO uses the same
samples.

Found: see `docs/results/hierarchy.md`.
"""

import math
from dataclasses import replace
from functools import partial
from itertools import pairwise
from typing import Annotated, final

import pandas as pd
import pyro
import pyro.distributions as dist
import torch
import tyro
from common import Places, Row, command, dataset
from plans import Schedule, draw_plans, run_plans, train_plan
from torch import Tensor, nn

from pyro_gvae import Dataset, TrainConfig
from pyro_gvae.evaluate.importance import log_importance_weights

NAME = "hierarchy"
BASELINE = "vimco"
SOFT = "gumbel-softmax[kl=relaxed,temperature=0.5]"  # the categorical KL of the lower layers has no closed form
#: Row -> stages; {all}, {half} and {rest} stand for numbers of steps.
PLANS = {
    BASELINE: "vimco[num_particles=50]:{all}steps",
    "ovis": "ovis[num_particles=50]:{all}steps",
    "reinforce-loo": "reinforce-loo[num_particles=50]:{all}steps",
    "soft": f"{SOFT}:{{all}}steps",
    "soft, then vimco": f"{SOFT}:{{half}}steps,vimco[num_particles=50]:{{rest}}steps",
}
NUM_SAMPLES = 200
CONFIG = TrainConfig(dataset="mnist", binarize="threshold", batch_size=24, learning_rate=3e-4, judge="none")


@final
class SigmoidBeliefNetwork(nn.Module):
    """A Pyro model and guide of layers of bits with linear maps between them.

    Args:
        data_dim: D.
        num_bits: N, bits per layer.
        num_layers: L.
    """

    def __init__(self, data_dim: int, num_bits: int, num_layers: int) -> None:
        super().__init__()
        widths = [data_dim, *[num_bits] * num_layers]
        self.up = nn.ModuleList(nn.Linear(below, above) for below, above in pairwise(widths))
        self.down = nn.ModuleList(nn.Linear(above, below) for below, above in pairwise(widths))
        self.top = nn.Parameter(torch.zeros(num_bits))

    def model(self, x: Tensor) -> None:
        """p(z_L) ... p(z_1 | z_2) p(x | z_1) of images (B, D)."""
        pyro.module("network", self)
        with pyro.plate("data", len(x)):
            logits = self.top
            for layer in range(len(self.down), 0, -1):
                z = pyro.sample(f"z{layer}", dist.Bernoulli(logits=logits).to_event(1))
                logits = self.down[layer - 1](z)
            pyro.sample("x", dist.Bernoulli(logits=logits).to_event(1), obs=x)

    def guide(self, x: Tensor) -> None:
        """q(z_1 | x) ... q(z_L | z_{L-1}) of images (B, D)."""
        pyro.module("network", self)
        with pyro.plate("data", len(x)):
            z = x
            for layer, network in enumerate(self.up, 1):
                z = pyro.sample(f"z{layer}", dist.Bernoulli(logits=network(z)).to_event(1))


def main(
    places: Annotated[Places, tyro.conf.arg(name="")], schedule: Annotated[Schedule, tyro.conf.arg(name="")]
) -> pd.DataFrame:
    """Train each plan, and print its final scores and their differences from VIMCO.

    Args:
        places: where to read and write.
        schedule: what to train, for how long and how often.
    """
    if places.smoke:
        places, schedule = places.apart(NAME), Schedule((BASELINE, "soft, then vimco"), steps=20)
    table = run_plans(
        NAME,
        PLANS,
        schedule,
        partial(measure, places=places),
        places,
        ("test_bound", "test_elbo"),
    )
    label = f"−bound of log p(x)\nby {NUM_SAMPLES} samples, nats per datum"
    places.save(f"{NAME}_{table['steps'].iloc[0]}", draw_plans(table, list(PLANS), "test_bound", label))
    return table


def measure(cell: Row, *, places: Places) -> list[Row]:
    """Train a cell and score it at given fractions of its training."""
    config = places.placed(CONFIG, seed=cell["seed"])
    config = replace(config, dataset="digits") if places.smoke else config
    with torch.random.fork_rng():
        torch.manual_seed(cell["seed"])
        network = SigmoidBeliefNetwork(dataset(config).train.shape[1], 6 if places.smoke else 200, 3).to(config.device)
    judge = partial(scores, few=places.smoke)
    return train_plan(cell, PLANS[cell["estimator"]], config, network, judge, places.folder(NAME, cell))


def scores(network: SigmoidBeliefNetwork, data: Dataset, *, few: bool) -> Row:
    """Compute a lower bound of log p(x) and the ELBO on test images from the same samples, nats per datum."""
    number = 5 if few else NUM_SAMPLES
    log_weights = log_importance_weights(network, data.test[:2000], number)
    bound = log_weights.logsumexp(0).mean().item() - math.log(number)
    return {"test_bound": bound, "test_elbo": log_weights.mean().item()}


if __name__ == "__main__":
    command(main)
