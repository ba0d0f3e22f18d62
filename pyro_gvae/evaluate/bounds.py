"""Compute the ELBO and log p(x) of a pair on some data, or bounds on log p(x)."""

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from .. import exact
from ..exact import HasPair
from ..exact.costs import operations
from ..exact.plan import MOST_CODES
from ..programs.batches import Batch, num_data
from ..programs.look import Look
from .certified import certified_bounds
from .code_statistics import Measured, mean_over_data
from .collapsed import collapsed_importance_weighted
from .importance import importance_weighted

#: How to compute log p(x): as the sum over all codes, by importance sampling, or (auto) as the sum if it is feasible.
Evidence = Literal["auto", "exact", "importance-weighted"]
#: The largest number of joint codes that are summed for each draw of continuous latents.
MOST_COLLAPSED_CODES = 1024


class Row(NamedTuple):
    """One number of an evaluation.

    Attributes:
        metric: its name.
        measured: the number and its standard error.
        unit: "nats", for example.
        method: how it was computed, "exact" for example.
    """

    metric: str
    measured: Measured
    unit: str
    method: str = "exact"


class BoundRows(NamedTuple):
    """The bounds of one part of the data.

    Attributes:
        rows: `elbo` and `log_evidence` if the codes are summed; else `elbo`, `iwae_bound` and its effective sample
            size. For continuous latents with at most 1024 codes, also `collapsed_iwae_bound` and its effective sample
            size: see :func:`~pyro_gvae.evaluate.collapsed.collapsed_importance_weighted`. If all latents are discrete,
            none is in a chain, and data share none, also `lower_bound` and `upper_bound`, which are certain and use as
            many codes as samples: see :func:`~pyro_gvae.evaluate.certified.certified_bounds`.
        elbo: the ELBO of each datum, (B,); fewer numbers if data share latents.
        method: how the ELBO was computed.
        warnings: sentences that name unreliable bounds.
    """

    rows: list[Row]
    elbo: Tensor
    method: str
    warnings: list[str]


def is_summable(
    pair: HasPair, chunks: Sequence[Batch], seen: Look, max_operations: float, max_memory: float | None
) -> bool:
    """Return whether an exact sum over the codes of all data takes at most `max_operations` operations.

    Args:
        pair: model and guide.
        chunks: the data; the operations of all are extrapolated from the first chunk.
        seen: the result of a first look at the programs.
        max_operations: the largest number of operations.
        max_memory: bytes that a slice may use.
    """
    if seen.given or (seen.num_codes > MOST_CODES and not seen.needs_axes):
        return False
    sizes = [num_data(chunk) for chunk in chunks]
    try:
        taken = operations(pair, chunks[0], max_memory=max_memory)
    except ValueError:
        if seen.alone or not seen.needs_axes:
            raise
        return False  # a chain that cannot be summed can be drawn
    return taken * sum(sizes) / sizes[0] <= max_operations


def summed_bounds(
    pair: HasPair, chunks: Sequence[Batch], mean: Callable[[Tensor], Measured], max_memory: float | None
) -> BoundRows:
    """Compute the exact bounds of one part of the data.

    Args:
        pair: model and guide.
        chunks: the data; data of different chunks share no latent.
        mean: a function that computes the mean over data.
        max_memory: bytes that sums may use.
    """
    with torch.no_grad():
        found = [exact.bounds(pair, rows, max_memory=max_memory) for rows in chunks]
    elbo, log_evidence = (torch.cat([own.reshape(-1) for own in values]) for values in zip(*found, strict=True))
    rows = [Row("elbo", mean(elbo), "nats"), Row("log_evidence", mean(log_evidence), "nats")]
    return BoundRows(rows, elbo, "exact", [])


def sampled_bounds(
    pair: HasPair,
    x: Batch,
    seen: Look,
    mean: Callable[[Tensor], Measured],
    num_particles: int,
    max_memory: float | None,
) -> BoundRows:
    """Estimate the bounds of one part of the data.

    Args:
        pair: model and guide.
        x: the data.
        seen: the result of a first look at the programs.
        mean: a function that computes the mean over data.
        num_particles: P, the number of samples of each datum.
        max_memory: bytes that samples may use.
    """
    sampled = importance_weighted(pair, x, num_particles, max_memory=max_memory)
    method = f"{num_particles} samples"
    rows = [
        Row("elbo", mean(sampled.elbo), "nats", method),
        Row("iwae_bound", mean(sampled.bound), "nats", method),
        *_size_rows("effective_sample_size", sampled.effective_sample_size, method),
    ]
    if _has_collapsed(seen):
        collapsed = collapsed_importance_weighted(pair, x, num_particles, max_memory=max_memory)
        of_sums = f"{method}, codes summed"
        rows.append(Row("collapsed_iwae_bound", mean(collapsed.bound), "nats", of_sums))
        rows += _size_rows("collapsed_effective_sample_size", collapsed.effective_sample_size, of_sums)
    if not (seen.given or seen.is_shared or seen.needs_axes):
        certain = certified_bounds(pair, x, num_particles, max_memory=max_memory)
        by_codes = f"certain, {certain.num_codes} codes"
        rows.append(Row("lower_bound", mean(certain.lower), "nats", by_codes))
        if certain.upper is not None:
            rows.append(Row("upper_bound", mean(certain.upper), "nats", by_codes))
    return BoundRows(rows, sampled.elbo, method, sampled.warnings())


def _has_collapsed(seen: Look) -> bool:
    """Return whether the pair has continuous latents, and few enough codes to sum over for each draw of them."""
    if not seen.given or not seen.guide.discrete:
        return False
    return seen.needs_axes or (not seen.is_shared and seen.num_codes <= MOST_COLLAPSED_CODES)


def per_datum(values: Tensor, *, num_data: int, apart: bool) -> Measured:
    """Return the mean over data; if data share latents, without a standard error."""
    if apart and values.numel() == num_data:
        return mean_over_data(values.flatten())
    return Measured(values.double().sum().item() / num_data)


def _size_rows(name: str, sizes: Tensor, method: str) -> list[Row]:
    return [
        Row(name, mean_over_data(sizes.flatten()), "samples", method),
        Row(f"least_{name}", Measured(sizes.min().item()), "samples", method),
    ]
