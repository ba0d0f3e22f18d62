"""Should I relax or enumerate? A short measurement, and what it says in plain sentences."""

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
from .gradient_report import NUM_GROUPS, Bench, exact_reference, measure, sample_moments
from .moments import Reference
from .probe import Probe, Subject, make_subject
from .recommend import Advice, recommend
from .timing import make_clock

#: Which unbiased one's mean stands for the exact gradient where there is none: the least noisy first, others last.
CALMEST: tuple[EstimatorName, ...] = (
    "local-expectation",
    "reinforce-loo",
    "relax",
    "rebar",
    "reinforce-baseline",
    "reinforce",
)
#: An exact gradient is asked for about this often: by the reference, by its own row, and by the clock.
EXACT_CALLS = 12


def advise(config: AdviseConfig) -> tuple[pd.DataFrame, Advice]:
    """Train for a fifth of the time, measure all feasible estimators on one batch, and recommend one.

    Gradients are those of all parameters. The reference is the exact gradient, where K^N codes can be summed in the
    time; else the mean over many estimates by an unbiased estimator, whose noise is taken off; else there is none, and
    only noise and speed are compared.

    Args:
        config: model, data and time.

    Returns:
        The measured table (a row of :func:`~pyro_gvae.diagnostics.gradient_report.gradient_report` for each estimator
        and temperature, and `memory`, the bytes of a step), and the advice.

    Raises:
        ValueError: if a setting or the data are unusable, or nothing could be measured.
        OSError: if data files are absent.
    """
    data = load(config.dataset, data_dir=config.data_dir, download=config.download, binarize=config.binarize)
    if config.batch_size > len(data.train):
        raise ValueError(f"Expected a batch_size of at most {len(data.train)} images, but found {config.batch_size}.")
    folder = None if config.output is None else new_run_folder(config.output)
    with seeded(config.seed):
        vae = CategoricalVAE(data.train.shape[1], config.num_latents, config.num_categories, config.hidden)
        _train(vae, data, config)
    subject = make_subject(vae, next(epoch_batches(data, config.batch_size, seed=config.seed, epoch=0)))
    max_memory = in_bytes(config.max_memory)
    truth = estimator("exact", max_memory=max_memory)
    obstacle = _obstacle(subject, config.seconds / 2 / EXACT_CALLS * OPERATIONS_PER_SECOND, max_memory)
    grid = candidates(
        config.estimators or tuple(ESTIMATORS),
        temperatures=config.temperatures,
        kl="categorical",
        max_memory=max_memory,
    )
    grid = [one for one in grid if _is_asked(one, obstacle)]
    clock = make_clock(subject)
    if obstacle is None:
        reference: Reference | None = exact_reference(subject, truth, "parameters", seed=config.seed)
    else:
        reference = _standin(subject, grid, config)
    share = config.seconds / 2 / max(len(grid), 1)
    memory: dict[Hashable, int] = {}
    rows = []
    for one in Progress(grid, desc="advise", unit="row"):
        bench = Bench(subject, "parameters", reference, 2 * NUM_GROUPS, clock, budget=1.0, seed=config.seed)
        rows.append(_row(bench, one, share, memory))
    table = pd.DataFrame(rows)
    if folder is not None:
        write_csv(folder / "advice.csv", table)
    return table, recommend(table, obstacle)


def _is_asked(one: Candidate, obstacle: str | None) -> bool:
    """Tell whether a candidate is of the ELBO, and sums codes only where they can be summed."""
    try:
        chosen = one.make()
    except ValueError:
        return True  # its row says why
    return chosen.objective.is_elbo and not (obstacle and chosen.is_exact)


def _row(bench: Bench, one: Candidate, share: float, memory: dict[Hashable, int]) -> dict[str, Any]:
    """A measured row, from as many estimates as fit into its share of the time."""
    try:
        with seeded(bench.seed):
            probe = Probe(bench.subject, one.make(), wrt="parameters")
            if one.family not in memory:
                memory[one.family] = peak_memory(probe.step)
            bench = bench._replace(num_samples=_affordable(probe, share))
    except ValueError:
        return measure(bench, one)  # which says why
    return measure(bench, one) | {"memory": memory[one.family]}


def _affordable(probe: Probe, share: float) -> int:
    """How many estimates fit into a share of the time; enough for standard errors in any case."""
    start = time.perf_counter()
    probe.step()
    return max(2 * NUM_GROUPS, min(int(share / (time.perf_counter() - start)), 1024))


def _train(vae: CategoricalVAE, data: Dataset, config: AdviseConfig) -> None:
    """At most five epochs: what gradients are like at initialization says little about the rest of a training."""
    step = make_step(vae, estimator("gumbel-softmax", kl="categorical"), lr=config.learning_rate)
    end = time.perf_counter() + config.seconds / 5
    for epoch in range(5):
        for x in epoch_batches(data, config.batch_size, seed=config.seed, epoch=epoch):
            if time.perf_counter() > end:
                return
            step(x)


def _obstacle(subject: Subject, most_operations: float, max_memory: float | None) -> str | None:
    """Why the codes cannot be summed, or None if they can."""
    try:
        cost = exact.cost(subject.pair, subject.x, max_memory=max_memory)
    except ValueError as refusal:
        return str(refusal).split("\n")[0]
    if cost.operations <= most_operations:
        return None
    return f"One exact gradient sums {cost.num_codes:,} codes and takes about {cost.seconds:.2g} seconds."


def _standin(subject: Subject, grid: list[Candidate], config: AdviseConfig) -> Reference | None:
    """The mean of many estimates by an unbiased estimator, if one of them accepts the problem and noise is small."""
    ranks: dict[str, int] = {name: rank for rank, name in enumerate(CALMEST)}
    for one in sorted(grid, key=lambda one: ranks.get(one.name, len(ranks))):
        try:
            chosen = one.make()
            if not chosen.is_unbiased or chosen.is_exact:
                continue
            with seeded(config.seed):
                count = _affordable(Probe(subject, chosen, wrt="parameters"), config.seconds / 4)
            found = sample_moments(
                subject, chosen, reference=None, num_samples=count, num_groups=1, wrt="parameters", seed=config.seed + 1
            )
        except ValueError:
            continue
        error = float(found.variance.sum()) / count
        reference = Reference(found.mean.to(found.total.dtype), error, f"the mean of {count} estimates by {one.name}")
        if error < reference.squared_norm:  # else nothing is known of its direction
            return reference
    return None


def advice_table(table: pd.DataFrame) -> str:
    """The rows of :func:`advise` for the terminal."""
    names = ("relative_bias", "relative_std", "cosine", "progress")
    text = table[["estimator"]].join(with_errors(table, ("temperature", *names)))
    text["ms a step"] = (1e3 * table["seconds"]).map("{:.3g}".format)
    text["memory"] = [in_words(value) if pd.notna(value) else "" for value in table["memory"]]
    return text[table["refused"].isna()].to_string(index=False)
