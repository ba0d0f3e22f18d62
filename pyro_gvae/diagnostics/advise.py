"""Measure estimators for a short time on one model, and recommend one."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pandas as pd

from ..config.gradients import AdviseConfig
from ..config.models import MODELS, Labels
from ..config.units import in_bytes
from ..data.batches import check_batch_size, epoch_batches
from ..data.columns import Data
from ..data.labels import given, use_of_labels
from ..data.sliced import AnyDataset, SlicedDataset
from ..estimators import ESTIMATORS, Estimator, estimator
from ..exact import HasPair
from ..models.base import VAE
from ..programs.batches import Batch
from ..report.advice import advice_text
from ..runs.folder import new_run_folder
from ..runs.frames import write_csv
from ..runtime.progress import Progress
from ..runtime.rng import seeded
from ..runtime.work import OPERATIONS_PER_SECOND
from ..train.setup import initial_model, load_or_slice, read_in_words
from ..train.step import make_step
from .budget import RECORDING, Budget, count_gradient
from .candidates import Candidate, candidates
from .gradient_report import Setup, measure
from .probe import make_problem
from .recommend import Advice, recommend
from .references import LEAST_NOISY, References, obstacle_to_sums
from .timing import make_clock

#: About how often the exact gradient is computed: for the reference, for its own row, and for timing.
EXACT_CALLS = 12


def advise(config: AdviseConfig, *, tell: Callable[[str], None] = lambda text: None) -> tuple[pd.DataFrame, Advice]:
    """Train for a fifth of the time, measure the feasible estimators that fit into it on one batch, and recommend one.

    Gradients are with respect to all parameters. They are compared with the exact gradient if the sum over all codes
    fits into the time. Otherwise, or if there are continuous latents, they are compared with the mean of many unbiased
    estimates, corrected for its noise. If neither is available, only noise and speed are compared.

    Args:
        config: model, data and time.
        tell: a function called with a description of the data.

    Returns:
        The measured table (a row of :func:`~pyro_gvae.diagnostics.gradient_report.gradient_report` for each estimator
        and temperature, with the additional column `memory`, the bytes that a step uses), and the advice.

    Raises:
        ValueError: if a setting or the data are invalid, or nothing could be measured.
        OSError: if data files are absent.
    """
    training = config.training()
    data = load_or_slice(training)
    tell(read_in_words(training, data))
    check_batch_size(config.batch_size, len(data.train))
    folder = None if config.output is None else new_run_folder(config.output)
    with seeded(config.seed):
        vae = initial_model(training, data)
        _train(vae, data, config)
    x = next(_batches(vae, data, config, epoch=0, learns=False))
    soft = MODELS[config.model].soft
    table, found = _advise(
        vae,
        x,
        config.estimators or [soft if name == "gumbel-softmax" else name for name in ESTIMATORS],
        are_named=bool(config.estimators),
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
    x: Batch,
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
        x: a batch, (B, ...), or a tuple or dictionary of all arguments of the programs.
        estimators: names in the registry, which may have options in brackets, or estimators, all of which are measured;
            if empty, those of the registry that fit into the time.
        temperatures: temperatures for the named estimators that have one.
        seconds: the time budget, of which the measurements take about three quarters; counted work decides what fits.
        max_memory: bytes that an exact sum may use.
        seed: seed of the samples.

    Returns:
        The measured table, and the advice.

    Raises:
        ValueError: if nothing could be measured.
    """
    return _advise(
        pair,
        x,
        estimators or tuple(ESTIMATORS),
        are_named=bool(estimators),
        temperatures=temperatures,
        seconds=seconds,
        max_memory=max_memory,
        seed=seed,
    )


def _advise(
    pair: HasPair,
    x: Batch,
    estimators: Sequence[str | Estimator],
    *,
    are_named: bool,
    temperatures: Sequence[float],
    seconds: float,
    max_memory: float | None,
    seed: int,
) -> tuple[pd.DataFrame, Advice]:
    """Measure estimators: all of them if the caller named them, otherwise those that fit into the time."""
    problem = make_problem(pair, x)
    obstacle = obstacle_to_sums(problem, seconds / 2 / EXACT_CALLS * OPERATIONS_PER_SECOND, max_memory, seed=seed)
    grid = candidates(estimators, temperatures=temperatures, kl="categorical", max_memory=max_memory)
    grid = [one for one in grid if _is_feasible(one, obstacle)]
    budget = Budget(lambda one: count_gradient(problem, one.make()))
    shares, left_out = budget.divide(grid, seconds / 2, all_of_them=are_named)
    measured = [share.candidate for share in shares]
    truths = candidates(["exact"], max_memory=max_memory) if obstacle is None else _unbiased(measured)
    allowed = max(seconds / 4, budget.least(truths))
    references = References(problem, "parameters", truths, count=lambda one: budget.affordable(one, allowed), seed=seed)
    clock = make_clock(problem)
    rows = []
    for share in Progress(shares, desc="advise", unit="row"):
        setup = Setup(problem, "parameters", references, share.num_samples, clock, budget=1.0, seed=seed)
        memory = {} if share.counted is None else {"memory": share.counted.memory}
        rows.append(measure(setup, share.candidate) | memory)
    table = pd.DataFrame(rows)
    found = recommend(table, obstacle)
    return table, found._replace(reasons=found.reasons + _left_out(left_out, seconds))


def _left_out(names: Sequence[str], seconds: float) -> tuple[str, ...]:
    """Name the estimators that were not measured, in a sentence."""
    if not names:
        return ()
    return (f"Not measured, since {seconds:g} seconds are too few for all: {', '.join(names)}. Try --seconds.",)


def _is_feasible(one: Candidate, obstacle: str | None) -> bool:
    """Tell whether a candidate estimates the ELBO's gradient, and does not sum over codes if there are too many."""
    try:
        chosen = one.make()
    except ValueError:
        return True  # its row will hold the error
    return chosen.objective.is_elbo and not (obstacle and chosen.is_exact)


def _train(vae: VAE, data: AnyDataset, config: AdviseConfig) -> None:
    """Train for up to five epochs, since gradients at initialization are not typical of training.

    The steps that fit into a fifth of the time follow from counted work; if a recording does not fit, there are none.
    """
    soft = estimator(MODELS[config.model].soft)
    step = None
    for epoch in range(5):
        for x in _batches(vae, data, config, epoch=epoch, learns=True):
            if step is None:
                counted = count_gradient(make_problem(vae, x), soft)
                left = int((config.seconds / 5 - RECORDING * counted.calls) / counted.seconds)
                step = make_step(vae, soft, lr=config.learning_rate) if left > 0 else None
            if step is None or left <= 0:
                return
            step(x)
            left -= 1


def _batches(vae: VAE, data: AnyDataset, config: AdviseConfig, *, epoch: int, learns: bool) -> Iterator[Data]:
    """Iterate over an epoch's training batches, with labels if the program needs them, or learns from them."""
    held = given(vae, data)
    order: Any = {"seed": config.seed, "epoch": epoch}
    if isinstance(data, SlicedDataset):
        yield from epoch_batches(held.train if learns else held.watched, config.batch_size, **order)
        return
    labels = held.labels if learns or use_of_labels(vae) is Labels.GIVEN else None
    yield from epoch_batches(data, config.batch_size, **order, labels=labels)


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
