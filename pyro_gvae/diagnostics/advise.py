"""Measure estimators for a short time on one model, and recommend one."""

import time
from collections.abc import Hashable
from typing import Any

import pandas as pd

from .. import exact
from ..config.gradients import AdviseConfig
from ..config.names import EstimatorName
from ..config.units import in_bytes
from ..data.batches import epoch_batches
from ..data.dataset import Dataset
from ..data.datasets import load
from ..estimators import ESTIMATORS, estimator
from ..models.categorical_vae import CategoricalVAE
from ..runs.folder import new_run_folder
from ..runs.frames import write_csv
from ..runs.tables import with_errors
from ..runtime.memory import in_words, peak_memory
from ..runtime.progress import Progress
from ..runtime.rng import seeded
from ..runtime.work import OPERATIONS_PER_SECOND
from ..train.step import make_step
from .candidates import Candidate, candidates
from .gradient_report import NUM_GROUPS, Setup, exact_reference, measure, sample_moments
from .moments import Reference
from .probe import Probe, Problem, make_problem
from .recommend import Advice, recommend
from .timing import make_clock

#: If the exact gradient is not available, the mean of an unbiased estimator replaces it: the first of these that can
#: be measured, from the least to the most noisy; any others come last.
LEAST_NOISY: tuple[EstimatorName, ...] = (
    "local-expectation",
    "reinforce-loo",
    "relax",
    "rebar",
    "reinforce-baseline",
    "reinforce",
)
#: About how often the exact gradient is computed: for the reference, for its own row, and for timing.
EXACT_CALLS = 12


def advise(config: AdviseConfig) -> tuple[pd.DataFrame, Advice]:
    """Train for a fifth of the time, measure all feasible estimators on one batch, and recommend one.

    Gradients are with respect to all parameters. They are compared with the exact gradient if the sum over K^N codes
    fits into the time; otherwise with the mean over many estimates by an unbiased estimator, corrected for its noise.
    If neither is available, only noise and speed are compared.

    Args:
        config: model, data and time.

    Returns:
        The measured table (a row of :func:`~pyro_gvae.diagnostics.gradient_report.gradient_report` for each estimator
        and temperature, with the additional column `memory`, the bytes of a step), and the advice.

    Raises:
        ValueError: if a setting or the data are invalid, or nothing could be measured.
        OSError: if data files are absent.
    """
    data = load(config.dataset, data_dir=config.data_dir, download=config.download, binarize=config.binarize)
    if config.batch_size > len(data.train):
        raise ValueError(f"Expected a batch_size of at most {len(data.train)} images, but found {config.batch_size}.")
    folder = None if config.output is None else new_run_folder(config.output)
    with seeded(config.seed):
        vae = CategoricalVAE(data.train.shape[1], config.num_latents, config.num_categories, config.hidden)
        _train(vae, data, config)
    problem = make_problem(vae, next(epoch_batches(data, config.batch_size, seed=config.seed, epoch=0)))
    max_memory = in_bytes(config.max_memory)
    truth = estimator("exact", max_memory=max_memory)
    obstacle = _obstacle(problem, config.seconds / 2 / EXACT_CALLS * OPERATIONS_PER_SECOND, max_memory)
    grid = candidates(
        config.estimators or tuple(ESTIMATORS),
        temperatures=config.temperatures,
        kl="categorical",
        max_memory=max_memory,
    )
    grid = [one for one in grid if _is_feasible(one, obstacle)]
    clock = make_clock(problem)
    if obstacle is None:
        reference: Reference | None = exact_reference(problem, truth, "parameters", seed=config.seed)
    else:
        reference = _sampled_reference(problem, grid, config)
    share = config.seconds / 2 / max(len(grid), 1)
    memory: dict[Hashable, int] = {}
    rows = []
    for one in Progress(grid, desc="advise", unit="row"):
        setup = Setup(problem, "parameters", reference, 2 * NUM_GROUPS, clock, budget=1.0, seed=config.seed)
        rows.append(_row(setup, one, share, memory))
    table = pd.DataFrame(rows)
    if folder is not None:
        write_csv(folder / "advice.csv", table)
    return table, recommend(table, obstacle)


def _is_feasible(one: Candidate, obstacle: str | None) -> bool:
    """Tell whether a candidate estimates the ELBO's gradient, and does not sum over codes if there are too many."""
    try:
        chosen = one.make()
    except ValueError:
        return True  # its row will hold the error
    return chosen.objective.is_elbo and not (obstacle and chosen.is_exact)


def _row(setup: Setup, one: Candidate, share: float, memory: dict[Hashable, int]) -> dict[str, Any]:
    """Measure one row with as many estimates as fit into its share of the time."""
    try:
        with seeded(setup.seed):
            probe = Probe(setup.problem, one.make(), wrt="parameters")
            if one.family not in memory:
                memory[one.family] = peak_memory(probe.step)
            setup = setup._replace(num_samples=_num_affordable(probe, share))
    except ValueError:
        return measure(setup, one)  # a row with the error
    return measure(setup, one) | {"memory": memory[one.family]}


def _num_affordable(probe: Probe, share: float) -> int:
    """Return how many estimates fit into a share of the time, but at least enough for standard errors."""
    start = time.perf_counter()
    probe.step()
    return max(2 * NUM_GROUPS, min(int(share / (time.perf_counter() - start)), 1024))


def _train(vae: CategoricalVAE, data: Dataset, config: AdviseConfig) -> None:
    """Train for up to five epochs, since gradients at initialization differ from those of the rest of a training."""
    step = make_step(vae, estimator("gumbel-softmax", kl="categorical"), lr=config.learning_rate)
    end = time.perf_counter() + config.seconds / 5
    for epoch in range(5):
        for x in epoch_batches(data, config.batch_size, seed=config.seed, epoch=epoch):
            if time.perf_counter() > end:
                return
            step(x)


def _obstacle(problem: Problem, most_operations: float, max_memory: float | None) -> str | None:
    """Return why the codes cannot be summed over, or None if they can."""
    try:
        cost = exact.cost(problem.pair, problem.x, max_memory=max_memory)
    except ValueError as refusal:
        return str(refusal).split("\n")[0]
    if cost.operations <= most_operations:
        return None
    return f"One exact gradient sums over {cost.num_codes:,} codes, which takes about {cost.seconds:.2g} seconds."


def _sampled_reference(problem: Problem, grid: list[Candidate], config: AdviseConfig) -> Reference | None:
    """Return the mean of many estimates by an unbiased estimator; None if none is available with small enough noise."""
    ranks: dict[str, int] = {name: rank for rank, name in enumerate(LEAST_NOISY)}
    for one in sorted(grid, key=lambda one: ranks.get(one.name, len(ranks))):
        try:
            chosen = one.make()
            if not chosen.is_unbiased or chosen.is_exact:
                continue
            with seeded(config.seed):
                count = _num_affordable(Probe(problem, chosen, wrt="parameters"), config.seconds / 4)
            found = sample_moments(
                problem, chosen, reference=None, num_samples=count, num_groups=1, wrt="parameters", seed=config.seed + 1
            )
        except ValueError:
            continue
        error = float(found.variance.sum()) / count
        reference = Reference(found.mean.to(found.total.dtype), error, f"the mean of {count} estimates by {one.name}")
        if error < reference.squared_norm:  # with more noise, its direction is unknown
            return reference
    return None


def advice_table(table: pd.DataFrame) -> str:
    """Format the rows of :func:`advise` for the terminal."""
    names = ("relative_bias", "relative_std", "cosine", "progress")
    text = table[["estimator"]].join(with_errors(table, ("temperature", *names)))
    text["ms per step"] = (1e3 * table["seconds"]).map("{:.3g}".format)
    text["memory"] = [in_words(value) if pd.notna(value) else "" for value in table["memory"]]
    return text[table["refused"].isna()].to_string(index=False)
