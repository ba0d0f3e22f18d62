"""Measure how long a training step takes, and where its time goes.

Question: how much faster is `make_step` than stock Pyro, `JitTrace_ELBO`, a hand-written PyTorch loop and a
hand-written jitted JAX step, and how close is it to the networks alone?

Command: `python experiments/speed.py step` (`--smoke` for tiny sizes, in seconds). It writes
`experiments/results/speed_step.json` and `docs/figures/step_time.png` and `.svg`. The JAX row needs the extra `bench`.

Cost: about five minutes on two cores; needs MNIST in torchvision's layout.

N = 20, K = 10, MLP 784-512-256-200 and back, B = 100, dynamically binarized MNIST with batches drawn beforehand; a
small model on the embedded digits; and an epoch with its data loading. Every contender takes the same batches, in short
blocks that alternate. Reported are the medians over blocks of the mean time per step. "As fit runs by default" is the
compiled step: for 100 epochs of this size, `fit` decides from the counted work to compile, if there is a compiler.

Found (2 cores of an Intel Xeon, torch 2.14.1; in brackets an AMD EPYC, earlier): 5.2 ms per step (6.5); stock Pyro
takes 2.5 (2.0) times as long, JitTrace_ELBO 1.8 (1.6), hand-written PyTorch 1.4 (1.3), JAX 1.09 (0.95), and the
networks alone with fused Adam 4.3 ms (5.6). Compiled, 4.6 ms (5.9). Adam's averages become denormal after some epochs,
which makes steps that do not prevent it 1.5 (stock Pyro) and 1.6 (hand-written PyTorch) times as long. The parts of a
step are measured in a separate round, in which the whole step is the sum of its parts.
"""

import json
import statistics
import time
import warnings
from collections.abc import Callable, Iterator
from itertools import cycle
from pathlib import Path
from typing import Any, NamedTuple

import pyro
import pyro.distributions as dist
import torch
import torch.nn.functional as F
from bench import MNIST_FOLDER, figures_folder, machine, results_of
from matplotlib.figure import Figure
from pyro.infer import SVI, JitTrace_ELBO, Trace_ELBO
from torch import Tensor, nn

from pyro_gvae import CategoricalVAE, estimator, load, make_step
from pyro_gvae.data.batches import epoch_batches
from pyro_gvae.data.dataset import Dataset
from pyro_gvae.jit.traced_elbo import TracedELBO
from pyro_gvae.report.style import INK, PALETTE, in_house_style, save_figure
from pyro_gvae.runs.files import write_json

TEMPERATURE = 2 / 3
LEARNING_RATE = 1e-3
Step = Callable[[Tensor], Any]


class Size(NamedTuple):
    """The model and the data of a measurement."""

    data: Dataset
    num_latents: int
    num_categories: int
    hidden: tuple[int, ...]
    batch_size: int

    @property
    def data_dim(self) -> int:
        return self.data.train.shape[1]

    def vae(self) -> CategoricalVAE:
        torch.manual_seed(0)
        return CategoricalVAE(
            self.data_dim,
            self.num_latents,
            self.num_categories,
            self.hidden,
            temperature=TEMPERATURE,
            prior_temperature=TEMPERATURE,
        )

    def batches(self, count: int) -> list[Tensor]:
        """Draw whole batches beforehand."""
        found: list[Tensor] = []
        for epoch in range(count):
            found += epoch_batches(self.data, self.batch_size, seed=0, epoch=epoch, drop_last=True)
            if len(found) >= count:
                break
        return found[:count]


class Protocol(NamedTuple):
    """Sizes and numbers of repetitions."""

    blocks: int
    steps: int  # of a block
    batches: int
    epochs: int
    late: int  # number of steps before the late ones


FULL = Protocol(blocks=60, steps=10, batches=200, epochs=3, late=1800)
SMOKE = Protocol(blocks=2, steps=1, batches=2, epochs=1, late=1)


def step(
    *,
    smoke: bool = False,
    mnist: Path = MNIST_FOLDER,
    results: Path | None = None,
    figures: Path | None = None,
) -> None:
    """Measure a training step and all its contenders.

    Args:
        smoke: use tiny sizes, to check that it works.
        mnist: the MNIST folder (torchvision's `root`).
        results: the JSON file to write, by default in experiments/results; in runs/experiments/smoke for a smoke run.
        figures: the folder for the chart, by default docs/figures; runs/experiments/smoke for a smoke run.
    """
    protocol = SMOKE if smoke else FULL
    digits = load("digits", binarize="threshold")
    small = Size(digits, 4, 8, (8, 8) if smoke else (128, 128), 64)
    large = small if smoke else Size(load("mnist", data_dir=mnist, binarize="dynamic"), 20, 10, (512, 256), 100)
    found: dict[str, Any] = {"machine": machine()}
    found["large"] = measured(large_contenders(large, compiled=not smoke), large, protocol)
    found["small"] = measured(small_contenders(small, compiled=not smoke), small, protocol)
    found["late"] = late(large, protocol)
    found["parts"] = parts(large, protocol)
    if not smoke:
        found["epoch"] = epochs(large, mnist, protocol)
    found["ratios"] = ratios(found)
    for name, row in found["ratios"].items():
        print(f"{name:60s} {row['found']:6.2f}   bar {row['bar']}")
    write_json(results or results_of("speed_step", smoke=smoke), found)
    draw(found["parts"], figures or figures_folder(smoke=smoke))


# The contenders: each is a function that takes one step on a batch x (B, D).


def ours(size: Size, *, compile: bool = False) -> Step:
    return make_step(size.vae(), estimator("gumbel-softmax", kl="relaxed"), lr=LEARNING_RATE, compile=compile)


class Stock(nn.Module):
    """The same model written with stock Pyro."""

    def __init__(self, size: Size, name: str) -> None:
        super().__init__()
        vae = size.vae()
        self.encoder, self.decoder = vae.encoder, vae.decoder
        self.name = name  # the contenders share Pyro's param store
        self.temperature = torch.tensor(TEMPERATURE)
        self.prior_logits = torch.zeros(size.num_latents, size.num_categories)

    def model(self, x: Tensor) -> None:
        pyro.module(f"{self.name} decoder", self.decoder)
        with pyro.plate("data", len(x)):
            prior = dist.RelaxedOneHotCategorical(self.temperature, logits=self.prior_logits)
            z = pyro.sample("z", prior.expand([len(x), len(self.prior_logits)]).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=self.decoder(z)).to_event(1), obs=x)

    def guide(self, x: Tensor) -> None:
        pyro.module(f"{self.name} encoder", self.encoder)
        with pyro.plate("data", len(x)):
            posterior = dist.RelaxedOneHotCategorical(self.temperature, logits=self.encoder(x))
            pyro.sample("z", posterior.to_event(1))


def stock(size: Size, elbo: Any, name: str) -> Step:
    program = Stock(size, name)
    step: Step = SVI(program.model, program.guide, pyro.optim.Adam({"lr": LEARNING_RATE}), elbo).step
    return step


def without_validation(run: Step) -> Step:
    def quiet(x: Tensor) -> Any:
        with pyro.validation_enabled(False), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # JitTrace_ELBO uses a deprecated tracer
            return run(x)

    return quiet


def hand_written(size: Size) -> Step:
    """Write a typical loop without Pyro: categorical KL, binary cross-entropy, Adam with default settings."""
    vae = size.vae()
    encoder, decoder = vae.encoder, vae.decoder
    optimizer = torch.optim.Adam([*encoder.parameters(), *decoder.parameters()], lr=LEARNING_RATE)
    log_prior = -torch.tensor(float(size.num_categories)).log()

    def step(x: Tensor) -> float:
        logits = encoder(x)
        z = F.gumbel_softmax(logits, tau=TEMPERATURE)
        reconstruction = F.binary_cross_entropy_with_logits(decoder(z), x, reduction="sum")
        log_q = F.log_softmax(logits, -1)
        loss = reconstruction + (log_q.exp() * (log_q - log_prior)).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.item()

    return step


def networks(size: Size, *, optimize: bool) -> Step:
    """Run the networks alone, forward and backward, with an arbitrary output gradient: a lower bound for any step."""
    vae = size.vae()
    optimizer = torch.optim.Adam(vae.parameters(), lr=LEARNING_RATE, fused=True)
    torch.manual_seed(0)
    gradient = torch.randn(size.batch_size, size.data_dim)

    def step(x: Tensor) -> None:
        optimizer.zero_grad()
        vae.decoder(vae.encoder(x)).backward(gradient)
        if optimize:
            optimizer.step()

    return step


def jax_step(size: Size) -> Step | None:
    """Write the step of `ours` by hand in JAX with optax, jitted as a whole; None if they are not installed."""
    try:
        import jax
        import jax.numpy as jnp
        import optax
    except ImportError:
        return None
    vae = size.vae()
    layers = [module for network in (vae.encoder, vae.decoder) for module in network if isinstance(module, nn.Linear)]
    params = [(jnp.asarray(m.weight.detach().numpy().T), jnp.asarray(m.bias.detach().numpy())) for m in layers]
    half, num_categories, t = len(layers) // 2, size.num_categories, TEMPERATURE
    optimizer = optax.adam(LEARNING_RATE)

    def mlp(params: Any, x: Any) -> Any:
        *hidden, (weight, bias) = params
        for w, b in hidden:
            x = jax.nn.relu(x @ w + b)
        return x @ weight + bias

    def log_density(logits: Any, y: Any) -> Any:  # up to a constant
        return jax.nn.log_softmax(logits - t * y, -1).sum()

    def loss(params: Any, key: Any, x: Any) -> Any:
        logits = mlp(params[:half], x).reshape(len(x), -1, num_categories)
        y = jax.nn.log_softmax((logits + jax.random.gumbel(key, logits.shape)) / t, -1)
        natural = mlp(params[half:], jnp.exp(y).reshape(len(x), -1))
        log_likelihood = (x * natural - jax.nn.softplus(natural)).sum()
        return log_density(logits, y) - log_density(jnp.zeros_like(logits), y) - log_likelihood

    @jax.jit
    def update(params: Any, state: Any, key: Any, x: Any) -> Any:
        key, used = jax.random.split(key)
        value, gradients = jax.value_and_grad(loss)(params, used, x)
        updates, state = optimizer.update(gradients, state)
        return optax.apply_updates(params, updates), state, key, value

    memory = [params, optimizer.init(params), jax.random.key(0)]
    converted: dict[int, Any] = {}

    def step(x: Tensor) -> None:
        if id(x) not in converted:  # JAX, too, gets batches that are drawn beforehand
            converted[id(x)] = jnp.asarray(x.numpy())
        *memory[:], value = update(*memory, converted[id(x)])
        value.block_until_ready()

    return step


def large_contenders(size: Size, *, compiled: bool) -> dict[str, Step]:
    found = {
        "ours": ours(size),
        "stock Pyro": stock(size, Trace_ELBO(), "stock"),
        "stock Pyro, validation off": without_validation(stock(size, Trace_ELBO(), "quiet")),
        "JitTrace_ELBO": without_validation(stock(size, JitTrace_ELBO(ignore_jit_warnings=True), "jit")),
        "stock Pyro with TracedELBO": stock(size, TracedELBO(Trace_ELBO()), "traced"),
        "hand-written PyTorch": hand_written(size),
        "hand-written JAX": jax_step(size),
        "networks and fused Adam": networks(size, optimize=True),
        "ours, compiled": ours(size, compile=True) if compiled else None,
    }
    return {name: step for name, step in found.items() if step is not None}


def small_contenders(size: Size, *, compiled: bool) -> dict[str, Step]:
    found = {
        "ours": ours(size),
        "stock Pyro": stock(size, Trace_ELBO(), "small stock"),
        "stock Pyro, validation off": without_validation(stock(size, Trace_ELBO(), "small quiet")),
        "ours, compiled": ours(size, compile=True) if compiled else None,
    }
    return {name: step for name, step in found.items() if step is not None}


# Measurements.


def measured(contenders: dict[str, Step], size: Size, protocol: Protocol) -> dict[str, float]:
    """Measure milliseconds per step: medians over alternating blocks, each a mean of steps after an untimed one."""
    batches = size.batches(protocol.batches)
    streams: dict[str, Iterator[Tensor]] = {name: cycle(batches) for name in contenders}
    taken: dict[str, list[float]] = {name: [] for name in contenders}
    for name, run in contenders.items():
        for _ in range(3):
            run(next(streams[name]))  # record and compile
    for _ in range(protocol.blocks):
        for name, run in contenders.items():
            run(next(streams[name]))
            block = [next(streams[name]) for _ in range(protocol.steps)]
            start = time.perf_counter()
            for x in block:
                run(x)
            taken[name].append(1e3 * (time.perf_counter() - start) / protocol.steps)
    found = {name: statistics.median(times) for name, times in taken.items()}
    print(json.dumps(found), flush=True)
    return found


def late(size: Size, protocol: Protocol) -> dict[str, float]:
    """Measure milliseconds per step after some epochs, when Adam's averages are denormal unless that is prevented."""
    contenders = {
        "ours": ours(size),
        # With validation it fails sooner or later: the sum of a relaxed sample is off by more than torch's 1e-6.
        "stock Pyro": without_validation(stock(size, Trace_ELBO(), "late")),
        "hand-written": hand_written(size),
    }
    for run in contenders.values():
        for _, x in zip(range(protocol.late), cycle(size.batches(protocol.batches)), strict=False):
            run(x)
    return measured(contenders, size, protocol)


def parts(size: Size, protocol: Protocol) -> dict[str, dict[str, float]]:
    """Split the milliseconds of a step into parts, each the difference of two measured contenders."""
    program, vae = Stock(size, "parts"), size.vae()
    model, guide, elbo = estimator("gumbel-softmax", kl="relaxed").bind(vae)
    plain, traced_stock, traced = Trace_ELBO(), TracedELBO(Trace_ELBO()), TracedELBO(elbo)
    found = measured(
        {
            "networks": networks(size, optimize=False),
            "stock recorded": lambda x: traced_stock.outcome(program.model, program.guide, x),
            "stock gradients": without_validation(lambda x: plain.loss_and_grads(program.model, program.guide, x)),
            "stock step": without_validation(stock(size, Trace_ELBO(), "parts quiet")),
            "stock validated": stock(size, Trace_ELBO(), "parts stock"),
            "recorded": lambda x: traced.outcome(model, guide, x),
            "step": ours(size),
        },
        size,
        protocol,
    )
    return {
        "stock Pyro": {
            "networks": found["networks"],
            "samples and densities": found["stock recorded"] - found["networks"],
            "handlers and autograd": found["stock gradients"] - found["stock recorded"],
            "optimizer": found["stock step"] - found["stock gradients"],
            "validation": found["stock validated"] - found["stock step"],
        },
        "ours": {
            "networks": found["networks"],
            "samples and densities": found["recorded"] - found["networks"],
            "optimizer": found["step"] - found["recorded"],
        },
    }


def epochs(size: Size, mnist: Path, protocol: Protocol) -> dict[str, float]:
    """Measure the seconds of an epoch on grey MNIST including data loading: medians of alternating runs."""
    from torch.utils.data import DataLoader
    from torchvision.datasets import MNIST
    from torchvision.transforms import ToTensor

    loader = DataLoader(MNIST(str(mnist), transform=ToTensor()), batch_size=size.batch_size, shuffle=True)
    grey = load("mnist", data_dir=mnist)
    by_hand, recorded = hand_written(size), ours(size)
    taken: dict[str, list[float]] = {"DataLoader and hand-written PyTorch": [], "ours": []}
    for epoch in range(protocol.epochs):
        start = time.perf_counter()
        for images, _ in loader:
            by_hand(images.flatten(1))
        middle = time.perf_counter()
        for x in epoch_batches(grey, size.batch_size, seed=0, epoch=epoch):
            recorded(x)
        end = time.perf_counter()
        taken["DataLoader and hand-written PyTorch"].append(middle - start)
        taken["ours"].append(end - middle)
    return {name: statistics.median(seconds) for name, seconds in taken.items()}


def ratios(found: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Tabulate the measured ratios next to their goals."""
    large, small = found["large"], found["small"]
    rows = {
        f"{name} / ours": (large[name] / large["ours"], f"at least {bar}")
        for name, bar in {
            "stock Pyro": 1.9,
            "JitTrace_ELBO": 1.6,
            "hand-written PyTorch": 1.4,
        }.items()
        if name in large
    }
    by_default = large.get("ours, compiled", large["ours"])  # as `fit` does in a long run if it can compile
    if "hand-written JAX" in large:
        rows["hand-written JAX / ours, as fit runs by default"] = large["hand-written JAX"] / by_default, "at least 1.0"
    rows["ours / networks and fused Adam"] = large["ours"] / large["networks and fused Adam"], "at most 1.1"
    rows["small: stock Pyro / ours"] = small["stock Pyro"] / small["ours"], "at least 3"
    if "ours, compiled" in small:
        rows["small: stock Pyro / ours, compiled"] = small["stock Pyro"] / small["ours, compiled"], "at least 7"
    if "epoch" in found:
        theirs, our = found["epoch"].values()
        rows["epoch: DataLoader and hand-written PyTorch / ours"] = theirs / our, "at least 2"
    return {name: {"found": value, "bar": bar} for name, (value, bar) in rows.items()}


@in_house_style
def draw(found: dict[str, dict[str, float]], folder: Path) -> None:
    """Draw where the time of a step goes: a bar for each contender, split into labelled parts."""
    names = list(dict.fromkeys(part for row in found.values() for part in row))
    colors = dict(zip(names, PALETTE, strict=False))
    figure = Figure(figsize=(9, 2.8))
    axes = figure.subplots()
    for height, (contender, row) in enumerate(reversed(found.items())):
        left = 0.0
        for part, taken in row.items():
            width = max(taken, 0.0)  # a difference of two medians may be negative by chance
            axes.barh(height, width, left=left, color=colors[part], label=part if contender == "stock Pyro" else None)
            if width > 0.045 * sum(found["stock Pyro"].values()):
                axes.text(left + width / 2, height, f"{taken:.1f}", ha="center", va="center", color="white")
            left += width
        axes.text(left, height, f" {sum(row.values()):.1f} ms", va="center", color=INK)
    axes.set(
        yticks=range(len(found)),
        yticklabels=list(reversed(found)),
        xlabel="milliseconds a step, in a round of its own: not those of the table",
    )
    axes.set_title("Where the time of a training step goes")
    axes.grid(visible=False)
    axes.margins(x=0.1)
    figure.legend(loc="outside lower center", ncols=len(names))
    save_figure(figure, folder, "step_time")
