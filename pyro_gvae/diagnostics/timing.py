"""Seconds of a training step, by any estimator."""

import copy
import time
import warnings
from collections.abc import Callable
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from ..estimators import Estimator
from ..runtime.rng import seeded
from ..train.step import make_step
from .probe import Probe, Subject

#: Training steps that are timed, after two that are not.
TIMED_STEPS = 7


def make_clock(subject: Subject) -> Callable[[Estimator], float]:
    """A function: seconds of a training step of an estimator on the subject's data, the median of a few.

    Temperatures cost nothing, so that estimators that differ only by theirs are measured once. Modules are trained by
    `make_step`, with learning rate 0; the loss and gradients of other programs are computed by the plain ELBO.
    """
    known: dict[tuple[str, str], float] = {}

    def seconds(chosen: Estimator) -> float:
        key = (chosen.name, chosen.approximates)
        if key not in known:
            known[key] = _step_seconds(subject, chosen)
        return known[key]

    return seconds


def _step_seconds(subject: Subject, chosen: Estimator) -> float:
    with seeded(0), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that a step runs without a recording is in its time
        step: Callable[[Tensor], Any]
        if isinstance(subject.pair, nn.Module):
            step = make_step(copy.deepcopy(subject.pair), chosen, lr=0.0)
        else:
            probe = Probe(subject, chosen, wrt="parameters")
            step = probe.step
        times = []
        for _ in range(2 + TIMED_STEPS):
            start = time.perf_counter()
            step(subject.x)
            if subject.x.is_cuda:
                torch.cuda.synchronize(subject.x.device)
            times.append(time.perf_counter() - start)
    return median(times[2:])
