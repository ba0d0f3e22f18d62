"""Bias, variance and direction of gradient estimates from their sums, and jackknife standard errors of all of them."""

import math
from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor


class Reference(NamedTuple):
    """The gradient that estimates are compared with.

    Attributes:
        gradient: flat, (M,).
        squared_error: E ||gradient - the true one||^2; 0 where it is exact.
        name: what it is, in words.
    """

    gradient: Tensor
    squared_error: float = 0.0
    name: str = "exact"

    @property
    def squared_norm(self) -> float:
        """Of the true gradient: what noise adds to the norm is taken off."""
        return float(self.gradient.double().square().sum()) - self.squared_error


class Moments(NamedTuple):
    """Sums over estimates g, in J groups of them.

    Attributes:
        counts: estimates, (J,).
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
        """Of all groups, (M,)."""
        return self.total.sum(0).double() / self.counts.sum()

    @property
    def variance(self) -> Tensor:
        """Of a single estimate, without bias, (M,); 0 where there is but one."""
        return _variance(self.counts.sum(), self.mean, self.squares.sum(0).double())

    def without(self, group: int) -> "Moments":
        """All groups but one."""
        kept = [i for i in range(len(self.counts)) if i != group]
        return Moments(*(sums[kept] for sums in self))


def gather(blocks: Iterable[Tensor], reference: Tensor, *, num_samples: int, num_groups: int) -> Moments:
    """The sums of a stream of estimates, of which only a block is held at a time.

    Args:
        blocks: estimates (r, M), together `num_samples` of them.
        reference: the gradient (M,) that cosines are taken with.
        num_samples: of all blocks.
        num_groups: J; groups follow each other and differ by one estimate at most.
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
    """The columns of :func:`pyro_gvae.diagnostics.gradient_report.gradient_report`, each with its standard error `_se`.

    Args:
        sums: of the estimates, in groups.
        reference: the gradient that they should have.
        samples_per_budget: how many estimates fit into the time that `mse_at_budget` allows.
    """
    values = _statistics(sums, reference, samples_per_budget)
    groups = len(sums.counts)
    others = [_statistics(sums.without(i), reference, samples_per_budget) for i in range(groups)] if groups > 1 else []
    row = {}
    for name, value in values.items():
        row[name] = value
        row[f"{name}_se"] = jackknife_error([other[name] for other in others]) if others else 0.0
    row["cosine"] = min(row["cosine"], 1.0)  # by chance more; its error is that of the number before
    # A root has no derivative at 0: its error is the distance to the root of the square one standard error higher.
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
    """Without bias, from a mean and a sum of squares; one value has none."""
    if int(n) < 2:
        return torch.zeros_like(mean)
    return (squares / n - mean.square()).clamp_min(0.0) * (n / (n - 1))


def _ratio(above: float, below: float) -> float:
    """NaN where noise has left nothing to divide by."""
    return above / below if below > 0 else math.nan


def jackknife_error(values: list[float]) -> float:
    """The standard error of a statistic from its values without one of J groups each.

    sqrt((J - 1) / J sum_j (v_j - mean)^2): that of a mean exactly, as a rule a little more for others (Efron and Stein
    1981, doi 10.1214/aos/1176345462).

    Example:
        >>> groups = [1.0, 2.0, 6.0]
        >>> jackknife_error([(9 - v) / 2 for v in groups]) - (7 / 3) ** 0.5 < 1e-12  # s.d. / sqrt(J) of three means
        True
    """
    found = torch.tensor(values, dtype=torch.float64)
    return float(((found - found.mean()).square().mean() * (len(found) - 1)).sqrt())
