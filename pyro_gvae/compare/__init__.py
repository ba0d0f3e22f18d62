"""Compare estimators: train and evaluate a grid of estimators, settings and seeds."""

from ..config.compare import CompareConfig
from .run import compare

__all__ = ["CompareConfig", "compare"]
