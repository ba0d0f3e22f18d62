"""Measure gradients exactly as the ReinMax papers do, so that numbers can be compared with theirs."""

import math
from collections.abc import Sequence
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from ..estimators import Estimator, estimator
from ..exact import HasPair
from .candidates import Candidate, candidates
from .moments import Reference
from .probe import Problem, is_deterministic, make_problem
from .references import exact_reference, sample_moments


def reinmax_protocol(
    vae: HasPair,
    x: Tensor,
    estimators: Sequence[str | Estimator],
    *,
    temperatures: Sequence[float] = (1.0,),
    num_samples: int = 1024,
    dtype: torch.dtype | None = None,
    seed: int = 0,
    **options: Any,
) -> pd.DataFrame:
    """Measure gradient fidelity as the ReinMax code does (Liu et al. 2023, arXiv 2304.08612; there for K=8, N=4).

    Only the gradient of the reconstruction term E_q[log p(x|z)] with respect to the encoder's logits is measured. The
    exact gradient, a sum over all codes, is compared with mean and standard deviation of single-sample estimates on the
    images x, at temperature 1. :func:`fidelity` has the definitions of the published figures, without any correction
    for noise.

    To isolate the reconstruction term, the prior is replaced by q, held fixed (see
    :class:`~pyro_gvae.diagnostics.probe.Probe`). For estimators with the analytic KL this equals the published code;
    for those that sample the KL, its noise, of mean 0, stays in their standard deviation.

    Args:
        vae: a `CategoricalVAE`, or a pair of programs whose latents are discrete, and independent in the guide.
        x: the first s images (s, D).
        estimators: names in the registry, or estimators.
        temperatures: temperatures for the named estimators that have one.
        num_samples: number of single-sample estimates.
        dtype: the type to compute in; None keeps the program's.
        seed: seed of the samples.
        **options: options passed to those named estimators that accept them; `kl="categorical"` is the published
            objective.

    Returns:
        One row for each (estimator, temperature): relative bias, relative s.d., cosine; or the error in `refused`.
        Estimators of an objective other than the ELBO have only their relative s.d.

    Raises:
        ValueError: if the exact gradient cannot be computed.
    """
    problem = make_problem(vae, x, dtype=dtype)
    truth = exact_reference(problem, estimator("exact"), "logits", term="reconstruction", seed=seed)
    grid = candidates(estimators, temperatures=temperatures, **options)
    return pd.DataFrame([reinmax_row(problem, one, truth, num_samples=num_samples, seed=seed) for one in grid])


def reinmax_row(
    problem: Problem, candidate: Candidate, truth: Reference, *, num_samples: int = 1024, seed: int = 0
) -> dict[str, Any]:
    """Measure one row of :func:`reinmax_protocol`."""
    row: dict[str, Any] = {"estimator": candidate.name, "temperature": candidate.temperature, "wrt": "logits"}
    try:
        chosen = candidate.make()
        found = sample_moments(
            problem,
            chosen,
            reference=truth,
            num_samples=1 if is_deterministic(problem, chosen) else num_samples,
            num_groups=1,
            term="reconstruction",
            seed=seed,
        )
    except ValueError as refusal:
        return row | {"refused": str(refusal).split("\n")[0]}
    numbers = fidelity(truth.gradient.double(), found.mean, found.variance.sqrt())
    if not chosen.objective.is_elbo:
        numbers |= {"relative_bias": math.nan, "cosine": math.nan}
    row["approximates"] = chosen.approximates
    return row | {"images": problem.num_data, "samples": int(found.counts.sum())} | numbers | {"refused": None}


def fidelity(exact: Tensor, mean: Tensor, std: Tensor) -> dict[str, float]:
    """Return ||exact - mean|| / ||exact||, ||std|| / ||mean||, and the cosine of exact and mean, for flat tensors (M,).

    Example:
        >>> found = fidelity(torch.tensor([3.0, 4.0]), torch.tensor([3.0, 0.0]), torch.tensor([0.0, 6.0]))
        >>> {name: round(value, 3) for name, value in found.items()}
        {'relative_bias': 0.8, 'relative_std': 2.0, 'cosine': 0.6}
    """
    return {
        "relative_bias": float((exact - mean).norm() / exact.norm()),
        "relative_std": float(std.norm() / mean.norm()),
        "cosine": float(torch.cosine_similarity(exact, mean, dim=0)),
    }
