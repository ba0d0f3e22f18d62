"""Bound log p(x) by importance sampling with the guide, for models with too many codes for an exact sum."""

import math
from collections.abc import Collection, Iterator
from itertools import chain
from typing import NamedTuple

import torch
from torch import Tensor

from ..config.checks import check_particles
from ..distributions.codes import hamming_neighbours
from ..exact.sizes import bytes_of_code
from ..programs.batches import Batch, num_data, tensors
from ..programs.choices import latent_values, most_probable
from ..programs.draws import draw, lay_out_draws
from ..programs.joint import joint_scores
from ..programs.layout import lay_out
from ..programs.look import Look, look
from ..programs.modes import judging, without_trace
from ..programs.pair import HasPair
from ..programs.rows import ONLY_ALL, in_parts
from ..programs.runs import bind_pair
from ..programs.site import Codes
from ..programs.target import Target
from ..programs.values import spread
from ..runtime.memory import memory_limit, return_freed_memory
from ..runtime.tuning import tuning
from .weights import has_cells, summed_weights

#: With fewer effective samples than this, a bound is more than 1 / 20 nats below log p(x), to first order.
FEW_EFFECTIVE_SAMPLES = 10
#: If codes near the guide's mode exceed a bound by this many nats, its samples have missed them.
MISSED_NATS = 0.1
#: Warn if more than this fraction of the data have an unreliable bound.
WARNING_FRACTION = 0.01
#: Slices of neighbours to score before freed memory is returned to the system, which takes time.
SLICES_PER_RETURN = 8


class ImportanceWeighted(NamedTuple):
    """Estimates from P samples of each datum, in nats.

    Attributes:
        elbo: the mean of log w, an unbiased estimate of the ELBO, (B,).
        bound: the log of the mean of w, at most log p(x) in expectation, (B,).
        effective_sample_size: a number between 1 and P for each datum, (B,).
        neighbourhood: log of the sum of p(x, z) over the guide's mode and all codes that differ in one digit, (B,).
            None for continuous latents, if data share a latent, and if the guide lacks latents.
        num_particles: P.
        scale: the scale of the programs, which multiplies all numbers of a datum but the sample size, (B,) or one.
    """

    elbo: Tensor
    bound: Tensor
    effective_sample_size: Tensor
    neighbourhood: Tensor | None
    num_particles: int
    scale: Tensor = torch.ones(())

    @property
    def sampling_error(self) -> Tensor:
        """The standard error (B,) of each bound due to sampling, to first order (delta method)."""
        return self.scale.abs() * (1 / self.effective_sample_size - 1 / self.num_particles).clamp_min(0).sqrt()

    def warnings(self) -> list[str]:
        """List warnings, if more than one datum in a hundred has a bound that may be far below log p(x).

        - Fewer than 10 effective samples: the bias of the bound, -(1 / ESS - 1 / P) / 2 to first order (Domke and
          Sheldon 2018, arXiv 1808.09034), is no longer small.
        - The neighbourhood, a lower bound on log p(x), exceeds the bound by 0.1 nats: the samples have missed important
          codes. The weights cannot show this (Chatterjee and Diaconis 2018, arXiv 1511.01437).
        """
        few = self.effective_sample_size < FEW_EFFECTIVE_SAMPLES
        near = self.bound if self.neighbourhood is None else self.neighbourhood
        missed = near > self.bound + MISSED_NATS * self.scale
        of_all = f"P = {self.num_particles}"
        counts = {
            f"fewer than {FEW_EFFECTIVE_SAMPLES} effective samples of {of_all}": int(few.sum()),
            f"probable codes near the guide's mode that {of_all} samples have missed": int(missed.sum()),
        }
        return [
            f"{count} of {self.bound.numel()} data have {what}: their importance-weighted bounds are below log p(x) by "
            "an unknown amount. Try more particles."
            for what, count in counts.items()
            if count > WARNING_FRACTION * self.bound.numel()
        ]


@judging
@torch.no_grad()
def importance_weighted(
    pair: HasPair, x: Batch, num_particles: int = 1000, *, max_memory: float | None = None
) -> ImportanceWeighted:
    r"""Compute the importance-weighted bound on log p(x) of the discrete model, for each datum.

    .. math::

        \log \frac{1}{P} \sum_p w_p, \quad w_p = \frac{p(x, z_p)}{q(z_p | x)}, \quad z_p \sim q(z | x), \qquad
        \mathrm{ESS} = \frac{(\sum_p w_p)^2}{\sum_p w_p^2}

    (Burda, Grosse, Salakhutdinov 2016, arXiv 1509.00519, eq. 8; the effective sample size is that of Kong 1992.) Codes
    are hard, whichever estimator trained the pair. The bound grows with P and tends to log p(x). Discrete latents that
    the guide lacks are summed for each sample: p(x, z_p) is the sum over them.

    Args:
        pair: a `CategoricalVAE`, or a `Pair` of programs with any latents that accept any number of data.
        x: data (B, D), or a tuple or dictionary of all arguments of the programs.
        num_particles: P, the number of samples of each datum.
        max_memory: bytes that scoring may use; 4 GB if None. Samples and data are scored in chunks that fit.

    Returns:
        The estimates, with the programs' scale and mask applied. Data that share a latent have a single joint number:
        (1,) for a global latent. No gradient.

    Raises:
        ValueError: if `num_particles` is below 1, or the programs scale prior, likelihood and guide differently.

    Example:
        >>> from pyro_gvae import CategoricalVAE, exact
        >>> vae, x = CategoricalVAE(data_dim=6, num_latents=2, num_categories=3, hidden=(5,)), torch.ones(4, 6)
        >>> found = importance_weighted(vae, x, num_particles=2000)
        >>> bool(((found.bound - exact.log_evidence(vae, x)).abs() < 5 * found.sampling_error + 1e-4).all())
        True
    """
    check_particles(num_particles)
    parts, near = [], []
    if _lacks_latents(pair, x):
        parts = [summary(*one) for one in summed_weights(pair, x, num_particles, max_memory, _all_of_guide)]
    else:
        for target, size in targets(pair, x, num_particles, max_memory):
            log_weights, scale = _log_weights(target, num_particles, size)
            parts.append(summary(log_weights, scale))
            if not (target.layout.has_continuous or target.layout.is_shared):
                near.append(scale * _log_neighbourhood(target, size))
    elbo, bound, effective, scales = (torch.cat(part) for part in zip(*parts, strict=True))
    return ImportanceWeighted(elbo, bound, effective, torch.cat(near) if near else None, num_particles, scales)


@judging
@torch.no_grad()
def log_importance_weights(
    pair: HasPair, x: Batch, num_particles: int = 1000, *, max_memory: float | None = None
) -> Tensor:
    r"""Sample the log-weights behind :func:`importance_weighted`: log p(x, z) - log q(z | x), z ~ q(z | x).

    Their mean estimates the ELBO, and their log-mean-exp bounds log p(x). Unlike :func:`importance_weighted`, this does
    not score the guide's mode and its N (K - 1) neighbours, which show whether the samples have missed important codes:
    with many categories, they outnumber the samples.

    Args:
        pair: see :func:`importance_weighted`.
        x: data (B, D), or a tuple or dictionary of all arguments of the programs.
        num_particles: P, the number of samples of each datum.
        max_memory: bytes that scoring may use; 4 GB if None.

    Returns:
        Log-weights (P, B) in nats, with the programs' mask applied, but not their scale. No gradient.

    Raises:
        ValueError: if :func:`importance_weighted` would raise one.

    Example:
        >>> from pyro_gvae import CategoricalVAE
        >>> vae = CategoricalVAE(data_dim=6, num_latents=2, num_categories=3, hidden=(5,))
        >>> log_importance_weights(vae, torch.ones(4, 6), num_particles=10).shape
        torch.Size([10, 4])
    """
    check_particles(num_particles)
    if _lacks_latents(pair, x):
        found = summed_weights(pair, x, num_particles, max_memory, _all_of_guide)
        return torch.cat([one.log_weights for one in found], 1)
    chunks = targets(pair, x, num_particles, max_memory)
    return torch.cat([_log_weights(target, num_particles, size)[0] for target, size in chunks], 1)


def targets(pair: HasPair, x: Batch, num_particles: int, max_memory: float | None) -> Iterator[tuple[Target, int]]:
    """Yield the programs bound to chunks of the data, and how many codes per datum to score at once.

    Data that share a latent are in the same chunk.
    """
    most = most_pairs(pair, x, max_memory)
    size = num_data(x) if is_shared(pair, x) else most // num_particles
    for rows in in_parts(pair, x, max(1, size)):
        runs = bind_pair(pair, rows)
        yield Target(runs, lay_out_draws(runs)), max(1, most // num_data(rows))


def _lacks_latents(pair: HasPair, x: Batch) -> bool:
    """Return whether the guide lacks discrete latents of the model, which are then summed."""
    return bool(look(bind_pair(pair, x)).alone)


def _all_of_guide(seen: Look) -> Collection[str]:
    return (*seen.guide.discrete, *seen.given)


def is_shared(pair: HasPair, x: Batch) -> bool:
    """Return whether data share a latent or another statement, so that they cannot be scored in parts.

    A draw for two data shows it. If as many data as rows are not in a plate, rows are no data, but for example the
    steps of a single sequence; two numbers of rows show it.
    """
    try:
        seen = look(bind_pair(pair, next(in_parts(pair, x, 2))))
    except ONLY_ALL:
        seen = look(bind_pair(pair, x))
    if seen.needs_axes:
        try:
            return not has_cells(pair, x)
        except ValueError:
            if seen.alone:
                raise  # otherwise the latents can be drawn
    try:
        return any(_is_shared(pair, next(in_parts(pair, x, size))) for size in (2, 1))
    except ONLY_ALL:
        return _is_shared(pair, x)


def _is_shared(pair: HasPair, rows: Batch) -> bool:
    runs = bind_pair(pair, rows)
    layout = lay_out_draws(runs)
    with without_trace():
        found = draw(runs, layout, 1)
    return found.apart != found.batch_shape or num_data(rows) not in found.batch_shape


def most_pairs(pair: HasPair, x: Batch, max_memory: float | None) -> int:
    """Return how many pairs (code, datum) to score at once."""
    first = next(in_parts(pair, x, 1))
    runs = bind_pair(pair, first)
    try:
        layout = lay_out(runs)
    except ONLY_ALL:
        first = x
        runs = bind_pair(pair, x)
        layout = lay_out(runs)
    each = bytes_of_code(runs, layout) + 4 * sum(value.numel() * value.element_size() for value in tensors(first))
    limit = min(memory_limit(max_memory), tuning(layout.device).slice_bytes)
    return max(1, int(limit // each))


def _log_weights(target: Target, num_particles: int, size: int) -> tuple[Tensor, float | Tensor]:
    """Return log w (P, M) of M groups of data that share no latents, not scaled, and the scale of each, (M,) or one."""
    draws = [target.draw(min(size, num_particles - start)) for start in range(0, num_particles, size)]
    return torch.cat([drawn.log_weights() for drawn in draws]), draws[0].scale_of(draws[0].cells)


def summary(log_weights: Tensor, scale: float | Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Compute ELBO estimate, bound, effective sample size and scale, each (B,), from log-weights (P, B)."""
    total = log_weights.logsumexp(0)
    effective = (2 * total - (2 * log_weights).logsumexp(0)).exp().nan_to_num(0.0)  # 0 if no weight is positive
    scales = scale * torch.ones_like(total)
    return scales * log_weights.mean(0), scales * (total - math.log(len(log_weights))), effective, scales


def _log_neighbourhood(target: Target, size: int) -> Tensor:
    """Return the log of the sum of p(x, z) over the guide's mode and its neighbours, (B,), not scaled."""
    layout = target.layout
    mode = {
        name: spread(layout, own.reshape((1,) * (layout.nesting + 3 - own.dim()) + own.shape).to(layout.dtype))
        for name, own in latent_values(target.runs.guide, most_probable, lambda _, fn: fn.mean).items()
    }
    found = []
    for codes in chain([mode], _neighbours(mode, size)):
        found.append(joint_scores(target.runs.model, layout, codes).joint)
        if len(found) % SLICES_PER_RETURN == 0:
            return_freed_memory()  # there may be thousands of slices
    return torch.cat(found).logsumexp(0)


def _neighbours(codes: Codes, size: int) -> Iterator[Codes]:
    """Yield the joint codes that differ from each datum's code (1, B, N, K) in exactly one digit, `size` at a time.

    A slice contains changes of many latents: with one slice for each latent, a chain of T latents would run T times.
    """
    parts: list[tuple[str, Tensor]] = []
    for name, own in codes.items():
        for changed in hamming_neighbours(own, size):
            if parts and len(changed) + sum(len(part) for _, part in parts) > size:
                yield _stacked(codes, parts)
                parts = []
            parts.append((name, changed))
    if parts:  # with a single category there are no others
        yield _stacked(codes, parts)


def _stacked(codes: Codes, parts: list[tuple[str, Tensor]]) -> Codes:
    """Concatenate the changes of single latents, with all other latents unchanged in each."""
    count = sum(len(changed) for _, changed in parts)
    found = {name: own.expand(count, -1, -1, -1) for name, own in codes.items()}
    start = 0
    for name, changed in parts:
        end = start + len(changed)
        found[name] = torch.cat([found[name][:start], changed, found[name][end:]])
        start = end
    return found
