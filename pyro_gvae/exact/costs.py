"""What a sum over all joint codes costs, known before it is begun."""

import time
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..handlers.sites import Run
from ..programs.joint import joint_scores
from ..programs.pair import HasPair
from ..programs.runs import bind_pair
from ..runtime.autograd import leaves
from ..runtime.work import count_operations
from .plan import Plan, make_plan

#: Codes whose time is measured to know that of all.
MEASURED_CODES = 256


class Cost(NamedTuple):
    """What one gradient of a sum over all joint codes takes.

    Attributes:
        num_codes: S = K^N.
        slice_size: codes of a slice.
        num_slices: slices.
        bytes: what a slice takes at its peak.
        operations: what :func:`~pyro_gvae.runtime.work.count_operations` counts, forward and backward. Whatever depends
            on how long a sum takes is decided by this number, which is the same on every machine.
        seconds: what the clock says here and now, for people.
    """

    num_codes: int
    slice_size: int
    num_slices: int
    bytes: int
    operations: int
    seconds: float


def cost(
    pair: HasPair, *args: Any, max_memory: float | None = None, slice_size: int | None = None, **kwargs: Any
) -> Cost:
    """What a gradient of the ELBO or the log-evidence takes, measured on a few codes before the sum is begun.

    Args:
        pair: a `CategoricalVAE`, or a :class:`Pair`; its guide is not used.
        *args: what model and guide are called with, for example data (B, D); a tuple or list stands for its items.
        max_memory: bytes that a slice may take; a quarter of the free memory if None.
        slice_size: codes in a slice; the largest that is fast and fits into `max_memory` if None.
        **kwargs: likewise what they are called with.

    Returns:
        The number of codes and slices, the bytes that a slice takes, and the operations and seconds of one pass forward
        and backward over all codes.

    Raises:
        ValueError: if the sum cannot be taken.

    Example:
        >>> from pyro_gvae.models.categorical_vae import CategoricalVAE
        >>> vae = CategoricalVAE(data_dim=6, num_latents=12, num_categories=3, hidden=(5,))
        >>> cost(vae, torch.ones(4, 6), slice_size=1000).num_slices
        532
    """
    runs = bind_pair(pair, *args, **kwargs)
    plan = make_plan(runs, with_guide=False, max_memory=max_memory, slice_size=slice_size)
    # What does not depend on the codes is the same for four as for two.
    two, four = (count_operations(partial(_gradient, runs.model, plan, _some_numbers(plan, count))) for count in (2, 4))
    numbers = _some_numbers(plan, min(plan.slice_size, MEASURED_CODES))
    seconds = min(_seconds(runs.model, plan, numbers) for _ in range(2))
    return Cost(
        num_codes=plan.num_codes,
        slice_size=plan.slice_size,
        num_slices=plan.num_slices,
        bytes=plan.slice_size * plan.bytes_per_code,
        operations=(four - two) * plan.num_codes // 2,
        seconds=seconds * plan.num_codes / len(numbers),
    )


def _some_numbers(plan: Plan, count: int) -> Tensor:
    """The first codes, again from the beginning where there are fewer."""
    return torch.arange(count, device=plan.device) % plan.num_codes


def _seconds(model: Run, plan: Plan, numbers: Tensor) -> float:
    start = time.perf_counter()
    _gradient(model, plan, numbers).item()  # waits for a GPU
    return time.perf_counter() - start


@torch.enable_grad()
def _gradient(model: Run, plan: Plan, numbers: Tensor) -> Tensor:
    total = joint_scores(model, plan.layout, plan.codes(numbers)).joint.sum()
    if total.requires_grad:
        torch.autograd.grad(total, leaves(total))
    return total.detach()
