"""Measure the seconds of a training step with any estimator."""

import copy
import time
import warnings
from collections.abc import Callable, Hashable
from statistics import median
from typing import Any

import torch
from torch import nn

from ..estimators import Estimator
from ..programs.batches import device_of
from ..runtime.rng import seeded
from ..train.step import make_step
from .candidates import Candidate
from .probe import Probe, Problem

#: Number of training steps that are timed, after two that are not.
TIMED_STEPS = 7


#: A function that returns the seconds of a training step with a candidate.
Clock = Callable[[Candidate], float]


def make_clock(problem: Problem) -> Clock:
    """Make a function that returns the median seconds of a training step with a candidate on the problem's data.

    Candidates that differ only in temperature take the same time and are measured once; all others, such as one
    estimator with 2 and with 64 particles, are measured separately. Modules are trained by `make_step` with learning
    rate 0; for other programs, the plain ELBO computes loss and gradients.
    """
    known: dict[Hashable, float] = {}

    def seconds(candidate: Candidate) -> float:
        if candidate.family not in known:
            known[candidate.family] = _step_seconds(problem, candidate.make())
        return known[candidate.family]

    return seconds


def _step_seconds(problem: Problem, chosen: Estimator) -> float:
    with seeded(0), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a step without a recording is slower, and the time shows it
        step: Callable[..., Any]
        if isinstance(problem.pair, nn.Module):
            step = make_step(copy.deepcopy(problem.pair), chosen, lr=0.0)
        else:
            probe = Probe(problem, chosen, wrt="parameters")
            step = probe.step
        times, device = [], device_of(problem.x)
        for _ in range(2 + TIMED_STEPS):
            start = time.perf_counter()
            step(problem.x)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            times.append(time.perf_counter() - start)
    return median(times[2:])
