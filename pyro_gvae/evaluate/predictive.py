"""Compute moments of a table's cells under the posterior predictive, exactly or from weighted samples of the guide."""

from typing import NamedTuple

import torch
from pyro import poutine
from torch import Tensor

from .. import exact
from ..distributions.blocks import BinaryBlock, CategoricalBlock, CountBlock, GaussianBlock, WordBlock
from ..distributions.table import TableRow
from ..handlers import discretize
from ..handlers.parameters import OwnParameters
from ..models.base import VAE
from ..models.table import Column, TableObservation
from ..programs.modes import judging
from ..runtime.compat.pyro import is_random
from .generate import given_codes

#: The number of pairs (sample, row) to score at once.
PAIRS_AT_A_TIME = 2**15


class Predictive(NamedTuple):
    """Moments of each column of B rows, side by side, in float64.

    Attributes:
        means: the probabilities of a column's levels, or the mean and the mean square of its values, counted from the
            column's `origin`, (B, F).
        effective_sample_size: that of the weighted samples of each row, (B,); None for an exact sum.
    """

    means: Tensor
    effective_sample_size: Tensor | None


@judging
@torch.no_grad()
def predictive_means(vae: VAE, x: Tensor, max_memory: float | None = None, *, label: int | None = None) -> Predictive:
    """Compute moments of each column under the posterior predictive, given the known cells of x (B, D).

    Args:
        vae: a ready-made program of a table whose latents are all discrete.
        x: rows (B, D).
        max_memory: bytes that the sum over all codes may use.
        label: the class of all rows, for a program of data given their labels.

    Raises:
        ValueError: if there are too many codes, or a latent is continuous.
    """
    assert isinstance(vae.observation, TableObservation)
    columns = vae.observation.columns

    def statistic(codes: dict[str, Tensor]) -> Tensor:
        row = given_codes(vae, codes, label=label)
        assert isinstance(row, TableRow)
        return moments(row, columns).flatten(0, -2)

    given = (x,) if label is None else (x, torch.full((len(x),), label, device=x.device))
    return Predictive(exact.posterior_mean(vae, *given, statistic=statistic, max_memory=max_memory), None)


@judging
@torch.no_grad()
def sampled_predictive_means(
    vae: VAE, x: Tensor, num_particles: int = 1000, *, labels: Tensor | None = None
) -> Predictive:
    r"""Estimate the same moments by self-normalized importance sampling, for programs with any latents.

    .. math::

        \frac{\sum_p w_p \, \mathrm{E}[f(v) | z_p]}{\sum_p w_p}, \quad w_p = \frac{p(x, z_p)}{q(z_p | x)}, \quad
        z_p \sim q(z | x)

    The bias is of order 1 / P. The sampling error is about that of as many posterior samples as the effective sample
    size.

    Args:
        vae: a ready-made program of a table.
        x: rows (B, D).
        num_particles: P, the number of samples of the guide for each row.
        labels: integers (B,), for a program of data given their labels.

    Returns:
        The moments (B, F), and the effective sample sizes (B,).
    """
    assert isinstance(vae.observation, TableObservation)
    columns = vae.observation.columns
    found = []
    parts, size = [x] if labels is None else [x, labels], max(1, PAIRS_AT_A_TIME // num_particles)
    for given in zip(*(part.split(size) for part in parts), strict=True):
        highest = torch.full((len(given[0]),), -torch.inf, dtype=torch.float64, device=x.device)
        total, squares = torch.zeros_like(highest), torch.zeros_like(highest)
        mean = torch.zeros((), dtype=torch.float64, device=x.device)
        for start in range(0, num_particles, PAIRS_AT_A_TIME):
            count = min(PAIRS_AT_A_TIME, num_particles - start)
            log_weights, values = _weighted(vae, given, count, columns)
            before, highest = highest, torch.maximum(highest, log_weights.amax(0))
            shrunk, weights = (before - highest).exp(), (log_weights - highest).exp()  # (P, B)
            total = total * shrunk + weights.sum(0)
            squares = squares * shrunk.square() + weights.square().sum(0)
            mean = mean * shrunk.unsqueeze(-1) + torch.einsum("pb,pbf->bf", weights, values)
        found.append((mean / total.unsqueeze(-1), total.square() / squares))
    means, sizes = (torch.cat(own) for own in zip(*found, strict=True))
    return Predictive(means, sizes)


def _weighted(vae: VAE, given: tuple[Tensor, ...], count: int, columns: tuple[Column, ...]) -> tuple[Tensor, Tensor]:
    """Draw latents for each row; return their log-weights (P, B), and moments given them (P, B, F)."""
    repeated = [part.repeat(count, *[1] * (part.dim() - 1)) for part in given]
    with OwnParameters():
        guide = poutine.trace(discretize(vae.guide)).get_trace(*repeated)
        model = poutine.trace(poutine.replay(discretize(vae.model), guide)).get_trace(*repeated)
    row = model.nodes["x"]["fn"]
    assert isinstance(row, TableRow)
    log_weights = _log_density(model, len(repeated[0])) - _log_density(guide, len(repeated[0]))
    return log_weights.unflatten(0, (count, -1)), moments(row, columns).unflatten(0, (count, -1))


def _log_density(trace: poutine.Trace, num_data: int) -> Tensor:
    """Return the log-density of all sampled and observed values of each datum, (B,), in float64."""
    trace.compute_log_prob()
    parts = [site["log_prob"] for site in trace.nodes.values() if site["type"] == "sample" and is_random(site)]
    return sum((part.double().expand(num_data) for part in parts), torch.zeros(num_data, dtype=torch.float64))


def moments(row: TableRow, columns: tuple[Column, ...]) -> Tensor:
    """Return the probabilities of levels, or the mean and the mean square of values, of each column side by side.

    Values are counted from the `origin` of their column.
    """
    found: dict[int, Tensor] = {}
    for block, natural in row.by_block():
        block = block.double()
        places = block.places.tolist()
        match block:
            case BinaryBlock():
                p = natural.sigmoid()
                found |= {place: torch.stack([1 - p[..., i], p[..., i]], -1) for i, place in enumerate(places)}
            case CategoricalBlock():
                probs = block.log_probs(natural).exp()
                found |= {place: probs[..., i, : len(columns[place].levels)] for i, place in enumerate(places)}
            case CountBlock():
                mean = natural.exp()
                square = mean.square() * (1 + (-block.log_dispersion).exp()) + mean
                found |= {place: torch.stack([mean[..., i], square[..., i]], -1) for i, place in enumerate(places)}
            case WordBlock():
                mean = block.mean(natural)
                square = mean.square() + mean * (1 - mean / block.length)
                found |= {place: torch.stack([mean[..., i], square[..., i]], -1) for i, place in enumerate(places)}
            case GaussianBlock():
                for i, place in enumerate(places):
                    found[place] = _of_numbers(columns[place], natural[..., i], block.scale[i])
    return torch.cat([found[place] for place in range(len(columns))], -1)


def origin(column: Column) -> float:
    """Return the value from which the moments of a numeric column are counted: the centre of real numbers, else 0.

    Real numbers may be far from 0 and close to each other, as years are. Moments about 0 would lose their differences.
    """
    return column.centre if column.kind == "real" else 0.0


def _of_numbers(column: Column, loc: Tensor, scale: Tensor) -> Tensor:
    mean, variance = column.centre - origin(column) + column.spread * loc, (column.spread * scale).square()
    if column.kind == "positive":  # log-normal
        return torch.stack([(mean + variance / 2).exp(), (2 * mean + 2 * variance).exp()], -1)
    return torch.stack([mean, mean.square() + variance], -1)
