"""Estimate the cost of a sum over all joint codes, before the sum starts."""

import math
import time
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..handlers.sites import Run
from ..programs.chains import Chains
from ..programs.joint import elbo_terms, pieces, read_guide_once
from ..programs.latents import TooManyCodesError
from ..programs.pair import HasPair
from ..programs.runs import Runs, bind_pair
from ..programs.statements import read
from ..runtime.autograd import leaves
from ..runtime.work import count_operations
from .elimination import elbo, log_evidence
from .plan import Plan, plan_sum
from .sizes import WORK_PER_SAVED_BYTE, saved_bytes

#: Number of codes that are timed to estimate the time of all.
MEASURED_CODES = 256
#: A function of code numbers that returns a sum over these codes.
Total = Callable[[Tensor], Tensor]


class Cost(NamedTuple):
    """The cost of one gradient of a sum over all joint codes; a sum over one latent after another has one slice.

    Attributes:
        num_codes: S = K^N.
        slice_size: codes per slice.
        num_slices: number of slices.
        bytes: peak memory of a slice.
        operations: operations of the forward and backward pass, as :func:`~pyro_gvae.runtime.work.count_operations`
            counts them. Every decision that depends on how long a sum takes uses this number, which is the same on
            every machine.
        seconds: time estimated on this machine now; for display only.
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
    """Estimate the cost of a gradient of the ELBO or the log-evidence from a few codes, before the sum starts.

    Args:
        pair: a `CategoricalVAE`, or a :class:`Pair`; its guide is not used.
        *args: arguments of model and guide, for example data (B, D); a single tuple or list is unpacked.
        max_memory: bytes that a slice may take; 4 GB if None.
        slice_size: codes in a slice; the largest that is fast and fits into `max_memory` if None.
        **kwargs: keyword arguments of model and guide.

    Returns:
        The number of codes and slices, the bytes per slice, and the operations and seconds of one forward and backward
        pass over all codes.

    Raises:
        ValueError: if the model has a continuous latent, or one that several data share, if there are more than 2^62
            codes, or if a slice does not fit into `max_memory`.

    Example:
        >>> from pyro_gvae.models.categorical_vae import CategoricalVAE
        >>> vae = CategoricalVAE(data_dim=6, num_latents=12, num_categories=3, hidden=(5,))
        >>> cost(vae, torch.ones(4, 6), slice_size=1000).num_slices
        532
    """
    runs = bind_pair(pair, *args, **kwargs)
    plan = plan_sum(runs, with_guide=False, max_memory=max_memory, slice_size=slice_size)
    if isinstance(plan, Chains):
        return _cost_of_chains(plan, partial(log_evidence, runs, plan))
    return _cost(plan, partial(_joint, runs.model, plan))


def operations(pair: HasPair, *args: Any, max_memory: float | None = None) -> int:
    """Count the operations that :func:`cost` estimates, without a look at the clock, which takes as long as 512 codes.

    Args:
        pair: a `CategoricalVAE`, or a :class:`Pair`; its guide is not used.
        *args: arguments of model and guide, as :func:`cost` takes them.
        max_memory: bytes that a slice may take; 4 GB if None.

    Raises:
        ValueError: as :func:`cost`.
    """
    runs = bind_pair(pair, *args)
    plan = plan_sum(runs, with_guide=False, max_memory=max_memory)
    if isinstance(plan, Chains):
        return _operations_of_chains(partial(log_evidence, runs, plan))
    return _operations(plan, partial(_joint, runs.model, plan))


def elbo_cost(
    pair: HasPair, *args: Any, max_memory: float | None = None, slice_size: int | None = None, **kwargs: Any
) -> Cost:
    """Estimate the cost of a gradient of the ELBO as :func:`cost` does, also of pairs with continuous latents.

    Args:
        pair: a `CategoricalVAE`, or a :class:`Pair`.
        *args: arguments of model and guide, for example data (B, D); a single tuple or list is unpacked.
        max_memory: bytes that a slice may take; 4 GB if None.
        slice_size: codes in a slice; the largest that is fast and fits into `max_memory` if None.
        **kwargs: keyword arguments of model and guide.

    Returns:
        As :func:`cost`.

    Raises:
        ValueError: if :func:`~pyro_gvae.exact.elbo` would raise one.

    Example:
        >>> from pyro_gvae.models.joint_vae import JointVAE
        >>> vae = JointVAE(data_dim=6, num_latents=1, num_categories=10, latent_dim=2, hidden=(5,))
        >>> elbo_cost(vae, torch.ones(4, 6)).num_codes
        10
    """
    runs = bind_pair(pair, *args, **kwargs)
    plan = plan_sum(runs, max_memory=max_memory, slice_size=slice_size)
    if isinstance(plan, Chains):
        return _cost_of_chains(plan, partial(elbo, runs, plan))
    return _cost(plan, partial(_terms, runs, plan))


def sum_cost(pair: HasPair, *args: Any, max_memory: float | None = None, **kwargs: Any) -> Cost:
    """Estimate the cost of a gradient of log p(x), or of the ELBO if log p(x) is not a sum over codes.

    Args:
        pair: a `CategoricalVAE`, or a :class:`Pair`.
        *args: arguments of model and guide, for example data (B, D); a single tuple or list is unpacked.
        max_memory: bytes that a slice may take; 4 GB if None.
        **kwargs: keyword arguments of model and guide.

    Returns:
        As :func:`cost`.

    Raises:
        ValueError: if neither is a sum over codes.

    Example:
        >>> from pyro_gvae.models.joint_vae import JointVAE
        >>> vae = JointVAE(data_dim=6, num_latents=1, num_categories=10, latent_dim=2, hidden=(5,))
        >>> sum_cost(vae, torch.ones(4, 6)).num_codes
        10
    """
    try:
        return cost(pair, *args, max_memory=max_memory, **kwargs)
    except TooManyCodesError:
        raise
    except ValueError:  # with continuous latents, only the ELBO can be estimated by a sum over codes
        return elbo_cost(pair, *args, max_memory=max_memory, **kwargs)


def _operations(plan: Plan, total: Total) -> int:
    # The difference leaves out operations that do not depend on the number of codes.
    two, four = (count_operations(partial(_gradient, total, _some_numbers(plan, count))) for count in (2, 4))
    return (four - two) * plan.num_codes // 2


def _cost(plan: Plan, total: Total) -> Cost:
    counted = _operations(plan, total)
    numbers = _some_numbers(plan, min(plan.slice_size, MEASURED_CODES))
    seconds = min(_seconds(total, numbers) for _ in range(2))
    return Cost(
        num_codes=plan.num_codes,
        slice_size=plan.slice_size,
        num_slices=plan.num_slices,
        bytes=plan.slice_size * plan.bytes_per_code,
        operations=counted,
        seconds=seconds * plan.num_codes / len(numbers),
    )


def _operations_of_chains(total: Callable[[], Tensor]) -> int:
    return count_operations(lambda: _gradient(lambda _: total().sum(), torch.empty(0)))


def _cost_of_chains(chains: Chains, total: Callable[[], Tensor]) -> Cost:
    num_codes = math.prod(latent.num_codes for latent in chains.latents.values())
    return Cost(
        num_codes=num_codes,
        slice_size=num_codes,
        num_slices=1,
        bytes=WORK_PER_SAVED_BYTE * saved_bytes(total),
        operations=_operations_of_chains(total),
        seconds=_seconds(lambda _: total().sum(), torch.empty(0)),  # which has run before
    )


def _joint(model: Run, plan: Plan, numbers: Tensor) -> Tensor:
    found = [read(model, plan.layout, piece, {}) for piece in pieces(plan.layout, plan.codes(numbers))]
    return torch.stack([factor.log_prob.sum() for reading in found for factor in reading.factors.values()]).sum()


def _terms(runs: Runs, plan: Plan, numbers: Tensor) -> Tensor:
    guide = read_guide_once(runs, plan.layout)
    return elbo_terms(runs, plan.layout, guide, plan.codes(numbers)).table.sum()


def _some_numbers(plan: Plan, count: int) -> Tensor:
    """Return the first `count` code numbers, starting over if there are fewer codes."""
    return torch.arange(count, device=plan.device) % plan.num_codes


def _seconds(total: Total, numbers: Tensor) -> float:
    start = time.perf_counter()
    _gradient(total, numbers).item()  # waits for a GPU
    return time.perf_counter() - start


@torch.enable_grad()
def _gradient(total: Total, numbers: Tensor) -> Tensor:
    found = total(numbers)
    if found.requires_grad:
        torch.autograd.grad(found, leaves(found))
    return found.detach()
