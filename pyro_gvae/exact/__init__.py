"""Compute exact sums over all K^N joint codes of the discrete model."""

from ..programs.pair import HasPair, Pair
from .costs import Cost, cost, elbo_cost, sum_cost
from .factorized import MeanField, mean_field
from .posteriors import Posterior, posterior, posterior_mean, sample_posterior
from .sums import Bounds, bounds, elbo, log_evidence

__all__ = [
    "Bounds",
    "Cost",
    "HasPair",
    "MeanField",
    "Pair",
    "Posterior",
    "bounds",
    "cost",
    "elbo",
    "elbo_cost",
    "log_evidence",
    "mean_field",
    "posterior",
    "posterior_mean",
    "sample_posterior",
    "sum_cost",
]
