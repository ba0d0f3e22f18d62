"""Compare estimators' gradients with the exact one, or the mean of many: bias, variance, direction and cost."""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import pandas as pd
import torch

from ..config.checks import MOST_OPERATIONS
from ..estimators import Estimator
from ..exact import HasPair
from ..programs.batches import Batch
from .candidates import Candidate, candidates
from .moments import Reference, summarize
from .probe import Problem, Wrt, is_deterministic, make_problem
from .references import LEAST_NOISY, References, obstacle_to_sums, sample_moments
from .timing import Clock, make_clock

#: Number of independent groups of samples, for the jackknife's standard errors.
NUM_GROUPS = 16
#: A sampled reference is the mean of this many times as many estimates as a row has.
REFERENCE_SAMPLES = 4
#: The columns that compare with the exact gradient.
COMPARED = tuple(
    f"{name}{error}"
    for name in ("relative_bias", "squared_bias", "cosine", "sample_cosine", "mse", "mse_at_budget", "progress")
    for error in ("", "_se")
)
#: The numeric columns of a row.
COLUMNS = (*COMPARED, "relative_std", "relative_std_se", "snr", "snr_se")


def gradient_report(
    vae: HasPair,
    x: Batch,
    estimators: Sequence[str | Estimator],
    *,
    temperatures: Sequence[float] = (),
    num_samples: int = 1024,
    num_parameter_samples: int = 64,
    wrt: Sequence[Wrt] = ("logits", "parameters"),
    dtype: torch.dtype | None = None,
    seed: int = 0,
    budget: float | None = None,
    vectorize: bool = True,
    max_operations: float = MOST_OPERATIONS,
    **options: Any,
) -> pd.DataFrame:
    r"""Measure bias, variance, direction and cost of estimators' gradients against the exact gradient of the ELBO.

    g is one estimate of the gradient of the loss (-ELBO in nats, summed over the data), from one call of the estimator
    with its own number of samples; G is the exact gradient (`ExactELBO`), or its replacement (see below). Means and
    variances are over estimates, norms over all coordinates. The squared norm of a mean of n estimates is too large by
    tr Var g / n. This is subtracted below wherever such norms occur, so that only the standard errors depend on n. The
    columns:

    - `relative_bias`: ||E g - G|| / ||G||; and `squared_bias`, its square with its own standard error, which can be
      negative by chance if there is no bias;
    - `relative_std`: ||sd g|| / ||E g||;
    - `cosine`: the cosine of E g and G; and `sample_cosine`: the mean cosine of g and G;
    - `snr`: the mean of \|E g_d\| / sd g_d over coordinates that vary (Rainforth et al. 2018, arXiv 1802.04537);
    - `mse`: E ||g - G||^2 / ||G||^2, of a single estimate;
    - `mse_at_budget`: (bias^2 + variance * c / t) / ||G||^2 for c = `seconds` of one training step (`make_step`) and
      t = `budget`: the same for the mean of as many estimates as fit into t seconds (possibly a fraction of one);
    - `progress`: (E g . G)^2 / (E ||g||^2 ||G||^2): the largest decrease of the loss that a step along g guarantees,
      as a fraction of that of a step along G (descent lemma; Bottou et al. 2018, arXiv 1606.04838, section 4.1).

    Each has a standard error `_se` from a jackknife over 16 groups of estimates: exact for means, conservative for a
    squared bias near 0; errors of the times and of a sampled reference are not included. `approximates` says what the
    estimator estimates, and `unbiased` whether it claims to be unbiased. An estimator whose KL is weighted, or partly
    free, is compared with the gradient of that objective. If an estimator does not estimate an ELBO (exact-evidence,
    vimco, reweighted-wake-sleep), the columns that compare with G are empty. If it cannot be created, or refuses the
    problem, `refused` has the error message.

    `reference` says what G is. If there are too many codes to sum over, or continuous latents, it is the mean of four
    times as many estimates by an unbiased estimator: the exact sum over codes given draws of continuous latents if that
    is possible, otherwise the least noisy one that accepts the problem. Its noise is subtracted from biases and norms,
    and `reference_error` is its size relative to G. If none has an error smaller than G, these columns are empty too.

    Args:
        vae: a `CategoricalVAE`, or a pair of programs with any latents; it is not changed.
        x: data (B, ...), or a tuple or dictionary of all arguments of the programs.
        estimators: names in the registry, or estimators.
        temperatures: temperatures for the named estimators that have one.
        num_samples: number of estimates of the logits' gradient.
        num_parameter_samples: number of estimates of the parameters' gradient, each of which takes a call.
        wrt: "logits": those of the guide's discrete latents, (B, N, K) of each, see
            :class:`~pyro_gvae.diagnostics.probe.Probe`; "parameters": all of model and guide.
        dtype: the type to compute in, for example torch.float64; None keeps the program's.
        seed: seed of the samples, the same for all estimators; the caller's random state is not changed.
        budget: t in seconds; None takes the time of a step of the exact ELBO, or of the first estimator that replaces
            it.
        vectorize: see :class:`~pyro_gvae.diagnostics.probe.Probe`.
        max_operations: the most operations that one exact gradient may take, as :func:`pyro_gvae.exact.cost` counts.
        **options: options passed to those named estimators that accept them, such as `kl` or `max_memory`.

    Returns:
        One row for each (estimator, temperature, wrt).

    Raises:
        ValueError: if there are fewer than two samples for each group.

    Example:
        >>> from pyro_gvae import CategoricalVAE
        >>> vae = CategoricalVAE(data_dim=6, num_latents=2, num_categories=3, hidden=(5,))
        >>> report = gradient_report(vae, torch.ones(4, 6), ["exact", "gumbel-softmax"], wrt=["logits"], num_samples=64)
        >>> bool(report["relative_bias"][0] == 0) and bool(report["mse"][1] > 0)
        True
    """
    check_samples(num_samples, num_parameter_samples)
    problem = make_problem(vae, x, dtype=dtype)
    grid = candidates(estimators, temperatures=temperatures, **options)
    clock = make_clock(problem)
    truths = unbiased_candidates(problem, max_operations, seed=seed, **options)
    rows = []
    for kind in wrt:
        count = num_samples if kind == "logits" else num_parameter_samples
        setup = make_setup(problem, kind, truths, count, clock, budget=budget, seed=seed, vectorize=vectorize)
        rows += [measure(setup, candidate) for candidate in grid]
    return pd.DataFrame(rows)


def unbiased_candidates(problem: Problem, max_operations: float, *, seed: int = 0, **options: Any) -> list[Candidate]:
    """List the estimators that can provide the reference gradient, from the best to the worst.

    Args:
        problem: the program and its data.
        max_operations: the most operations that a sum over all codes may take; beyond it, codes are not summed.
        seed: seed of the samples.
        **options: options passed to those estimators that accept them.
    """
    obstacle = obstacle_to_sums(problem, max_operations, options.get("max_memory"), seed=seed)
    return candidates([*(["exact"] if obstacle is None else []), *LEAST_NOISY], **options)


def make_setup(
    problem: Problem,
    wrt: Wrt,
    truths: Sequence[Candidate],
    num_samples: int,
    clock: Clock,
    *,
    budget: float | None = None,
    seed: int = 0,
    vectorize: bool = True,
) -> "Setup":
    """Return the setup that the rows of one kind of gradient share; arguments are those of :func:`gradient_report`."""
    references = References(
        problem, wrt, truths, count=lambda _: REFERENCE_SAMPLES * num_samples, seed=seed, vectorize=vectorize
    )
    budget = _seconds(clock, truths) if budget is None else budget
    return Setup(problem, wrt, references, num_samples, clock, budget, seed, vectorize)


def _seconds(clock: Clock, truths: Sequence[Candidate]) -> float:
    """Return the time of a step of the first candidate that accepts the problem."""
    for truth in truths:
        try:
            return clock(truth)
        except ValueError:
            continue
    return math.nan


def check_samples(*counts: int) -> None:
    """Refuse fewer estimates than the standard errors need."""
    for count in counts:
        if count < 2 * NUM_GROUPS:
            raise ValueError(f"Expected at least {2 * NUM_GROUPS} samples, two for each group, but found {count}.")


class Setup(NamedTuple):
    """What the rows of a report share: the problem, the references and the sampling; see :func:`gradient_report`."""

    problem: Problem
    wrt: Wrt
    references: Callable[[Estimator], Reference | None]
    num_samples: int
    clock: Clock
    budget: float
    seed: int = 0
    vectorize: bool = True


def measure(setup: Setup, candidate: Candidate) -> dict[str, Any]:
    """Measure one row of :func:`gradient_report`; without a reference, the columns that compare with it are empty."""
    row: dict[str, Any] = {"estimator": candidate.name, "temperature": candidate.temperature, "wrt": setup.wrt}
    try:
        chosen = candidate.make()
        row |= {"approximates": chosen.approximates, "unbiased": chosen.is_unbiased}
        num_samples = 1 if is_deterministic(setup.problem, chosen) else setup.num_samples
        reference = setup.references(chosen)
        found = sample_moments(
            setup.problem,
            chosen,
            wrt=setup.wrt,
            reference=reference,
            num_samples=num_samples,
            num_groups=min(NUM_GROUPS, num_samples),
            seed=setup.seed,
            vectorize=setup.vectorize,
        )
        seconds = setup.clock(candidate)
    except ValueError as refusal:
        return row | dict.fromkeys(COLUMNS) | {"refused": str(refusal).split("\n")[0]}
    reference = reference or Reference(torch.full_like(found.total[0], torch.nan), name="none")
    numbers = summarize(found, reference, samples_per_budget=setup.budget / seconds)
    if not chosen.objective.is_elbo:
        numbers |= dict.fromkeys(COMPARED, math.nan)
    error = math.sqrt(reference.squared_error / reference.squared_norm) if reference.squared_error else 0.0
    row |= {
        "reference": reference.name,
        "reference_error": error,
        "samples": num_samples,
        "seconds": seconds,
        "budget": setup.budget,
    }
    return row | {name: numbers[name] for name in COLUMNS} | {"refused": None}
