"""Evaluate a trained pair of model and guide as a discrete model."""

from .generate import encode, reconstruct, sample
from .metrics import Evaluation, discrete_scores, evaluate

__all__ = ["Evaluation", "discrete_scores", "encode", "evaluate", "reconstruct", "sample"]
