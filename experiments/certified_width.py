"""Measure how many codes a certified interval for log p(x) needs.

Question: how wide is the interval of `certified_bounds` as a function of the number of codes that it scores, and where
is the importance-weighted bound with equally many samples?

Command: `python experiments/certified_width.py` (`--smoke` for a tiny size, in seconds). It writes
`experiments/results/certified_width.csv`, `docs/figures/certified_width.png` and `.svg`.

Cost: five minutes on one core.

Black-and-white digits, 30 soft epochs, 8 categories; 4 latents, where log p(x) is a sum over all 4,096 codes, and 10
latents, where it is unknown. Means over 100 test images.

Found (three seeds; log p(x) = -18.62 +- 0.01 at 8x4): the certified lower bound is 3.55 nats below log p(x) with one
code, 0.47 with 64, 0.11 with 256 and 0.01 with 1,024; the importance-weighted bound is 1.66, 0.06, 0.02 and 0.01 below.
With ten latents and 4,096 codes the certified bound is -25.49 +- 0.04 where the importance-weighted one is -19.10 +-
0.03: the posteriors are spread over more codes than that. The upper bound is above -1 until all codes are summed.
"""

from functools import partial
from itertools import product
from typing import Annotated

import pandas as pd
import tyro
from common import (
    SETTINGS,
    Places,
    Row,
    command,
    draw_curve,
    in_words,
    mean_and_error,
    run_cells,
    tiny,
    train,
)
from matplotlib.figure import Figure

from pyro_gvae import CategoricalVAE, Dataset, TrainConfig, exact
from pyro_gvae.evaluate.certified import certified_bounds
from pyro_gvae.evaluate.importance import importance_weighted
from pyro_gvae.report.style import PALETTE, SMALL_PRINT, in_house_style
from pyro_gvae.runs.tables import with_errors

NAME = "certified_width"
#: Number of test images.
NUM_TEST = 100
#: log p(x) is not summed if there are more codes than this.
MOST_CODES = 100_000
BOUNDS = {
    "lower": "certified lower bound",
    "upper": "certified upper bound",
    "importance_weighted": "importance-weighted bound, as many samples",
}


def main(
    places: Annotated[Places, tyro.conf.arg(name="")],
    *,
    latents: tuple[int, ...] = (4, 10),
    num_codes: tuple[int, ...] = (1, 4, 16, 64, 256, 1024, 4096),
    seeds: tuple[int, ...] = (0, 1, 2),
    epochs: int = 30,
) -> pd.DataFrame:
    """Train models, and bound log p(x) with more and more codes.

    Args:
        places: where to read and write.
        latents: numbers of latents N, of 8 categories each.
        num_codes: numbers of scored codes C.
        seeds: seeds of the initial weights, the order of the data and the samples.
        epochs: number of epochs of soft training.
    """
    if places.smoke:
        places, latents, num_codes, seeds, epochs = places.apart(NAME), (2,), (1, 4, 9), (0,), 1
    cells: list[Row] = [{"latents": number, "seed": seed} for number, seed in product(latents, seeds)]
    measured = partial(measure, places=places, num_codes=num_codes, epochs=epochs)
    table = run_cells(NAME, cells, measured, places)
    found = mean_and_error(table, ["latents", "num_codes"], [*BOUNDS, "log_evidence"])
    keys = found[["latents", "num_codes", "seeds"]]
    print(keys.join(with_errors(found, [*BOUNDS, "log_evidence"])).to_string(index=False))
    places.save(NAME, draw(found))
    return table


def measure(cell: Row, *, places: Places, num_codes: tuple[int, ...], epochs: int) -> list[Row]:
    """Train a cell, and return a row for each number of codes."""
    config = places.placed(
        TrainConfig(
            dataset="digits",
            stages="gumbel-softmax[kl=categorical]:1000",
            num_latents=cell["latents"],
            num_categories=8,
            **SETTINGS["digits"],
        ),
        seed=cell["seed"],
    )
    config = tiny(config) if places.smoke else config
    bounded = partial(bounds, num_codes=num_codes)
    [row] = train(config, [str(epochs)], bounded, places.folder(NAME, cell))
    return [
        {"num_codes": count, "epoch": row["epoch"], "log_evidence": row["log_evidence"]}
        | {name: row[f"{name} {count}"] for name in BOUNDS}
        for count in num_codes
    ]


def bounds(vae: CategoricalVAE, data: Dataset, *, num_codes: tuple[int, ...]) -> Row:
    """Compute the bounds on test images for each number of codes, and log p(x) if it can be summed, nats per datum."""
    x = data.test[:NUM_TEST]
    found: Row = {"log_evidence": float("nan")}
    if exact.cost(vae, x).num_codes <= MOST_CODES:
        found["log_evidence"] = exact.log_evidence(vae, x).mean().item()
    for count in num_codes:
        certain, sampled = certified_bounds(vae, x, count), importance_weighted(vae, x, count)
        assert certain.upper is not None  # pixels are bits
        found |= {f"lower {count}": certain.lower.mean().item(), f"upper {count}": certain.upper.mean().item()}
        found[f"importance_weighted {count}"] = sampled.bound.mean().item()
    return found


@in_house_style
def draw(found: pd.DataFrame) -> Figure:
    """Draw the bounds against the number of codes, and log p(x) where it is known; one panel per number of latents."""
    sizes = list(found["latents"].unique())
    figure = Figure(figsize=(5.2 * len(sizes), 4.0))
    for axes, size in zip(figure.subplots(1, len(sizes), squeeze=False)[0], sizes, strict=True):
        rows = found[found["latents"] == size].sort_values("num_codes")
        for (name, label), color in zip(BOUNDS.items(), PALETTE, strict=False):
            draw_curve(axes, rows["num_codes"], rows[name], rows[f"{name}_se"], "-o", color=color, ms=4, label=label)
        if rows["log_evidence"].notna().all():
            axes.axhline(rows["log_evidence"].mean(), color="#888888", lw=0.8, ls=":", label="log p(x)")
        axes.set_xscale("log")
        axes.set_xticks([10**i for i in range(4)], [f"{10**i:,}" for i in range(4)])
        axes.set(title=f"K = 8, N = {size} ({in_words(rows['seeds'])})", xlabel="codes of each datum")
    figure.axes[0].set_ylabel("test set, nats per datum")
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2, fontsize=8)
    figure.supxlabel("lines: means over seeds; bands: standard error", x=0.99, ha="right", **SMALL_PRINT)
    return figure


if __name__ == "__main__":
    command(main)
