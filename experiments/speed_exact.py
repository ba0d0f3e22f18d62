"""Measure the speed of the exact sum over all K^N codes, and its growth with the number of codes.

Question: how much faster than stock Pyro (N `OneHotCategorical` sites, parallel `TraceEnum_ELBO`) is a training step
with `exact`, what share of the rate of a plain matrix product does it reach, do time and memory grow with S = K^N as
promised, and does a step stay as fast while posteriors sharpen?

Command: `python experiments/speed.py exact` (`--smoke` for tiny sizes, in seconds). It writes
`experiments/results/speed_exact.json` and `docs/figures/exact_scaling.png` and `.svg`.

Cost: about ten minutes on two cores; 12 GB, which stock Pyro fills before it dies.

A step is loss, gradients and optimizer: MLP 784-512-256-NK and back, B = 100. Ours uses one fused Adam, stock Pyro its
own. Blocks of both are interleaved, and medians are reported. A check before the measurement ensures that both give the
same loss to 1e-5.

Found (two cores of an AMD EPYC; two of an Intel Xeon in brackets; torch 2.14.1):

- 8^4 codes: 38 (48) times as fast, where the goal was 70: the full rate of a plain product would give 48 (66). 10^3: 45
  (47) times. 10^2: 14 (17) times.
- 79 % (73 %) of the rate of a plain product at 8^4 codes, 82 % (70 %) at 8^5, 51 % (44 %) at 10^2.
- 2^20 codes: 36 s (17.7) and 1.3 GB; time per code grows by 15 % (2 %) from 2^14 on. Stock dies at 2^14 with 12 GB.
- 3000 steps on MNIST: the last ones take 0.31 (0.38) of the time of the first, because negligible codes are not
  decoded.
- The decoder's first layer takes 1.5 % of the arithmetic, so it does not treat codes differently from other inputs.
- On two cores of an Intel Xeon (`speed_exact_xeon.json`), before Bernoulli's log-normalizer was made cheap: 51, 39 and
  12 times as fast, 65 % and 68 % of the rate.
"""

import copy
import itertools
import json
import resource
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pyro
import pyro.distributions as dist
import torch
from bench import (
    FULL_SIZE,
    MNIST_FOLDER,
    SMOKE_SIZE,
    Size,
    figures_folder,
    in_a_process,
    machine,
    peak_bytes,
    results_of,
    seconds_of,
)
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from pyro.infer import SVI, TraceEnum_ELBO
from torch import Tensor

from pyro_gvae import exact as exact_sums
from pyro_gvae.elbos.exact import ExactELBO
from pyro_gvae.estimators import estimator
from pyro_gvae.models.categorical_vae import CategoricalVAE
from pyro_gvae.report.style import INK, PALETTE, in_house_style, save_figure
from pyro_gvae.runs.files import write_json
from pyro_gvae.runtime.memory import keep_freed_memory
from pyro_gvae.train.step import make_step

Step = Callable[[], float]


class Protocol(NamedTuple):
    """Sizes and numbers of repetitions."""

    size: Size
    compared: list[tuple[int, int, int]]  # K, N, blocks
    alone: list[tuple[int, int, int]]  # the same, without stock Pyro
    ours_scaled: list[int]  # N at K = 2
    stock_scaled: list[int]  # the same
    steps: int  # of the long run
    window: int  # of its first and last steps


FULL = Protocol(
    size=FULL_SIZE,
    compared=[(8, 4, 5), (10, 3, 9), (10, 2, 25)],
    alone=[(8, 5, 5)],
    ours_scaled=[6, 8, 10, 12, 14, 16, 18, 20],
    stock_scaled=[6, 8, 10, 11, 12, 13, 14],
    steps=3000,
    window=100,
)
SMOKE = Protocol(
    size=SMOKE_SIZE,
    compared=[(2, 3, 2)],
    alone=[(3, 2, 2)],
    ours_scaled=[3],
    stock_scaled=[2],
    steps=6,
    window=2,
)


def exact(
    smoke: bool = False,
    results: Path | None = None,
    figures: Path | None = None,
    mnist: Path = MNIST_FOLDER,
    memory_cap: float = 12e9,
) -> None:
    """Measure exact sums over all codes: speed against stock Pyro, growth with K^N, and a long run.

    Args:
        smoke: run everything on tiny sizes.
        results: the JSON file to write, by default in experiments/results; in runs/experiments/smoke for a smoke run.
        figures: the folder for the figure, by default docs/figures; runs/experiments/smoke for a smoke run.
        mnist: the MNIST folder for the long run, which uses the small digits if it does not exist.
        memory_cap: limit of the address space of stock Pyro, in bytes.
    """
    protocol = SMOKE if smoke else FULL
    found: dict[str, Any] = {"machine": machine(), "compared": [], "scaling": []}
    for num_categories, num_latents, blocks in protocol.compared + protocol.alone:
        with_stock = (num_categories, num_latents, blocks) in protocol.compared
        row = compare(protocol.size, num_categories, num_latents, blocks, with_stock=with_stock)
        found["compared"].append(row)
        print(json.dumps(row), flush=True)
    for method, latents in (("ours", protocol.ours_scaled), ("stock", protocol.stock_scaled)):
        for num_latents in latents:
            point = scaled(method, num_latents, protocol.size, memory_cap)
            found["scaling"].append(point)
            print(json.dumps(point), flush=True)
            if point["died"]:
                break
    found["linearity"] = linearity(found["scaling"])
    found["long_run"] = long_run(protocol, None if smoke else mnist)
    print(json.dumps({"linearity": found["linearity"], "long_run": found["long_run"]}), flush=True)
    write_json(results or results_of("speed_exact", smoke=smoke), found)
    draw(found["scaling"], figures or figures_folder(smoke=smoke))


# A step of ours and of stock Pyro.


def our_step(vae: CategoricalVAE, x: Tensor) -> Step:
    step = make_step(vae, estimator("exact"), lr=1e-3)
    return lambda: step(x).item()


def stock_svi(vae: CategoricalVAE) -> SVI:
    """Make stock Pyro's SVI for this model: N one-hot sites in a plate, enumerated in parallel in the guide."""

    def model(x: Tensor) -> None:
        pyro.module("decoder", vae.decoder)
        with pyro.plate("data", len(x)):
            prior = dist.OneHotCategorical(logits=torch.zeros(vae.num_categories))
            sites = [pyro.sample(f"z{n}", prior) for n in range(vae.num_latents)]
            z = torch.stack(torch.broadcast_tensors(*sites), -2)  # (..., N, K)
            pyro.sample("x", dist.Bernoulli(logits=vae.decoder(z)).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        pyro.module("encoder", vae.encoder)
        with pyro.plate("data", len(x)):
            logits = vae.encoder(x)  # (B, N, K)
            for n in range(vae.num_latents):
                site = dist.OneHotCategorical(logits=logits[:, n])
                pyro.sample(f"z{n}", site, infer={"enumerate": "parallel"})

    elbo = TraceEnum_ELBO(max_plate_nesting=1)
    return SVI(model, guide, pyro.optim.Adam({"lr": 1e-3}), elbo)


# Side by side.


def compare(size: Size, num_categories: int, num_latents: int, blocks: int, *, with_stock: bool) -> dict[str, Any]:
    """Compare a step of ours, of stock Pyro and a plain matrix product: median times over interleaved blocks."""
    vae, x = size.vae(num_latents, num_categories), size.x()
    num_codes = num_categories**num_latents
    left, right = torch.randn(min(num_codes, 4096), size.hidden[0]), torch.randn(size.hidden[0], size.data_dim)
    with pyro.get_param_store().scope():
        svi = stock_svi(copy.deepcopy(vae)) if with_stock else None
        ours = our_step(vae, x)
        if svi is not None:
            difference = abs(ExactELBO().loss(vae.model, vae.guide, x) / svi.evaluate_loss(x) - 1)
            if difference > 1e-5:
                raise RuntimeError(f"Expected the same loss to 1e-5, but found that they differ by {difference:.1e}.")
        jobs: dict[str, tuple[Callable[[], Any], int]] = {
            "ours": (ours, max(3, min(20, 20_000 // num_codes))),
            "product": (lambda: left @ right, 20),
        }
        if svi is not None:
            jobs["stock"] = (lambda: svi.step(x), 1)
        seconds = interleaved(jobs, blocks)
    rate = 2 * left.shape[0] * left.shape[1] * right.shape[1] / seconds["product"]
    flops = step_flops(size, num_codes, num_latents * num_categories)
    row = {
        "num_categories": num_categories,
        "num_latents": num_latents,
        "num_codes": num_codes,
        "ours_ms": 1e3 * seconds["ours"],
        "gflop": flops / 1e9,
        "product_gflop_per_second": rate / 1e9,
        "share_of_product_rate": flops / seconds["ours"] / rate,
    }
    if "stock" in seconds:
        row |= {"stock_ms": 1e3 * seconds["stock"], "stock_over_ours": seconds["stock"] / seconds["ours"]}
        row["loss_difference"] = difference
    return row


def interleaved(jobs: dict[str, tuple[Callable[[], Any], int]], blocks: int) -> dict[str, float]:
    """Return the median seconds of each job; the jobs run blocks of calls in turn."""
    taken: dict[str, list[float]] = {name: [] for name in jobs}
    for job, _ in jobs.values():
        job()  # the first calls allocate and compile
    for _ in range(blocks):
        for name, (job, calls) in jobs.items():
            for _ in range(calls):
                taken[name].append(seconds_of(job))
    return {name: statistics.median(found) for name, found in taken.items()}


def step_flops(size: Size, num_codes: int, code_dim: int) -> int:
    """Count the operations of a step: layers and two products with the data, per weight and row 2 forward, 4 backward.

    The first layers need no gradient with respect to their input.
    """

    def layers(widths: list[int], rows: int) -> int:
        weights = [a * b for a, b in itertools.pairwise(widths)]
        return rows * (6 * sum(weights) - 2 * weights[0])

    decoder = layers([code_dim, *size.hidden[::-1], size.data_dim], num_codes)
    encoder = layers([size.data_dim, *size.hidden, code_dim], size.batch_size)
    return decoder + encoder + 4 * num_codes * size.data_dim * size.batch_size


# Growth with S, at K = 2: each point has its own process, because its peak memory is measured.


def scaled(method: str, num_latents: int, size: Size, memory_cap: float) -> dict[str, Any]:
    base = {"method": method, "num_latents": num_latents, "num_codes": 2**num_latents}
    return base | in_a_process(__file__, method=method, num_latents=num_latents, size=size, memory_cap=memory_cap)


def point(method: str, num_latents: int, size: list[Any], memory_cap: float) -> dict[str, float]:
    """Measure the seconds of one gradient step (the fastest of a few if it is short), and the peak resident memory."""
    size_ = Size(size[0], tuple(size[1]), size[2])
    vae, x = size_.vae(num_latents, 2), size_.x()
    before = peak_bytes()
    if method == "stock":
        resource.setrlimit(resource.RLIMIT_AS, (int(memory_cap), int(memory_cap)))
        svi = stock_svi(vae)
        step: Callable[[], Any] = lambda: svi.step(x)  # noqa: E731
        planned = None
    else:
        keep_freed_memory()
        step = our_step(vae, x)
        planned = exact_sums.cost(vae, x)
    seconds = seconds_of(step)
    if seconds < 2:  # the first call of a short step is mostly preparation
        seconds = min(seconds_of(step) for _ in range(3))
    found = {"seconds": seconds, "peak_bytes": peak_bytes(), "peak_bytes_before": before}
    return found if planned is None else {**found, "planned_bytes": planned.bytes, "planned_seconds": planned.seconds}


def linearity(points: list[dict[str, Any]]) -> dict[str, float]:
    """Compute seconds per code at the largest S relative to 2^14 codes, or to the smallest S if all have fewer."""
    ours = [point for point in points if point["method"] == "ours"]
    large = [point for point in ours if point["num_codes"] >= 2**14] or ours
    per_code = [point["seconds"] / point["num_codes"] for point in large]
    return {
        "from_codes": large[0]["num_codes"],
        "to_codes": large[-1]["num_codes"],
        "seconds_per_code_last_over_first": per_code[-1] / per_code[0],
        "peak_bytes": large[-1]["peak_bytes"],
    }


# The long run, in which posteriors sharpen.


def long_run(protocol: Protocol, mnist: Path | None) -> dict[str, Any]:
    """Time the first and last steps of training on images with 8^4 codes, and count denormal numbers at the end."""
    data, name = _images(mnist)
    num_latents, num_categories = (2, 3) if mnist is None else (4, 8)
    torch.manual_seed(0)
    vae = CategoricalVAE(data.shape[1], num_latents, num_categories, protocol.size.hidden)
    optimizer = torch.optim.Adam(vae.parameters(), lr=1e-3, fused=True)
    elbo = ExactELBO()
    taken, losses = [], []
    for _ in range(protocol.steps):
        x = data[torch.randint(len(data), (protocol.size.batch_size,))]
        start = time.perf_counter()
        losses.append(elbo.loss_and_grads(vae.model, vae.guide, x) / len(x))
        optimizer.step()
        taken.append(time.perf_counter() - start)
        gradients = [p.grad for p in vae.parameters() if p.grad is not None]
        optimizer.zero_grad()
    pyro.clear_param_store()
    first, last = (statistics.median(part) for part in (taken[: protocol.window], taken[-protocol.window :]))
    state = optimizer.state.values()
    return {
        "data": name,
        "steps": protocol.steps,
        "first_ms": 1e3 * first,
        "last_ms": 1e3 * last,
        "last_over_first": last / first,
        "first_loss": losses[0],
        "last_loss": statistics.fmean(losses[-protocol.window :]),
        "denormal_gradients_at_the_end": sum(map(_denormals, gradients)),
        "denormal_exp_avg_at_the_end": sum(_denormals(s["exp_avg"]) for s in state),
        "denormal_exp_avg_sq_at_the_end": sum(_denormals(s["exp_avg_sq"]) for s in state),
    }


def _images(mnist: Path | None) -> tuple[Tensor, str]:
    from sklearn.datasets import load_digits  # imported here, because every process of the scaling imports this module
    from torchvision.datasets import MNIST

    if mnist is not None and mnist.is_dir():
        return MNIST(str(mnist)).data.flatten(1) / 255, "MNIST"
    return torch.tensor(load_digits().data, dtype=torch.float32) / 16, "digits"


def _denormals(tensor: Tensor) -> int:
    return int(((tensor != 0) & (tensor.abs() < torch.finfo(tensor.dtype).tiny)).sum())


@in_house_style
def draw(points: list[dict[str, Any]], folder: Path) -> None:
    """Draw time and memory of a gradient step against S, on logarithmic axes; stock Pyro until it dies."""
    figure = Figure(figsize=(9, 3.6))
    quantities = {"seconds": ("seconds a gradient step", 1.0), "peak_bytes": ("peak resident memory, GB", 1e9)}
    for axes, (quantity, (label, unit)) in zip(figure.subplots(1, 2), quantities.items(), strict=True):
        for method, color, marker in (("ours", PALETTE[0], "o"), ("stock", PALETTE[1], "s")):
            lived = [point for point in points if point["method"] == method and not point["died"]]
            x, y = [p["num_codes"] for p in lived], [p[quantity] / unit for p in lived]
            axes.plot(x, y, color=color, marker=marker, label={"ours": "ExactELBO", "stock": "TraceEnum_ELBO"}[method])
        for died in (point for point in points if point["died"]):
            axes.axvline(died["num_codes"], color=PALETTE[1], linestyle=":")
            where = axes.get_xaxis_transform()
            axes.text(died["num_codes"], 0.98, " out of memory", transform=where, va="top", color=INK, fontsize=8)
        axes.set(xscale="log", yscale="log", xlabel="S = 2^N joint codes", title=label)
        if quantity == "peak_bytes":
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())
    figure.axes[0].legend(loc="lower right")
    save_figure(figure, folder, "exact_scaling")


if __name__ == "__main__":
    print(json.dumps(point(**json.loads(sys.argv[1]))))
