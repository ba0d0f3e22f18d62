"""Shared code of the experiments: resumable tables of cells, models that are measured while they train, and figures.

A cell is one run, such as one estimator with one seed: a dictionary of its settings, which are columns of the table. A
row holds what was measured in that run, once or at several moments of its training.
"""

import functools
import math
import re
import shutil
import sys
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from signal import SIGINT
from typing import Any

import numpy as np
import pandas as pd
import torch
import tyro
from bench import MNIST_FOLDER, ROOT
from joblib import Parallel, delayed
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter
from tqdm import tqdm

from pyro_gvae import CategoricalVAE, Dataset, TrainConfig, exact
from pyro_gvae.config.stages import Amount
from pyro_gvae.evaluate.code_statistics import guide_log_probs, mean_perplexity
from pyro_gvae.evaluate.importance import log_importance_weights
from pyro_gvae.evaluate.metrics import discrete_scores
from pyro_gvae.programs.pair import HasPair
from pyro_gvae.report.style import PALETTE, save_figure
from pyro_gvae.runs.folder import sole_writer
from pyro_gvae.runs.frames import write_csv
from pyro_gvae.runs.tables import with_errors
from pyro_gvae.runtime.memory import keep_freed_memory
from pyro_gvae.runtime.rng import own_randomness
from pyro_gvae.train.fit import fit
from pyro_gvae.train.milestones import Milestones
from pyro_gvae.train.setup import initial_model, load_data
from pyro_gvae.train.training import Training

Row = dict[str, Any]
Measure = Callable[[Any, Dataset], Row]

#: Hidden layers, batch size and learning rate of each data set.
SETTINGS: dict[str, dict[str, Any]] = {
    "mnist": {"hidden": (512, 256), "batch_size": 100, "learning_rate": 1e-3},
    "digits": {"hidden": (128,), "batch_size": 64, "learning_rate": 3e-3},
}
#: A sum over all codes of the test set is sampled instead if it needs more operations (about two minutes on two cores).
MOST_OPERATIONS = 1.2e13
#: Samples per datum where there are too many codes to sum over.
NUM_PARTICLES = 100
#: A -ELBO is drawn at the edge of the figure if it is more than this many times as far above the median as the best one
#: is below it.
FAR = 3.0


@dataclass(frozen=True)
class Places:
    """The folders that an experiment reads and writes, its number of processes, its device, and whether it is a check.

    Args:
        mnist: The MNIST folder (torchvision's `root`).
        results: The folder for raw numbers, one CSV file for each experiment; cells already in it are not run again.
        figures: The folder for figures.
        runs: The folder for checkpoints, from which interrupted cells resume.
        workers: Number of processes that share the cells; compare seconds only between runs with the same number.
        device: Device to train on: cpu or cuda.
        smoke: Run everything on a tiny problem, in seconds, to check that it works; all other settings are ignored, and
            numbers and figures go to runs/experiments/smoke.
    """

    mnist: Path = MNIST_FOLDER
    results: Path = ROOT / "experiments" / "results"
    figures: Path = ROOT / "docs" / "figures"
    runs: Path = ROOT / "runs" / "experiments"
    workers: int = 1
    device: str = "cpu"
    smoke: bool = False

    def placed(self, config: TrainConfig, **changes: Any) -> TrainConfig:
        """Return a configuration with this data folder and device, and with other changes."""
        return replace(config, data_dir=self.mnist, device=self.device, **changes)

    def folder(self, experiment: str, cell: Row) -> Path:
        """Return the folder of a cell's checkpoint, which is named after the settings of the cell."""
        return self.runs / experiment / "-".join(re.sub(r"[^\w.]+", "_", str(value)) for value in cell.values())

    def apart(self, experiment: str) -> "Places":
        """Return separate, empty folders for a smoke run, whose numbers must never mix with the results."""
        folder = self.runs / "smoke" / experiment
        shutil.rmtree(folder, ignore_errors=True)
        return replace(self, results=folder / "results", figures=folder / "figures", runs=folder)

    def save(self, name: str, figure: Figure) -> None:
        """Save a figure as PNG and SVG."""
        save_figure(figure, self.figures, name)


def command(main: Callable[..., Any]) -> None:
    """Call a script's main function with the command-line options; bad input is one sentence and exit code 2."""
    keep_freed_memory()
    try:
        tyro.cli(main)
    except (ValueError, OSError) as error:
        print(f"{Path(sys.argv[0]).name}: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt as interrupt:  # `fit` has written its checkpoint
        number = getattr(interrupt, "signal", SIGINT)
        print(f"{Path(sys.argv[0]).name}: stopped by {number.name}; repeat the command to continue", file=sys.stderr)
        raise SystemExit(128 + number) from None


def check_names(found: Sequence[str], known: Collection[str]) -> None:
    """Raise ValueError if an unknown row or size is requested, before anything is trained."""
    unknown = ", ".join(f"'{name}'" for name in found if name not in known)
    if unknown:
        names = ", ".join(f"'{name}'" for name in known)
        raise ValueError(f"Expected names among {names}, but found {unknown}. Try one of them.")


def run_cells(
    experiment: str, cells: Sequence[Row], measure: Callable[[Row], list[Row]], places: Places
) -> pd.DataFrame:
    """Measure the cells that the experiment's CSV file lacks, and write the file after each of them.

    Args:
        experiment: the name of the file.
        cells: the cells to measure; a cell counts as done if a row of the table agrees with all of its settings.
        measure: returns the rows of a cell; their columns are added to those of the cell or replace them.
        places: the folders, and the number of processes.

    Returns:
        The whole table, including what earlier calls measured.

    Raises:
        ValueError: if another process is working on the same experiment in the same folder of runs.
        Exception: the error of the first cell that failed, raised once all cells have been tried.
    """
    folder = places.runs / experiment
    folder.mkdir(parents=True, exist_ok=True)
    with sole_writer(folder):  # two processes would overwrite each other's rows
        return _run_cells(experiment, cells, measure, places)


def _run_cells(
    experiment: str, cells: Sequence[Row], measure: Callable[[Row], list[Row]], places: Places
) -> pd.DataFrame:
    path = places.results / f"{experiment}.csv"
    table = pd.read_csv(path) if path.exists() and path.stat().st_size > 1 else pd.DataFrame()
    rows = table.to_dict("records")
    left = [cell for cell in cells if not any(_agrees(row, cell) for row in rows)]
    jobs = (delayed(_measured)(measure, cell) for cell in left)
    parallel = Parallel(n_jobs=places.workers, return_as="generator_unordered")
    errors = []
    for cell, found in tqdm(parallel(jobs), total=len(left), desc=experiment, unit="cell"):
        if isinstance(found, Exception):
            tqdm.write(f"failed: {cell}: {found}", sys.stderr)
            errors.append(found)
            continue
        same = [{name: row[name] for name in cell} for row in found]
        rows = [row for row in rows if not any(_agrees(row, key) for key in same)] + found
        write_csv(path, pd.DataFrame(rows))
    if errors:
        raise errors[0]
    return pd.read_csv(path)


def _measured(measure: Callable[[Row], list[Row]], cell: Row) -> tuple[Row, list[Row] | Exception]:
    keep_freed_memory()  # this may be a worker process
    try:
        return cell, [cell | row for row in measure(cell)]
    except OSError:  # missing data are missing for all cells
        raise
    except Exception as error:  # only this cell has failed: continue with the others
        return cell, error


def _agrees(row: Row, cell: Row) -> bool:
    """Compare numbers as numbers and all else as text: a file may hold the moment "1" as 1.0, beside 0.5."""
    return all(_as_number_or_text(row.get(name)) == _as_number_or_text(value) for name, value in cell.items())


def _as_number_or_text(value: Any) -> float | str:
    try:
        return float(value)
    except (TypeError, ValueError):
        return str(value)


def train(
    config: TrainConfig, moments: Sequence[str], measure: Measure, folder: Path, *, vae: HasPair | None = None
) -> list[Row]:
    """Train a model as `pyro-gvae train` does, and measure it at given moments of its training.

    `fit` evaluates every model in the same way; here the experiment decides what is measured and when. Measuring does
    not change the random numbers of the training.

    Args:
        config: what to train.
        moments: amounts of training in ascending order: "5" (epochs), "500steps", "60s".
        measure: computes the columns of a row from the model and its data.
        folder: for the checkpoint, from which an interrupted call, or one with later moments, continues.
        vae: a program with initial weights, by default that of the configuration.

    Returns:
        A row for each moment: `moment`, `step`, `epoch`, `seconds` of training, `stage`, and `train_objective`, minus
        the mean loss of the current epoch so far, in nats per datum; and what `measure` returned.
    """

    def measured(training: Training) -> Row:
        with own_randomness(0), torch.no_grad():
            return measure(training.vae, data)

    data = dataset(config)
    config = replace(config, judge="none", evaluate_every="1")  # so that the objective is a mean over the epoch
    amounts = [Amount.parse(moment) for moment in moments]
    milestones = Milestones(amounts, measured)
    done = fit(vae or initial_model(config, data), data, config, output=folder, resume=True, milestones=milestones)
    lines = {line.pop("milestone"): line for line in done.milestones}
    return [{"moment": moment} | lines[str(amount)] for moment, amount in zip(moments, amounts, strict=True)]


@functools.cache
def _load(config: TrainConfig) -> Dataset:
    return load_data(config)


def dataset(config: TrainConfig) -> Dataset:
    """Return the data set of a configuration, which each process loads only once."""
    names = ("dataset", "data_dir", "binarize", "validation_share", "split_seed", "device")
    return _load(TrainConfig(**{name: getattr(config, name) for name in names}))


def scores_on_test(vae: CategoricalVAE, data: Dataset, *, most: int | None = None) -> Row:
    """Compute ELBO and log p(x) of the discrete model on test data: by a sum over all codes, or by importance sampling.

    Args:
        vae: the model.
        data: the data set, of which the test images are used.
        most: use at most this many test images; by default all.

    Returns:
        `test_elbo` and `test_log_evidence`, nats per datum; `evidence_is`, which is "exact", or the number of samples
        where the evidence is only a lower bound; and `categories_used`, exp of the entropy of the aggregated posterior
        q(z_n) of these images, a mean over latents.
    """
    x = data.test[:most]
    used = {"categories_used": mean_perplexity(guide_log_probs(vae, x)).value}
    try:
        summable = exact.cost(vae, x).operations < MOST_OPERATIONS
    except ValueError:
        summable = False
    if summable:
        found = discrete_scores(vae, x)
        return {"test_elbo": found.elbo, "test_log_evidence": found.log_evidence, "evidence_is": "exact"} | used
    log_weights = log_importance_weights(vae, x, NUM_PARTICLES)  # without the neighbourhoods, which cost a lot
    elbo = log_weights.mean().item()
    bound = log_weights.logsumexp(0).mean().item() - math.log(NUM_PARTICLES)
    return {"test_elbo": elbo, "test_log_evidence": bound, "evidence_is": f"{NUM_PARTICLES} samples"} | used


def tiny(config: TrainConfig) -> TrainConfig:
    """Return the configuration on the digits, with the tiny networks and codes of a smoke run."""
    return replace(config, dataset="digits", hidden=(16,), num_latents=2, num_categories=3)


def paired(table: pd.DataFrame, by: Sequence[str], values: Sequence[str], baseline: str = "exact") -> pd.DataFrame:
    """Compare estimators with a baseline of the same seed, in each group of `by`: means and errors of the differences.

    Args:
        table: one row for each group, estimator and seed.
        by: the columns in which a row must agree with the baseline row that it is compared with.
        values: the columns to compare.
        baseline: an estimator; groups without it are left out.
    """
    keys = [*by, "seed"]
    base = table[table["estimator"] == baseline].set_index(keys)[list(values)]
    others = table[table["estimator"] != baseline]
    others = others[pd.MultiIndex.from_frame(others[keys]).isin(base.index)].copy()
    others[list(values)] -= base.loc[pd.MultiIndex.from_frame(others[keys])].to_numpy()
    return mean_and_error(others, [*by, "estimator"], values)


def print_paired(table: pd.DataFrame, by: Sequence[str], values: Sequence[str], baseline: str = "exact") -> None:
    """Print the paired differences, if there is a baseline to compare with."""
    found = paired(table, by, values, baseline)
    if len(found):
        text = found[[*by, "estimator", "seeds"]].join(with_errors(found, values))
        print(f"\nminus '{baseline}', the same seeds", text.to_string(index=False), sep="\n")


def log_axis(axis: Axis) -> None:
    """Label a logarithmic axis with plain numbers, at 1, 2 and 5 times the powers of ten."""
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(lambda value, _: f"{value:,g}")
    axis.set_minor_formatter(NullFormatter())


def mean_and_error(table: pd.DataFrame, by: Sequence[str], values: Sequence[str]) -> pd.DataFrame:
    """Compute means over seeds and standard errors (`VALUE_se`, NaN for one seed); groups keep their order."""
    grouped = table.groupby(list(by), sort=False)
    columns = {"seeds": grouped["seed"].nunique()}
    for value in values:
        columns |= {value: grouped[value].mean(), f"{value}_se": grouped[value].sem()}
    return pd.DataFrame(columns).reset_index()


def in_words(seeds: pd.Series) -> str:
    """Put numbers of seeds into words, for a title.

    >>> in_words(pd.Series([1, 3, 3])), in_words(pd.Series([1]))
    ('1 to 3 seeds', '1 seed')
    """
    fewest, most = seeds.min(), seeds.max()
    return f"{fewest} to {most} seeds" if fewest < most else f"{most} seed{'s' if most > 1 else ''}"


def draw_curve(axes: Axes, x: pd.Series, y: pd.Series, error: pd.Series, look: str = "-", **more: Any) -> None:
    """Draw a curve, with a pale band of one standard error to either side if there are several seeds."""
    [line] = axes.plot(x, y, look, **more)
    axes.fill_between(x, y - error, y + error, color=line.get_color(), alpha=0.15, lw=0, zorder=1.6)  # over the grid


def evidence_of(table: pd.DataFrame) -> str:
    """Describe the table's log p(x): exact, or a bound."""
    exact = (table["evidence_is"] == "exact").all()
    return "log p(x)" if exact else f"bound of log p(x) by {NUM_PARTICLES} samples"


def draw_dots(axes: Axes, ends: pd.DataFrame) -> pd.DataFrame:
    """Draw a row of dots for each estimator: test -ELBO and -log p(x), with the best ELBO at the top.

    The dots are means over seeds with standard errors; the number of seeds is in brackets.

    Args:
        axes: the axes to draw on.
        ends: one row for each estimator and seed.

    Returns:
        The means, in the order of the rows from bottom to top.
    """
    labels = {"test_elbo": "−ELBO", "test_log_evidence": f"−{evidence_of(ends)}"}
    found = mean_and_error(ends, ["estimator"], list(labels)).sort_values("test_elbo", ignore_index=True)
    errors = found[[f"{value}_se" for value in labels]].fillna(0.0).set_axis(list(labels), axis=1)
    losses = -found[list(labels)]
    elbo = losses["test_elbo"]
    far = elbo > elbo.median() + max(5.0, FAR * (elbo.median() - elbo.min()))
    low, high = (losses - errors).min().min(), (losses + errors)[~far].max().max()
    for (value, label), color, marker in zip(labels.items(), PALETTE, "os", strict=False):
        inside = losses[value].where(losses[value] <= high)
        axes.errorbar(inside, found.index, xerr=errors[value], fmt=marker, ms=5, color=color, label=label)
    margin = 0.04 * (high - low) + 0.1
    axes.set_xlim(low - margin, high + margin)
    for place in np.flatnonzero(far):  # at the edge, because on a scale that reaches them all others would be one point
        beyond = [
            f"{label.partition(' by ')[0]} {losses.at[place, value]:.0f}"
            for value, label in labels.items()
            if losses.at[place, value] > high
        ]
        where = ("axes fraction", "data"), "offset points"
        axes.annotate(f"→ {', '.join(beyond)}", (1, place), (4, 0), *where, ha="left", va="center", fontsize=9)
    axes.set_yticks(found.index, [f"{name} ({n})" for name, n in zip(found["estimator"], found["seeds"], strict=True)])
    axes.set_ylim(-0.6, len(found) - 0.4)
    axes.grid(axis="x")
    return found
