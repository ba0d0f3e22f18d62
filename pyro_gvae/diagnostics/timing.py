"""Seconds of a training step, by any estimator."""

import copy
import time
import warnings
from collections.abc import Callable, Hashable
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from ..estimators import Estimator
from ..runtime.rng import seeded
from ..train.step import make_step
from .candidates import Candidate
from .probe import Probe, Subject

#: Training steps that are timed, after two that are not.
TIMED_STEPS = 7


#: Seconds of a training step by a candidate.
Clock = Callable[[Candidate], float]


def make_clock(subject: Subject) -> Clock:
    """A function: seconds of a training step by a candidate on the subject's data, the median of a few.

    Temperatures cost nothing, so that candidates that differ only by theirs are measured once; others, such as one
    estimator with two and with 64 particles, have each their own time. Modules are trained by
    `make_step`, with learning rate 0; the loss and gradients of other programs are computed by the plain ELBO.
    """
    known: dict[Hashable, float] = {}

    def seconds(candidate: Candidate) -> float:
        if candidate.family not in known:
            known[candidate.family] = _step_seconds(subject, candidate.make())
        return known[candidate.family]

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
