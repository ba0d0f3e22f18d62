"""Split the distance from the training objective to log p(x) into relaxation, amortization and mean-field gap."""

from typing import NamedTuple

import pyro
import torch
from pyro import poutine
from torch import Tensor

from .. import exact
from ..exact import HasPair
from ..handlers import relax
from ..programs.modes import judging

#: From the relaxed bound to log p(x); each gap is the difference of two neighbours.
BOUNDS = ("relaxed_bound", "elbo", "mean_field_elbo", "log_evidence")
GAPS = {
    "relaxation_gap": "relaxation: exact ELBO of the guide - relaxed bound",
    "amortization_gap": "amortization: ELBO of the best mean-field posterior - exact ELBO of the guide",
    "mean_field_gap": "mean field: log p(x) - ELBO of the best mean-field posterior",
}


class Gaps(NamedTuple):
    """Bounds of log p(x) for each datum, all (B,), in nats."""

    relaxed_bound: Tensor
    elbo: Tensor
    mean_field_elbo: Tensor
    log_evidence: Tensor


@judging
@torch.no_grad()
def gaps(pair: HasPair, x: Tensor, *, num_particles: int = 100, max_memory: float | None = None) -> Gaps:
    """Compute the bounds of log p(x) of one trained pair, from the objective of relaxed training to the exact evidence.

    relaxed bound -> exact ELBO of the guide -> ELBO of the best mean-field posterior -> log p(x). The differences are
    the relaxation gap (of either sign, because the relaxed bound is a bound for another, relaxed model), the
    amortization gap (lost because the encoder does not optimize each datum separately; Cremer et al. 2018, arXiv
    1801.03558) and the mean-field gap (lost because the latents are independent).

    Args:
        pair: a `CategoricalVAE`, or a pair of programs with one factorized one-hot site that has a temperature.
        x: data (B, D).
        num_particles: P, the number of relaxed samples per datum; nothing else is sampled.
        max_memory: bytes that the exact sums may use.

    Returns:
        The four bounds, each (B,), in nats.

    Raises:
        ValueError: if there are too many codes.
    """
    found = exact.bounds(pair, x, max_memory=max_memory)
    return Gaps(
        relaxed_bound(pair, x, num_particles=num_particles),
        found.elbo,
        exact.mean_field(pair, x, max_memory=max_memory).elbo,
        found.log_evidence,
    )


@judging
@torch.no_grad()
def relaxed_bound(pair: HasPair, x: Tensor, *, num_particles: int = 100) -> Tensor:
    """Estimate E_q[log p(x | z) + log p(z) - log q(z | x)] of each datum by relaxed samples: minus `Trace_ELBO`'s loss.

    Args:
        pair: model and guide, relaxed or with a temperature at their sites.
        x: data (B, D).
        num_particles: P, the number of samples per datum.

    Returns:
        The mean over P samples, shape (B,), in nats.
    """
    total = torch.zeros(len(x), dtype=x.dtype, device=x.device)
    with pyro.get_param_store().scope():
        for _ in range(num_particles):
            guide_trace = poutine.trace(relax(pair.guide)).get_trace(x)
            model_trace = poutine.trace(poutine.replay(relax(pair.model), trace=guide_trace)).get_trace(x)
            for trace, sign in ((model_trace, 1), (guide_trace, -1)):
                trace.compute_log_prob()
                total += sign * sum(site["log_prob"] for site in trace.nodes.values() if "log_prob" in site)
    return total / num_particles


def summarize_gaps(found: Gaps) -> dict[str, float]:
    """Compute the mean over data and its standard error of each bound and each gap, in nats per datum.

    Example:
        >>> two = torch.tensor([-3.0, -5.0])
        >>> row = summarize_gaps(Gaps(two - 1, two, two + 0.5, two + 0.5))
        >>> row["elbo"], row["elbo_se"], row["relaxation_gap"], row["relaxation_gap_se"], row["amortization_gap"]
        (-4.0, 1.0, 1.0, 0.0, 0.5)
    """
    values = dict(zip(BOUNDS, found, strict=True))
    for name, lower, upper in zip(GAPS, found[:-1], found[1:], strict=True):
        values[name] = upper - lower
    return {
        key: number
        for name, value in values.items()
        for key, number in ((name, value.mean().item()), (f"{name}_se", (value.std() / len(value) ** 0.5).item()))
    }
