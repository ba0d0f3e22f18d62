"""What an estimator's gradient is worth, held against the exact one: bias, variance, direction, and their price."""

import itertools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import pandas as pd
import torch
from torch import Tensor

from ..estimators import Estimator
from ..exact import HasPair
from ..runtime.rng import seeded
from .candidates import Candidate, candidates
from .moments import Moments, Reference, gather, summarize
from .probe import Probe, Subject, Term, Wrt, make_subject
from .timing import Clock, make_clock

#: Independent groups of samples, from which standard errors are jackknifed.
NUM_GROUPS = 16
#: What compares with the exact gradient.
COMPARED = tuple(
    f"{name}{error}"
    for name in ("relative_bias", "squared_bias", "cosine", "sample_cosine", "mse", "mse_at_budget", "progress")
    for error in ("", "_se")
)
#: The numbers of a row.
COLUMNS = (*COMPARED, "relative_std", "relative_std_se", "snr", "snr_se")


def gradient_report(
    vae: HasPair,
    x: Tensor,
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
    **options: Any,
) -> pd.DataFrame:
    r"""Bias, variance, direction and price of estimators' gradients, held against the exact gradient of the ELBO.

    g is one estimate of the gradient of the loss (-ELBO in nats, summed over the data), from one call of the estimator
    with as many samples as it takes; G the exact gradient (`ExactELBO`); means, variances and norms are taken over
    estimates and all coordinates. With n estimates, squared norms of a mean are inflated by tr Var g / n: that is taken
    off wherever they stand below, so that no column depends on n but its standard error. The columns:

    - `relative_bias`: ||E g - G|| / ||G||, and before the root, with its own standard error, `squared_bias`, which is
      negative by chance where there is no bias;
    - `relative_std`: ||sd g|| / ||E g||;
    - `cosine`: of E g and G, and `sample_cosine`: the mean of that of g and G;
    - `snr`: the mean over coordinates that vary of \|E g_d\| / sd g_d (Rainforth et al. 2018, arXiv 1802.04537);
    - `mse`: E ||g - G||^2 / ||G||^2, of one estimate: equal samples;
    - `mse_at_budget`: (bias^2 + variance * c / t) / ||G||^2 for c = `seconds` of one training step (`make_step`) and
      t = `budget`: of the mean of as many estimates as fit into the same seconds (less than one counts as a fraction);
    - `progress`: (E g . G)^2 / (E ||g||^2 ||G||^2): the largest decrease of the loss that a step along g can promise,
      as a share of what a step along G can (descent lemma; Bottou et al. 2018, arXiv 1606.04838, section 4.1).

    Each has its standard error `_se` from a jackknife over 16 groups of estimates, exact for means, conservative for a
    squared bias near 0; times and a sampled reference are taken as they are. `approximates` says what the estimator
    estimates, and `unbiased` whether it claims to. If that is not the ELBO (exact-evidence, vimco,
    reweighted-wake-sleep), what compares with G is left empty. An estimator that cannot be, or refuses the problem, has
    the sentence in `refused`.

    Args:
        vae: a `CategoricalVAE`, or another program with one one-hot site; it stays as it is.
        x: data (B, ...).
        estimators: names in the registry, or estimators.
        temperatures: a grid, for named estimators that have one.
        num_samples: estimates of the logits' gradient.
        num_parameter_samples: estimates of the parameters' gradient, each of which takes a call.
        wrt: "logits": of the guide's one-hot site, (B, N, K); "parameters": all of model and guide.
        dtype: to compute in, for example torch.float64; None keeps the program's.
        seed: of the samples, the same for all estimators; the caller's random state stays.
        budget: t in seconds; None is the time of a step of the exact ELBO.
        vectorize: see :class:`~pyro_gvae.diagnostics.probe.Probe`.
        **options: given to the named estimators that know them, such as `kl` or `max_memory`.

    Returns:
        One row for each (estimator, temperature, wrt).

    Raises:
        ValueError: if the exact gradient cannot be computed, or samples are fewer than two for each group.

    Example:
        >>> from pyro_gvae import CategoricalVAE
        >>> vae = CategoricalVAE(data_dim=6, num_latents=2, num_categories=3, hidden=(5,))
        >>> report = gradient_report(vae, torch.ones(4, 6), ["exact", "gumbel-softmax"], wrt=["logits"], num_samples=64)
        >>> bool(report["relative_bias"][0] == 0) and bool(report["mse"][1] > 0)
        True
    """
    check_samples(num_samples, num_parameter_samples)
    subject = make_subject(vae, x, dtype=dtype)
    grid = candidates(estimators, temperatures=temperatures, **options)
    clock = make_clock(subject)
    [exact] = candidates(["exact"], **options)
    rows = []
    for kind in wrt:
        bench = Bench(
            subject,
            kind,
            exact_reference(subject, exact.make(), kind, seed=seed),
            num_samples=num_samples if kind == "logits" else num_parameter_samples,
            clock=clock,
            budget=clock(exact) if budget is None else budget,
            seed=seed,
            vectorize=vectorize,
        )
        rows += [measure(bench, candidate) for candidate in grid]
    return pd.DataFrame(rows)


def check_samples(*counts: int) -> None:
    """Refuse fewer estimates than standard errors need."""
    for count in counts:
        if count < 2 * NUM_GROUPS:
            raise ValueError(f"Expected at least {2 * NUM_GROUPS} samples, two for each group, but found {count}.")


class Bench(NamedTuple):
    """All that the rows of a report have in common: see :func:`gradient_report`."""

    subject: Subject
    wrt: Wrt
    reference: Reference | None
    num_samples: int
    clock: Clock
    budget: float
    seed: int = 0
    vectorize: bool = True


def measure(bench: Bench, candidate: Candidate) -> dict[str, Any]:
    """One row of :func:`gradient_report`; without a reference, what compares with it is empty."""
    row: dict[str, Any] = {"estimator": candidate.name, "temperature": candidate.temperature, "wrt": bench.wrt}
    try:
        chosen = candidate.make()
        row |= {"approximates": chosen.approximates, "unbiased": chosen.is_unbiased}
        num_samples = 1 if chosen.is_exact else bench.num_samples
        found = sample_moments(
            bench.subject,
            chosen,
            wrt=bench.wrt,
            reference=bench.reference,
            num_samples=num_samples,
            num_groups=min(NUM_GROUPS, num_samples),
            seed=bench.seed,
            vectorize=bench.vectorize,
        )
        seconds = bench.clock(candidate)
    except ValueError as refusal:
        return row | dict.fromkeys(COLUMNS) | {"refused": str(refusal).split("\n")[0]}
    reference = bench.reference or Reference(torch.full_like(found.total[0], torch.nan), name="none")
    numbers = summarize(found, reference, samples_per_budget=bench.budget / seconds)
    if not chosen.objective.is_elbo:
        numbers |= dict.fromkeys(COMPARED, math.nan)
    row |= {"reference": reference.name, "samples": num_samples, "seconds": seconds, "budget": bench.budget}
    return row | {name: numbers[name] for name in COLUMNS} | {"refused": None}


def exact_reference(subject: Subject, exact: Estimator, wrt: Wrt, *, term: Term = "elbo", seed: int = 0) -> Reference:
    """The gradient of the exact ELBO, or of its reconstruction term alone."""
    with seeded(seed):
        return Reference(Probe(subject, exact, wrt=wrt, term=term)()[0])


def sample_moments(
    subject: Subject,
    chosen: Estimator,
    *,
    reference: Reference | None,
    num_samples: int,
    num_groups: int,
    wrt: Wrt = "logits",
    term: Term = "elbo",
    seed: int = 0,
    vectorize: bool = True,
) -> Moments:
    """Sums over seeded estimates of a gradient."""
    with seeded(seed):
        probe = Probe(subject, chosen, wrt=wrt, term=term, vectorize=vectorize)
        first = probe()
        against = torch.full_like(first[0], torch.nan) if reference is None else reference.gradient
        sizes = _split(num_samples - 1, probe.most_repeats)
        blocks = itertools.chain([first], map(probe, sizes))
        return gather(blocks, against, num_samples=num_samples, num_groups=num_groups)


def _split(total: int, most: int) -> list[int]:
    """Equal parts of `most` at most, since equal shapes are planned once.

    Example:
        >>> _split(10, 4)
        [4, 3, 3]
    """
    parts = -(-total // most)
    return [total // parts + (i < total % parts) for i in range(parts)]
