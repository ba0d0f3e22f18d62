"""Compute bias, variance and direction of gradient estimates from their sums, with jackknife standard errors."""

import math
from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor


class Reference(NamedTuple):
    """The gradient that estimates are compared with.

    Attributes:
        gradient: flat, (M,).
        squared_error: E ||gradient - true gradient||^2; 0 if it is exact.
        name: a description, for the reader of a report.
    """

    gradient: Tensor
    squared_error: float = 0.0
    name: str = "exact"

    @property
    def squared_norm(self) -> float:
        """An estimate of the squared norm of the true gradient: that of this one minus its noise."""
        return float(self.gradient.double().square().sum()) - self.squared_error


class Moments(NamedTuple):
    """Sums over estimates g, separately for J groups of estimates.

    Attributes:
        counts: number of estimates, (J,).
        total: sum of g, (J, M).
        squares: sum of g^2, (J, M).
        cosines: sum of cos(g, reference), (J,).
        products: sum of g . reference, (J,).
        product_squares: sum of (g . reference)^2, (J,).
    """

    counts: Tensor
    total: Tensor
    squares: Tensor
    cosines: Tensor
    products: Tensor
    product_squares: Tensor

    @property
    def mean(self) -> Tensor:
        """The mean over all groups, (M,)."""
        return self.total.sum(0).double() / self.counts.sum()

    @property
    def variance(self) -> Tensor:
        """The unbiased variance of a single estimate, (M,); 0 if there is only one."""
        return _variance(self.counts.sum(), self.mean, self.squares.sum(0).double())

    def without(self, group: int) -> "Moments":
        """Leave out one group."""
        kept = [i for i in range(len(self.counts)) if i != group]
        return Moments(*(sums[kept] for sums in self))


def gather(blocks: Iterable[Tensor], reference: Tensor, *, num_samples: int, num_groups: int) -> Moments:
    """Sum a stream of estimates, with only one block in memory at a time.

    Args:
        blocks: estimates (r, M), `num_samples` in total.
        reference: the gradient (M,) for the cosines.
        num_samples: the total number of estimates.
        num_groups: J; each group is a run of consecutive estimates, and sizes differ by at most one.
    """
    group = torch.arange(num_samples, device=reference.device) * num_groups // num_samples
    sums = Moments(
        torch.bincount(group, minlength=num_groups),
        *(reference.new_zeros(num_groups, len(reference)) for _ in range(2)),
        *(reference.new_zeros(num_groups, dtype=torch.float64) for _ in range(3)),
    )
    start = 0
    for block in blocks:
        rows = group[start : start + len(block)]
        sums.total.index_add_(0, rows, block)
        sums.squares.index_add_(0, rows, block.square())
        sums.cosines.index_add_(0, rows, torch.cosine_similarity(block, reference, dim=-1).double())
        products = (block @ reference).double()  # (r,)
        sums.products.index_add_(0, rows, products)
        sums.product_squares.index_add_(0, rows, products.square())
        start += len(block)
    return sums


def summarize(sums: Moments, reference: Reference, *, samples_per_budget: float) -> dict[str, float]:
    """Compute the columns of `gradient_report`, each with its standard error `_se`.

    Args:
        sums: sums of the estimates, in groups.
        reference: the gradient that they estimate.
        samples_per_budget: how many estimates fit into the time budget of `mse_at_budget`.
    """
    values = _statistics(sums, reference, samples_per_budget)
    groups = len(sums.counts)
    others = [_statistics(sums.without(i), reference, samples_per_budget) for i in range(groups)] if groups > 1 else []
    row = {}
    for name, value in values.items():
        row[name] = value
        row[f"{name}_se"] = jackknife_error([other[name] for other in others]) if others else 0.0
    row["cosine"] = min(row["cosine"], 1.0)  # noise can make it larger; its error is that of the unclipped number
    # A root has no derivative at 0, so its error is the distance to the root of the square plus one standard error.
    bias = math.sqrt(max(row["squared_bias"], 0.0))
    row["relative_bias"] = bias
    row["relative_bias_se"] = math.sqrt(bias**2 + row["squared_bias_se"]) - bias
    return row


def _statistics(sums: Moments, reference: Reference, samples_per_budget: float) -> dict[str, float]:
    n = float(sums.counts.sum())
    mean, variance = sums.mean, sums.variance  # (M,)
    noise = float(variance.sum())
    squared_mean = float(mean.square().sum()) - noise / n
    bias = float((mean - reference.gradient.double()).square().sum()) - noise / n - reference.squared_error
    product = sums.products.sum() / n
    squared_product = product.square() - _variance(sums.counts.sum(), product, sums.product_squares.sum()) / n
    scale = reference.squared_norm
    varies = variance > 0
    signal = (mean.square() - variance / n).clamp_min(0.0)[varies]
    return {
        "squared_bias": _ratio(bias, scale),
        "relative_std": math.sqrt(_ratio(noise, squared_mean)),
        "cosine": _ratio(float(product), math.sqrt(max(squared_mean * scale, 0.0))),
        "sample_cosine": float(sums.cosines.sum()) / n,
        "snr": float((signal / variance[varies]).sqrt().mean()) if bool(varies.any()) else math.inf,
        "mse": _ratio(bias + noise, scale),
        "mse_at_budget": _ratio(bias + noise / samples_per_budget, scale),
        "progress": _ratio(float(squared_product), (squared_mean + noise) * scale),
    }


def _variance(n: Tensor, mean: Tensor, squares: Tensor) -> Tensor:
    """Return the unbiased variance from a mean and a sum of squares; 0 for a single value."""
    if int(n) < 2:
        return torch.zeros_like(mean)
    return (squares / n - mean.square()).clamp_min(0.0) * (n / (n - 1))


def _ratio(above: float, below: float) -> float:
    """Divide; NaN if the noise correction has left no positive denominator."""
    return above / below if below > 0 else math.nan


def jackknife_error(values: list[float]) -> float:
    """Compute the jackknife standard error of a statistic from its values v_j, each without group j of J.

    sqrt((J - 1) / J sum_j (v_j - mean)^2): exact for a mean, usually slightly too large for other statistics (Efron and
    Stein 1981, doi 10.1214/aos/1176345462).

    Example:
        >>> groups = [1.0, 2.0, 6.0]
        >>> jackknife_error([(9 - v) / 2 for v in groups]) - (7 / 3) ** 0.5 < 1e-12  # s.d. / sqrt(J) of three means
        True
    """
    found = torch.tensor(values, dtype=torch.float64)
    return float(((found - found.mean()).square().mean() * (len(found) - 1)).sqrt())
