"""Split the distance from the training objective to log p(x) into relaxation, amortization and mean-field gap."""

from typing import Any, NamedTuple

import pyro
import torch
from pyro import poutine
from pyro.poutine.trace_struct import Trace
from pyro.poutine.util import site_is_subsample
from torch import Size, Tensor

from .. import exact
from ..exact import HasPair
from ..handlers import relax
from ..handlers.parameters import OwnParameters
from ..handlers.sites import Kind
from ..programs.batches import Batch, arguments
from ..programs.factors import add
from ..programs.layout import lay_out
from ..programs.look import look
from ..programs.modes import judging
from ..programs.runs import bind_pair
from .code_statistics import information_of_each, table_of_each
from .guides import read_guide

#: The bounds from the relaxed bound to log p(x); each gap is the difference of two neighbours.
BOUNDS = ("relaxed_bound", "elbo", "mean_field_elbo", "log_evidence")
GAPS = {
    "relaxation_gap": "relaxation: exact ELBO of the guide - relaxed bound",
    "amortization_gap": "amortization: ELBO of the best mean-field posterior - exact ELBO of the guide",
    "mean_field_gap": "mean field: log p(x) - ELBO of the best mean-field posterior",
}
#: KL(aggregated posterior || prior), a part of the mean KL of the ELBO; the other part is I(x; z).
PRIOR_GAP = "prior_gap"


class Gaps(NamedTuple):
    """Bounds on log p(x) for each datum, all (B,), in nats; fewer numbers if data share a latent.

    Attributes:
        relaxed_bound: the relaxed ELBO. None if there are integers or excluded categories, which have no relaxation,
            or latents that the guide lacks and so cannot draw.
        elbo: the exact ELBO of the guide.
        mean_field_elbo: the exact ELBO of the best mean-field posterior.
        log_evidence: log p(x).
        prior_gap: each datum's term of KL(aggregated posterior || prior); None if data share latents or codes are too
            many.
    """

    relaxed_bound: Tensor | None
    elbo: Tensor
    mean_field_elbo: Tensor
    log_evidence: Tensor
    prior_gap: Tensor | None = None


@judging
@torch.no_grad()
def gaps(
    pair: HasPair,
    x: Batch,
    *,
    num_particles: int = 100,
    temperature: float | None = None,
    max_memory: float | None = None,
) -> Gaps:
    """Compute bounds on log p(x) of one trained pair, from the objective of relaxed training to the exact evidence.

    relaxed bound -> exact ELBO of the guide -> ELBO of the best mean-field posterior -> log p(x). The differences are
    the relaxation gap (of either sign, because the relaxed bound is a bound for another, relaxed model), the
    amortization gap (lost because the encoder does not optimize each datum separately; Cremer et al. 2018, arXiv
    1801.03558) and the mean-field gap (lost because the latents are independent). In the best mean-field posterior all
    digits of all latents are independent. If the latents of the guide depend on each other, its amortization gap
    compares it with a posterior of another family, and is negative if the dependence gains more than the encoder loses.
    The same holds for latents that the guide lacks: the ELBO sums them as if it had their exact posterior given the
    others.

    The *prior gap* is not a difference of two bounds, but a part of the ELBO's KL, whose mean over data is I(x; z) +
    KL(aggregated posterior || prior) (Hoffman and Johnson 2016, *ELBO surgery*), for the aggregated posterior of these
    data. A better prior closes it, without any change of encoder and decoder.

    Args:
        pair: a `CategoricalVAE`, or a pair of programs with discrete latents.
        x: data (B, D), or a tuple or dictionary of all arguments of the programs.
        num_particles: P, the number of relaxed samples per datum; nothing else is sampled.
        temperature: the temperature of the relaxed samples; if None, each site has its own.
        max_memory: bytes that the exact sums may use.

    Returns:
        The four bounds and the prior gap, each (B,), in nats.

    Raises:
        ValueError: if there are too many codes, a latent is continuous, or no temperature is known.

    Example:
        >>> from pyro_gvae import CategoricalVAE
        >>> vae, x = CategoricalVAE(data_dim=6, num_latents=2, num_categories=3, hidden=(5,)), torch.ones(4, 6)
        >>> found = gaps(vae, x, num_particles=3)
        >>> bool((found.elbo <= found.mean_field_elbo + 1e-5).all() and (found.elbo <= found.log_evidence).all())
        True
    """
    found = exact.bounds(pair, x, max_memory=max_memory)
    seen = look(bind_pair(pair, x))
    sites = [*seen.model.discrete.values(), *seen.guide.discrete.values()]
    has_relaxation = all(site.kind is not Kind.INTEGER and site.natural.isfinite().all() for site in sites)
    options = {"num_particles": num_particles, "temperature": temperature}
    return Gaps(
        relaxed_bound(pair, x, **options) if has_relaxation and not seen.alone else None,
        found.elbo,
        exact.mean_field(pair, x, max_memory=max_memory).elbo,
        found.log_evidence,
        prior_gap(pair, x),
    )


@judging
@torch.no_grad()
def prior_gap(pair: HasPair, x: Batch) -> Tensor | None:
    r"""Compute :math:`\mathrm{E}_{q(z | x_b)}[\log \bar q(z) - \log p(z)]` of each datum for the aggregated posterior.

    Its mean over data is KL(aggregated posterior || prior) for the guide and these data.

    Args:
        pair: model and guide, whose latents are all discrete.
        x: data (B, D), or a tuple or dictionary of all arguments of the programs.

    Returns:
        Shape (B,), in nats; None if data share a latent, or there are too many codes to sum over.

    Example:
        >>> from pyro_gvae import CategoricalVAE
        >>> vae, x = CategoricalVAE(data_dim=6, num_latents=2, num_categories=3, hidden=(5,)), torch.ones(4, 6)
        >>> prior_gap(vae, x).shape
        torch.Size([4])
    """
    guided = read_guide(pair, x)
    kl = add(guided.kls.values())  # (B,)
    if not guided.is_exact or any(len(own) < len(kl) for own in guided.log_probs.values()):
        return None
    of_each = information_of_each(guided.log_probs) if guided.is_factorized else table_of_each(guided.table)
    return None if of_each is None else kl - of_each


@judging
@torch.no_grad()
def relaxed_bound(pair: HasPair, x: Batch, *, num_particles: int = 100, temperature: float | None = None) -> Tensor:
    """Estimate E_q[log p(x | z) + log p(z) - log q(z | x)] of each datum, which is minus the loss of `Trace_ELBO`.

    Args:
        pair: model and guide, whose discrete latents are one-hots and bits.
        x: data (B, D), or a tuple or dictionary of all arguments of the programs.
        num_particles: P, the number of samples per datum.
        temperature: the temperature of the samples; if None, each site must have its own.

    Returns:
        The mean over P samples, shape (B,), in nats; if data share a latent, one number for each cell of its plates.
    """
    given = arguments(x)
    layout = lay_out(bind_pair(pair, x))
    shape = layout.levels[0].shape
    is_one = not (layout.guide_depends or layout.has_continuous)  # all latents are drawn independently
    model, guide = (relax(program, temperature=temperature) for program in (pair.model, pair.guide))
    total = torch.zeros(shape, dtype=layout.dtype, device=layout.device)
    store = pyro.get_param_store()
    with store.scope(store.get_state()), OwnParameters():
        guide_trace: Trace | None = None
        for _ in range(num_particles):
            if guide_trace is not None and is_one and not _has_minibatch(guide_trace):
                guide_trace = _drawn_again(guide_trace)
            else:
                guide_trace = poutine.trace(guide).get_trace(*given.args, **given.kwargs)
            model_trace = poutine.trace(poutine.replay(model, trace=guide_trace)).get_trace(*given.args, **given.kwargs)
            for trace, sign in ((model_trace, 1), (guide_trace, -1)):
                trace.compute_log_prob()
                for site in trace.nodes.values():
                    if "log_prob" in site:
                        total += sign * _in_shape(site["log_prob"], shape)
    return total.reshape([size for size in shape if size > 1] or ()) / num_particles


def _has_minibatch(trace: Trace) -> bool:
    plates = [site for site in trace.nodes.values() if site_is_subsample(site)]
    return any(len(site["value"]) < site["fn"].size for site in plates)  # type: ignore[arg-type,attr-defined]


def _drawn_again(trace: Trace) -> Trace:
    """Draw the independent latents of a guide again, without running its networks."""
    drawn = trace.copy()
    for name in trace.stochastic_nodes:
        site = trace.nodes[name]
        if site_is_subsample(site):
            continue
        kept: Any = {key: value for key, value in site.items() if "log_prob" not in key}
        drawn.nodes[name] = kept | {"value": site["fn"](*site["args"], **site["kwargs"])}
    return drawn


def _in_shape(log_prob: Tensor, shape: Size) -> Tensor:
    """Sum a log-probability over plates that the shape lacks, and divide it among all cells that share it."""
    padded = log_prob.reshape((1,) * (len(shape) - log_prob.dim()) + log_prob.shape)
    own = padded.shape[padded.dim() - len(shape) :]
    summed = padded.sum_to_size([size if size == wanted else 1 for size, wanted in zip(own, shape, strict=True)])
    return summed / (shape.numel() // summed.numel())


def summarize_gaps(found: Gaps) -> dict[str, float]:
    """Compute the mean over data and its standard error of each bound and each gap, in nats per datum.

    Without a relaxed bound there is no relaxation gap, and without a sum over codes there is no prior gap.

    Example:
        >>> two = torch.tensor([-3.0, -5.0])
        >>> row = summarize_gaps(Gaps(two - 1, two, two + 0.5, two + 0.5))
        >>> row["elbo"], row["elbo_se"], row["relaxation_gap"], row["relaxation_gap_se"], row["amortization_gap"]
        (-4.0, 1.0, 1.0, 0.0, 0.5)
    """
    *bounds, gap = found
    values = {name: bound for name, bound in zip(BOUNDS, bounds, strict=True) if bound is not None}
    for name, lower, upper in zip(GAPS, bounds[:-1], bounds[1:], strict=True):
        if lower is not None and upper is not None:
            values[name] = upper - lower
    if gap is not None:
        values[PRIOR_GAP] = gap
    return {
        key: number
        for name, value in values.items()
        for key, number in ((name, value.mean().item()), (f"{name}_se", (value.std() / len(value) ** 0.5).item()))
    }
