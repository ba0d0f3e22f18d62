"""Estimators by name, one module for each family: what differs is a handler and an ELBO, and nothing else knows."""

from .base import Bound, Estimator, Loss, own_state
from .objectives import with_free_bits, with_kl_weight
from .registry import ESTIMATORS, estimator

__all__ = ["ESTIMATORS", "Bound", "Estimator", "Loss", "estimator", "own_state", "with_free_bits", "with_kl_weight"]
