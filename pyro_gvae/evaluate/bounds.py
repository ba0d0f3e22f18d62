"""ELBO and log p(x), or bounds of it, of programs whose latents are not one one-hot site."""

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from .. import exact
from ..exact import HasPair
from ..exact.plan import MOST_CODES
from ..programs.factors import Layout
from .code_statistics import Measured, mean_over_data
from .collapsed import collapsed_importance_weighted
from .importance import importance_weighted

#: How to compute log p(x): as the sum over all codes, by importance sampling, or (auto) as the sum if it is feasible.
Evidence = Literal["auto", "exact", "importance-weighted"]
#: The most joint codes that are summed for each draw of continuous latents.
MOST_COLLAPSED_CODES = 1024


class Row(NamedTuple):
    """One number of an evaluation."""

    metric: str
    measured: Measured
    unit: str
    method: str = "exact"


def bound_rows(
    pair: HasPair,
    x: Tensor,
    layout: Layout,
    *,
    evidence: Evidence,
    num_particles: int,
    max_operations: float,
    max_memory: float | None,
) -> tuple[list[Row], list[str]]:
    """Compute the bounds of one part of the data, and warnings of those that are unreliable.

    These are `elbo` and `log_evidence`, if the codes are summed; else `elbo` and `iwae_bound`, and also
    `collapsed_iwae_bound` if at most 1024 codes stand beside continuous latents: see
    :func:`~pyro_gvae.evaluate.collapsed.collapsed_importance_weighted`.

    Args:
        pair: programs.
        x: data.
        layout: what is known of the programs.
        evidence: how to compute log p(x).
        num_particles: P, the number of samples of each datum.
        max_operations: most operations of an exact sum, if "auto".
        max_memory: bytes that sums and samples may use.
    """
    is_summed = evidence == "exact" or (
        evidence == "auto"
        and not layout.has_continuous
        and layout.space.num_codes <= MOST_CODES
        and exact.cost(pair, x, max_memory=max_memory).operations <= max_operations
    )
    if is_summed:
        with torch.no_grad():
            found = exact.bounds(pair, x, max_memory=max_memory)
        values = {"elbo": found.elbo, "log_evidence": found.log_evidence}
        return [Row(name, _per_datum(value, len(x)), "nats") for name, value in values.items()], []
    sampled = importance_weighted(pair, x, num_particles, max_memory=max_memory)
    method = f"{num_particles} samples"
    rows = [
        Row("elbo", _per_datum(sampled.elbo, len(x)), "nats", method),
        Row("iwae_bound", _per_datum(sampled.bound, len(x)), "nats", method),
        *_size_rows("effective_sample_size", sampled.effective_sample_size, method),
    ]
    if layout.has_continuous and not layout.is_shared and layout.space.num_codes <= MOST_COLLAPSED_CODES:
        collapsed = collapsed_importance_weighted(pair, x, num_particles, max_memory=max_memory)
        method += ", codes summed"
        rows.append(Row("collapsed_iwae_bound", _per_datum(collapsed.bound, len(x)), "nats", method))
        rows += _size_rows("collapsed_effective_sample_size", collapsed.effective_sample_size, method)
    return rows, sampled.warnings()


def _per_datum(values: Tensor, num_data: int) -> Measured:
    """Return the mean over data; data that share latents have one number together, without a standard error."""
    if values.numel() == num_data:
        return mean_over_data(values.flatten())
    return Measured(values.double().sum().item() / num_data)


def _size_rows(name: str, sizes: Tensor, method: str) -> list[Row]:
    least = Measured(sizes.min().item())
    return [
        Row(name, Measured(sizes.double().mean().item()), "samples", method),
        Row(f"least_{name}", least, "samples", method),
    ]
