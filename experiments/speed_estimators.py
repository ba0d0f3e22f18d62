"""Measure the cost of a training step for every estimator.

Question: how long does a step of `make_step` take with each estimator of the registry, relative to `gumbel-softmax`?

Command: `python experiments/speed.py estimators` (`--smoke` for tiny sizes, in seconds). It writes
`experiments/results/speed_estimators.json` and `docs/figures/estimator_cost.png` and `.svg`.

Cost: about five minutes on two cores; needs MNIST in torchvision's layout.

MLP 784-512-256-NK and back, B = 100, grey MNIST, at two sizes of code: 4 one-hots of 8 categories, where all 4,096
codes can be summed, and 20 of 10, where they cannot. Options are the registry's defaults except for those in `OPTIONS`.
The estimators run blocks of steps in turn. Reported are the medians over blocks of the mean time per step, and their
ratios to `gumbel-softmax`. An estimator that refuses a size is listed with its reason.

Found: see `docs/results/speed_estimators.md`.
"""

from itertools import cycle
from pathlib import Path
from typing import Any

from bench import MNIST_FOLDER, figures_folder, machine, results_of
from matplotlib.figure import Figure
from speed_step import Protocol, Size, Step, measured

from pyro_gvae import ESTIMATORS, estimator, load, make_step
from pyro_gvae.report.style import INK, PALETTE, in_house_style, save_figure
from pyro_gvae.runs.files import write_json

REFERENCE = "gumbel-softmax"
#: Row -> estimator and options; every other estimator of the registry is a row with its own name and default options.
OPTIONS: dict[str, tuple[str, dict[str, Any]]] = {
    REFERENCE: ("gumbel-softmax", {"kl": "relaxed"}),
    "gumbel-softmax, categorical KL": ("gumbel-softmax", {"kl": "categorical"}),
}
#: Exact estimators are not timed if there are more codes than this.
MOST_CODES = 100_000
FULL = Protocol(blocks=30, steps=5, batches=100, epochs=1, late=1)
SMOKE = Protocol(blocks=2, steps=1, batches=2, epochs=1, late=1)


def estimators(
    *,
    smoke: bool = False,
    mnist: Path = MNIST_FOLDER,
    results: Path | None = None,
    figures: Path | None = None,
) -> None:
    """Measure a training step of every estimator.

    Args:
        smoke: use tiny sizes, to check that it works.
        mnist: the MNIST folder (torchvision's `root`).
        results: the JSON file to write, by default in experiments/results; in runs/experiments/smoke for a smoke run.
        figures: the folder for the chart, by default docs/figures; runs/experiments/smoke for a smoke run.
    """
    protocol = SMOKE if smoke else FULL
    data = load("digits") if smoke else load("mnist", data_dir=mnist)
    hidden, batch_size = ((8, 8), 8) if smoke else ((512, 256), 100)
    shapes = [(2, 2)] if smoke else [(8, 4), (10, 20)]
    found: dict[str, Any] = {"machine": machine(), "sizes": []}
    for num_categories, num_latents in shapes:
        size = Size(data, num_latents, num_categories, hidden, batch_size)
        found["sizes"].append(measured_size(size, protocol))
    write_json(results or results_of("speed_estimators", smoke=smoke), found)
    draw(found["sizes"], figures or figures_folder(smoke=smoke))


def measured_size(size: Size, protocol: Protocol) -> dict[str, Any]:
    """Measure milliseconds per step by row and their ratios to the reference; give the reasons of refused rows."""
    steps, refused = contenders(size)
    milliseconds = measured(steps, size, protocol)
    ratios = {name: value / milliseconds[REFERENCE] for name, value in milliseconds.items()}
    print(f"K = {size.num_categories}, N = {size.num_latents}")
    for name, ratio in sorted(ratios.items(), key=lambda item: item[1]):
        print(f"{name:40s} {milliseconds[name]:8.2f} ms {ratio:8.2f}", flush=True)
    return {
        "num_categories": size.num_categories,
        "num_latents": size.num_latents,
        "milliseconds": milliseconds,
        "over_gumbel_softmax": ratios,
        "refused": refused,
    }


def contenders(size: Size) -> tuple[dict[str, Step], dict[str, str]]:
    """Make a step for each row that accepts this size, and list the reasons of those that refuse it."""
    steps: dict[str, Step] = {}
    refused: dict[str, str] = {}
    rows = {name: (name, {}) for name in ESTIMATORS} | OPTIONS
    for row, (name, options) in rows.items():
        chosen = estimator(name, **options)
        if chosen.is_exact and size.num_categories**size.num_latents > MOST_CODES:
            refused[row] = f"{size.num_categories}^{size.num_latents} codes"
            continue
        step = make_step(size.vae(), chosen)
        try:
            step(size.batches(1)[0])
        except ValueError as error:
            refused[row] = str(error)
        else:
            steps[row] = step
    return steps, refused


@in_house_style
def draw(sizes: list[dict[str, Any]], folder: Path) -> None:
    """Draw the ratios as distances from 1 on a logarithmic axis, one panel for each size of code."""
    rows = max(len(size["over_gumbel_softmax"]) for size in sizes)
    figure = Figure(figsize=(5.2 * len(sizes), 1.2 + 0.25 * rows))
    panels = figure.subplots(1, len(sizes), squeeze=False)[0]
    for axes, size, color in zip(panels, sizes, cycle(PALETTE), strict=False):
        ratios = dict(sorted(size["over_gumbel_softmax"].items(), key=lambda item: -item[1]))
        axes.hlines(list(ratios), 1, list(ratios.values()), color=color, linewidth=2)
        axes.plot(list(ratios.values()), list(ratios), color=color, marker="o", linestyle="")
        axes.axvline(1, color=INK, linewidth=0.8)
        axes.set_xscale("log")
        for place, ratio in enumerate(ratios.values()):
            axes.annotate(f"{ratio:.3g}", (ratio, place), (8, 0), textcoords="offset points", va="center", fontsize=8)
        axes.margins(x=0.18)
        axes.set(title=f"N = {size['num_latents']}, K = {size['num_categories']}")
        axes.set_xlabel("time of a step / that of gumbel-softmax")
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    save_figure(figure, folder, "estimator_cost")
