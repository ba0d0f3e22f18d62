"""Compute the collapsed importance-weighted bound: draw the continuous latents, and sum over all codes given them."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from ..config.checks import check_particles
from ..programs.batches import Batch
from ..programs.cells import summed_over
from ..programs.draws import draw_continuous
from ..programs.factors import Layout
from ..programs.joint import pair_scores
from ..programs.look import look
from ..programs.modes import judging
from ..programs.pair import HasPair
from ..programs.runs import Runs, bind_pair
from ..programs.site import Codes
from .importance import summary, targets
from .weights import summed_weights

#: The largest number of codes in a slice.
CODES_AT_A_TIME = 1024


class Collapsed(NamedTuple):
    """Estimates from P draws of the continuous latents of each datum, in nats.

    Attributes:
        bound: the log of the mean of w, at most log p(x) in expectation, (B,).
        effective_sample_size: a number between 1 and P for each datum, (B,).
        num_particles: P.
    """

    bound: Tensor
    effective_sample_size: Tensor
    num_particles: int


@judging
@torch.no_grad()
def collapsed_importance_weighted(
    pair: HasPair, x: Batch, num_particles: int = 1000, *, max_memory: float | None = None
) -> Collapsed:
    r"""Compute the collapsed importance-weighted bound on log p(x) for each datum: exact over the codes z.

    .. math::

        \log \frac{1}{P} \sum_p w_p, \quad w_p = \frac{\sum_z p(x, z, c_p)}{\sum_z q(z, c_p | x)}, \quad
        c_p \sim q(c | x)

    The weight is the mean of p(x, z, c) / q(z, c | x) over the codes given the continuous latents c, so by Jensen's
    inequality this bound lies between :func:`~pyro_gvae.evaluate.importance.importance_weighted` and log p(x), in
    expectation and at equal P. Without continuous latents it is log p(x), see :func:`pyro_gvae.exact.log_evidence`.
    Latents inside of `pyro.markov`, and latents that only the model has, are summed one after another.

    Args:
        pair: a `Pair` of programs that accept any number of data, with discrete and continuous latents.
        x: data (B, D), or a tuple or dictionary of all arguments of the programs.
        num_particles: P, the number of draws for each datum. Each needs a sum over all codes.
        max_memory: bytes that scoring may use; 4 GB if None.

    Returns:
        Bound and effective sample size, each (B,), with the programs' scale and mask applied. Data that share a
        continuous latent have a single joint number: (1,) for a global latent. No gradient.

    Raises:
        ValueError: if `num_particles` is below 1, data share a discrete latent, or the programs scale prior, likelihood
            and guide differently.

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> def guide(x):
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("z", dist.Bernoulli(torch.sigmoid(x)))
        ...         pyro.sample("c", dist.Normal(x / 2, 0.5**0.5))
        >>> def model(x):
        ...     with pyro.plate("data", len(x)):
        ...         z = pyro.sample("z", dist.Bernoulli(0.5))
        ...         c = pyro.sample("c", dist.Normal(z, 1.0))
        ...         pyro.sample("x", dist.Normal(c, 1.0), obs=x)
        >>> from pyro_gvae.exact import Pair
        >>> collapsed_importance_weighted(Pair(model, guide), torch.zeros(3), num_particles=5).bound.shape
        torch.Size([3])
    """
    check_particles(num_particles)
    parts = []
    if look(bind_pair(pair, x)).needs_axes:
        weights = summed_weights(pair, x, num_particles, max_memory, lambda seen: seen.given)
        bound, effective = (torch.cat(part) for part in zip(*(summary(*one)[1:3] for one in weights), strict=True))
        return Collapsed(bound, effective, num_particles)
    for target, size in targets(pair, x, num_particles, max_memory):
        log_weights, scale = _log_weights(target.runs, target.layout, num_particles, size)
        parts.append(summary(log_weights, scale)[1:3])
    bound, effective = (torch.cat(part) for part in zip(*parts, strict=True))
    return Collapsed(bound, effective, num_particles)


def _log_weights(runs: Runs, layout: Layout, num_particles: int, size: int) -> tuple[Tensor, float | Tensor]:
    """Return log w (P, M) of M groups of data that share no latents, not scaled, and the scale of each, (M,) or one."""
    slice_size = min(layout.space.num_codes, size, CODES_AT_A_TIME)
    at_once = 1 if layout.obstacle is not None else max(1, size // slice_size)
    parts: list[Tensor] = []
    scale: float | Tensor = 1.0
    for start in range(0, num_particles, at_once):
        count = min(at_once, num_particles - start)
        values = draw_continuous(runs, layout, count)
        log_p = log_q = torch.full((count, layout.batch_size), -torch.inf, dtype=layout.dtype, device=layout.device)
        for codes, slice_size_here in _slices(layout, count, slice_size):
            given = {name: _repeated(value, layout, slice_size_here) for name, value in values.items()}
            found = pair_scores(runs, layout, codes, given)
            shape = (count, slice_size_here, layout.batch_size)
            log_p = torch.logaddexp(log_p, found.log_p.reshape(shape).logsumexp(1))
            log_q = torch.logaddexp(log_q, found.log_q.reshape(shape).logsumexp(1))
            cells, scale = found.cells, found.scale
        parts.append(summed_over(log_p - log_q, layout.batch_shape, cells))
    return torch.cat(parts), scale


def _slices(layout: Layout, count: int, size: int) -> Iterator[tuple[Codes, int]]:
    """Yield slices of all joint codes, each slice repeated for every particle, and the number of codes in it."""
    for start in range(0, layout.space.num_codes, size):
        numbers = torch.arange(start, min(start + size, layout.space.num_codes), device=layout.device)
        yield layout.space.codes(numbers.repeat(count), layout.dtype), len(numbers)


def _repeated(value: Tensor, layout: Layout, num_codes: int) -> Tensor:
    """Repeat the value of each particle for each code; with an obstacle, there is only one particle and one code."""
    return value if layout.obstacle is not None else value.repeat_interleave(num_codes, 0)
