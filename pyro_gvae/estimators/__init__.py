"""Estimators by name, with one module for each family. An estimator is an ELBO and, where it needs one, a handler."""

from .base import Bound, Estimator, Loss, own_state
from .claims import Bias, Objective
from .objectives import with_free_bits, with_kl_weight, with_unimix, with_usage_entropy
from .registry import ESTIMATORS, estimator

__all__ = [
    "ESTIMATORS",
    "Bias",
    "Bound",
    "Estimator",
    "Loss",
    "Objective",
    "estimator",
    "own_state",
    "with_free_bits",
    "with_kl_weight",
    "with_unimix",
    "with_usage_entropy",
]
