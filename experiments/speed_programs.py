"""Measure the speed of exact steps of programs with several latents.

Question: how much faster than stock `TraceEnum_ELBO` is a training step with `exact` for M2, a Gaussian mixture, two
layers of two one-hots of 8 categories, and a hidden Markov model with 100 steps and 16 states? Does the memory of the
last grow linearly with the number of steps? And is an observation that is written with stock Pyro as fast as ours?

Command: `python experiments/speed.py programs` (`--smoke` for tiny sizes, in seconds). It writes
`experiments/results/speed_programs.json`.

Cost: about five minutes on two cores, most of them for the recordings of chains.

A step is loss, gradients and optimizer on B = 100 images of 784 pixels, or on 20 sequences of 88 bits per step. Ours is
`make_step` with one fused Adam. Stock is `SVI` with Pyro's own Adam and observation on the same networks; in the two
layers, each one-hot is a site. "Stock at its best" has our observation, and Pyro's validation switched off. Steps of
all are interleaved, and medians are reported. For programs without continuous latents, a check before the measurement
ensures that the losses agree to 1e-4.

Found: see `docs/results/speed_programs.md`.
"""

import json
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, final

import pyro
import pyro.distributions as dist
import torch
from bench import FULL_SIZE, SMOKE_SIZE, Size, in_a_process, machine, peak_bytes, results_of, seconds_of
from pyro.infer import SVI, TraceEnum_ELBO, config_enumerate
from speed_exact import interleaved
from speed_step import without_validation
from torch import Tensor

from pyro_gvae import estimator, make_step
from pyro_gvae.distributions.observations import Bernoulli, Gaussian
from pyro_gvae.elbos.exact import ExactELBO
from pyro_gvae.models.base import VAE
from pyro_gvae.models.gaussian_mixture_vae import GaussianMixtureVAE
from pyro_gvae.models.hidden_markov_model import HiddenMarkovModel
from pyro_gvae.models.hierarchical_categorical_vae import HierarchicalCategoricalVAE
from pyro_gvae.models.observations import Observation
from pyro_gvae.models.semi_supervised_vae import SemiSupervisedVAE
from pyro_gvae.runs.files import write_json
from pyro_gvae.runtime.memory import keep_freed_memory

COMMAND = "python experiments/speed.py programs"
Program = Callable[[Tensor], Any]


class Chain(NamedTuple):
    """Sizes of a hidden Markov model and its data."""

    num_states: int
    batch_size: int
    data_dim: int
    hidden: int

    def hmm(self, **named: str) -> HiddenMarkovModel:
        return HiddenMarkovModel(self.data_dim, self.num_states, self.hidden, **named)

    def x(self, num_steps: int) -> Tensor:
        torch.manual_seed(1)
        return torch.rand(self.batch_size, num_steps, self.data_dim).round()


class Protocol(NamedTuple):
    """Sizes and numbers of repetitions."""

    size: Size
    num_classes: int  # of M2 and of the mixture
    latent_dims: tuple[int, int]  # of M2, of the mixture
    layers: tuple[int, int]  # N, K
    chain: Chain
    num_steps: int  # T
    steps_of_memory: list[int]  # T
    observed: tuple[int, int]  # N, K
    blocks: int
    blocks_of_chain: int


FULL = Protocol(
    size=FULL_SIZE,
    num_classes=10,
    latent_dims=(50, 10),
    layers=(2, 8),
    chain=Chain(16, 20, 88, 64),
    num_steps=100,
    steps_of_memory=[25, 50, 100, 200],
    observed=(4, 6),
    blocks=15,
    blocks_of_chain=5,
)
SMOKE = Protocol(
    size=SMOKE_SIZE,
    num_classes=2,
    latent_dims=(3, 2),
    layers=(1, 2),
    chain=Chain(2, 3, 4, 5),
    num_steps=2,
    steps_of_memory=[2],
    observed=(2, 2),
    blocks=2,
    blocks_of_chain=1,
)


class Pair(NamedTuple):
    """A model and a guide for stock Pyro."""

    model: Program
    guide: Program


def programs(*, smoke: bool = False, results: Path | None = None) -> None:
    """Compare exact steps of programs with several latents with stock Pyro on the same programs.

    Args:
        smoke: run everything on tiny sizes.
        results: the JSON file to write, by default in experiments/results; in runs/experiments/smoke for a smoke run.
    """
    protocol = SMOKE if smoke else FULL
    found: dict[str, Any] = {"machine": machine(), "command": COMMAND, "programs": [], "memory": [], "observations": []}
    for row in rows(protocol):
        found["programs"].append(said(row))
    for num_steps in protocol.steps_of_memory:
        for method in ("ours", "stock"):
            base = {"method": method, "num_steps": num_steps}
            found["memory"].append(said(base | in_a_process(__file__, chain=protocol.chain, **base)))
    for name in OBSERVATIONS:
        found["observations"].append(said(observed(name, protocol)))
    write_json(results or results_of("speed_programs", smoke=smoke), found)


def said(row: dict[str, Any]) -> dict[str, Any]:
    """Print a row and return it."""
    print(json.dumps(row), flush=True)
    return row


# Programs.


def rows(protocol: Protocol) -> Iterator[dict[str, Any]]:
    """Yield a row for each program, with the goal for its ratio."""
    size, x, chain = protocol.size, protocol.size.x(), protocol.chain
    (m2_dim, mixture_dim), num_classes = protocol.latent_dims, protocol.num_classes

    def m2(**named: str) -> VAE:
        return SemiSupervisedVAE(size.data_dim, num_classes, m2_dim, size.hidden[:1], **named)

    def mixture(**named: str) -> VAE:
        return GaussianMixtureVAE(size.data_dim, num_classes, mixture_dim, size.hidden, **named)

    def layers(**named: str) -> VAE:
        return HierarchicalCategoricalVAE(size.data_dim, 2, *protocol.layers, size.hidden, **named)

    yield compare("M2", m2, enumerated_in_guide, x, protocol.blocks, goal=1.5)
    yield compare("Gaussian mixture", mixture, enumerated_in_guide, x, protocol.blocks)
    yield compare("two layers", layers, site_by_site, x, protocol.blocks, goal=1.0)
    sequences = chain.x(protocol.num_steps)
    yield compare("HMM", chain.hmm, enumerated_in_guide, sequences, protocol.blocks_of_chain, goal=1.0)


@final
class StockBernoulli(Observation):
    """Black-and-white pixels, as written with stock Pyro."""

    def forward(self, natural: Tensor) -> Any:
        return dist.Bernoulli(logits=natural).to_event(1)


def enumerated_in_guide(vae: VAE) -> Pair:
    """Return the same program with its discrete sites enumerated in parallel."""
    return Pair(vae.model, config_enumerate(vae.guide, "parallel"))


def site_by_site(vae: VAE) -> Pair:
    """Write the two layers with one site per one-hot, because stock Pyro cannot enumerate a site of several."""
    assert isinstance(vae, HierarchicalCategoricalVAE)

    def layer(name: str, logits: Tensor) -> Tensor:
        digits = [dist.OneHotCategorical(logits=logits[..., n, :]) for n in range(vae.num_latents)]
        sites = [pyro.sample(f"{name}_{n}", digit) for n, digit in enumerate(digits)]
        return torch.stack(torch.broadcast_tensors(*sites), -2)  # (.., N, K)

    def model(x: Tensor) -> None:
        pyro.module(vae.name, vae)
        with pyro.plate("data", len(x)):
            z = layer("z1", vae.down[0](layer("z2", vae.prior_logits)))
            pyro.sample("x", vae.observation(vae.decoder(z)), obs=x)

    def guide(x: Tensor) -> None:
        pyro.module(vae.name, vae)
        with pyro.plate("data", len(x)):
            layer("z2", vae.up[0](layer("z1", vae.encoder(x))))

    return Pair(model, config_enumerate(guide, "parallel"))


def our_step(vae: VAE) -> Program:
    step = make_step(vae, estimator("exact"), lr=1e-3)
    return lambda x: step(x).item()


def stock_step(pair: Pair) -> Program:
    step: Program = SVI(pair.model, pair.guide, pyro.optim.Adam({"lr": 1e-3}), TraceEnum_ELBO(max_plate_nesting=1)).step
    return step


def compare(
    name: str,
    make: Callable[..., VAE],
    as_stock: Callable[[VAE], Pair],
    x: Tensor,
    blocks: int,
    *,
    goal: float | None = None,
) -> dict[str, Any]:
    """Measure median milliseconds of a step of each method, which run in turn."""
    vaes = {}
    for of in ("ours", "stock", "stock at its best"):
        torch.manual_seed(0)
        vaes[of] = make(name=of)
    vaes["stock"].observation = StockBernoulli()
    stock, best = as_stock(vaes["stock"]), as_stock(vaes["stock at its best"])
    with pyro.get_param_store().scope():
        difference = None
        if not isinstance(vaes["ours"], SemiSupervisedVAE | GaussianMixtureVAE):  # their losses are random
            theirs = TraceEnum_ELBO(max_plate_nesting=1).loss(stock.model, stock.guide, x)
            difference = abs(ExactELBO().loss(vaes["ours"].model, vaes["ours"].guide, x) / theirs - 1)
            if difference > 1e-4:
                raise RuntimeError(f"Expected the same loss of '{name}' to 1e-4, but found {difference:.1e}.")
        steps = {
            "ours": our_step(vaes["ours"]),
            "stock": stock_step(stock),
            "stock at its best": without_validation(stock_step(best)),
        }
        seconds = interleaved({of: (partial(step, x), 1) for of, step in steps.items()}, blocks)
    return {
        "program": name,
        "milliseconds": {of: 1e3 * found for of, found in seconds.items()},
        "stock_over_ours": seconds["stock"] / seconds["ours"],
        "stock_at_its_best_over_ours": seconds["stock at its best"] / seconds["ours"],
        "goal": goal,
        "loss_difference": difference,
    }


# Memory of chains: each point has its own process, because its peak memory is measured.


def point(method: str, num_steps: int, chain: list[int]) -> dict[str, float]:
    """Measure the seconds of one step (the fastest of three), and the peak resident memory."""
    keep_freed_memory()
    sizes = Chain(*chain)
    hmm, x = sizes.hmm(), sizes.x(num_steps)
    before = peak_bytes()
    step = our_step(hmm) if method == "ours" else stock_step(enumerated_in_guide(hmm))
    seconds = min(seconds_of(lambda: step(x)) for _ in range(3))
    return {"seconds": seconds, "peak_bytes": peak_bytes(), "peak_bytes_before": before}


# Observations.

#: Our family and stock Pyro's, as functions of the decoder's output. We have no Poisson: it is compared with Bernoulli.
OBSERVATIONS: dict[str, tuple[Callable[[Tensor], Any], Callable[[Tensor], Any]]] = {
    "Bernoulli": (Bernoulli, lambda natural: dist.Bernoulli(logits=natural).to_event(1)),
    "Normal": (lambda natural: Gaussian(natural, 1.0), lambda natural: dist.Normal(natural, 1.0).to_event(1)),
    "Poisson": (Bernoulli, lambda natural: dist.Poisson(natural.exp()).to_event(1)),
}


def observed(name: str, protocol: Protocol) -> dict[str, Any]:
    """Measure median milliseconds of an exact gradient, with our family as the observation and with stock Pyro's."""
    num_latents, num_categories = protocol.observed
    vae, x, elbo = protocol.size.vae(num_latents, num_categories), protocol.size.x(), ExactELBO()

    def program(family: Callable[[Tensor], Any]) -> Callable[[], Any]:

        def model(x: Tensor) -> None:
            with pyro.plate("data", len(x)):
                prior = dist.OneHotCategorical(logits=torch.zeros(num_latents, num_categories))
                z = pyro.sample("z", prior.to_event(1))
                pyro.sample("x", family(vae.decoder(z)), obs=x)

        return lambda: elbo.loss_and_grads(model, vae.guide, x)

    ours, stock = map(program, OBSERVATIONS[name])
    with pyro.get_param_store().scope():
        seconds = interleaved({"ours": (ours, 1), "stock": (stock, 1)}, protocol.blocks)
    return {
        "observation": name,
        "ours": "Bernoulli" if name == "Poisson" else name,
        "ours_ms": 1e3 * seconds["ours"],
        "stock_ms": 1e3 * seconds["stock"],
        "stock_over_ours": seconds["stock"] / seconds["ours"],
        "goal": 1.1,
    }


if __name__ == "__main__":
    print(json.dumps(point(**json.loads(sys.argv[1]))))
