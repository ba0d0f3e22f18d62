"""Measure estimators for a short time on one model, and recommend one."""

import time
from collections.abc import Hashable, Sequence
from typing import Any

import pandas as pd

from ..config.gradients import AdviseConfig
from ..config.models import MODELS, Labels
from ..config.units import in_bytes
from ..data.batches import epoch_batches
from ..data.dataset import Dataset
from ..data.labels import given, use_of_labels
from ..estimators import ESTIMATORS, Estimator, estimator
from ..exact import HasPair
from ..models.base import VAE
from ..report.advice import advice_text
from ..runs.folder import new_run_folder
from ..runs.frames import write_csv
from ..runtime.memory import peak_memory
from ..runtime.progress import Progress
from ..runtime.rng import seeded
from ..runtime.work import OPERATIONS_PER_SECOND
from ..train.setup import initial_model, load_data
from ..train.step import make_step
from .candidates import Candidate, candidates
from .gradient_report import NUM_GROUPS, Setup, measure
from .probe import Probe, make_problem
from .recommend import Advice, recommend
from .references import LEAST_NOISY, References, obstacle_to_sums
from .timing import make_clock

#: About how often the exact gradient is computed: for the reference, for its own row, and for timing.
EXACT_CALLS = 12


def advise(config: AdviseConfig) -> tuple[pd.DataFrame, Advice]:
    """Train for a fifth of the time, measure all feasible estimators on one batch, and recommend one.

    Gradients are with respect to all parameters. They are compared with the exact gradient if the sum over all codes
    fits into the time. Otherwise, or if there are continuous latents, they are compared with the mean of many unbiased
    estimates, corrected for its noise. If neither is available, only noise and speed are compared.

    Args:
        config: model, data and time.

    Returns:
        The measured table (a row of :func:`~pyro_gvae.diagnostics.gradient_report.gradient_report` for each estimator
        and temperature, with the additional column `memory`, the bytes that a step uses), and the advice.

    Raises:
        ValueError: if a setting or the data are invalid, or nothing could be measured.
        OSError: if data files are absent.
    """
    training = config.training()
    data = load_data(training)
    if config.batch_size > len(data.train):
        raise ValueError(f"Expected a batch_size of at most {len(data.train)} images, but found {config.batch_size}.")
    folder = None if config.output is None else new_run_folder(config.output)
    with seeded(config.seed):
        vae = initial_model(training, data)
        _train(vae, data, config)
    labels = data.train_labels if use_of_labels(vae) is Labels.GIVEN else None
    x = next(epoch_batches(data, config.batch_size, seed=config.seed, epoch=0, labels=labels))
    soft = MODELS[config.model].soft
    table, found = advise_on(
        vae,
        x,
        estimators=config.estimators or [soft if name == "gumbel-softmax" else name for name in ESTIMATORS],
        temperatures=config.temperatures,
        seconds=config.seconds,
        max_memory=in_bytes(config.max_memory),
        seed=config.seed,
    )
    if folder is not None:
        write_csv(folder / "advice.csv", table)
    return table, found


def advise_on(
    pair: HasPair,
    x: Any,
    *,
    estimators: Sequence[str | Estimator] = (),
    temperatures: Sequence[float] = (0.5, 1.0),
    seconds: float = 60.0,
    max_memory: float | None = None,
    seed: int = 0,
) -> tuple[pd.DataFrame, Advice]:
    """Measure all feasible estimators on a program as it is, and recommend one; see :func:`advise`.

    Args:
        pair: a pair of programs with any latents, best after a few epochs of training; it is not changed.
        x: a batch, (B, ...), or a tuple of all arguments of the programs.
        estimators: names in the registry, which may have options in brackets, or estimators; all if empty.
        temperatures: temperatures for the named estimators that have one.
        seconds: the time budget, of which the measurements take about three quarters.
        max_memory: bytes that an exact sum may use.
        seed: seed of the samples.

    Returns:
        The measured table, and the advice.

    Raises:
        ValueError: if nothing could be measured.
    """
    problem = make_problem(pair, x)
    obstacle = obstacle_to_sums(problem, seconds / 2 / EXACT_CALLS * OPERATIONS_PER_SECOND, max_memory, seed=seed)
    grid = candidates(
        estimators or tuple(ESTIMATORS), temperatures=temperatures, kl="categorical", max_memory=max_memory
    )
    grid = [one for one in grid if _is_feasible(one, obstacle)]
    truths = candidates(["exact"], max_memory=max_memory) if obstacle is None else _unbiased(grid)
    references = References(
        problem, "parameters", truths, count=lambda probe: _num_affordable(probe, seconds / 4), seed=seed
    )
    clock = make_clock(problem)
    share = seconds / 2 / max(len(grid), 1)
    memory: dict[Hashable, int] = {}
    rows = []
    for one in Progress(grid, desc="advise", unit="row"):
        setup = Setup(problem, "parameters", references, 2 * NUM_GROUPS, clock, budget=1.0, seed=seed)
        rows.append(_row(setup, one, share, memory))
    table = pd.DataFrame(rows)
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


def _train(vae: VAE, data: Dataset, config: AdviseConfig) -> None:
    """Train for up to five epochs, since gradients at initialization are not typical of training."""
    step = make_step(vae, estimator(MODELS[config.model].soft), lr=config.learning_rate)
    labels = given(vae, data).labels
    end = time.perf_counter() + config.seconds / 5
    for epoch in range(5):
        for x in epoch_batches(data, config.batch_size, seed=config.seed, epoch=epoch, labels=labels):
            if time.perf_counter() > end:
                return
            step(x)


def _unbiased(grid: list[Candidate]) -> list[Candidate]:
    """Return the unbiased sampling estimators, from the least to the most noisy; those of unknown noise come last."""
    ranks: dict[str, int] = {name: rank for rank, name in enumerate(LEAST_NOISY)}
    found = []
    for one in sorted(grid, key=lambda one: ranks.get(one.name, len(ranks))):
        try:
            chosen = one.make()
        except ValueError:
            continue  # its row will hold the error
        if chosen.is_unbiased and not chosen.is_exact:
            found.append(one)
    return found


def advice_table(table: pd.DataFrame) -> str:
    """Format the rows of :func:`advise` for the terminal."""
    return advice_text(table).to_string(index=False)
