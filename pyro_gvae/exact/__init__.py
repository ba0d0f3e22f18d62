"""Exact sums over all K^N joint codes of the discrete model."""

from .evaluate import Bounds, bounds, elbo, log_evidence
from .mean_field import MeanField, mean_field
from .posterior import Posterior, posterior, sample_posterior
from .programs import HasPair, Pair
from .slices import Cost, cost

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
    "log_evidence",
    "mean_field",
    "posterior",
    "sample_posterior",
]
