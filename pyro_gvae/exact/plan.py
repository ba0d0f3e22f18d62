"""Cut the space of joint codes into slices that fit into memory."""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from numbers import Integral
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ..programs.chains import Chains, lay_out_chains
from ..programs.factors import Layout
from ..programs.latents import READ_ALL, Roles, TooManyJointCodesError
from ..programs.layout import lay_out, warn_of
from ..programs.look import Look, look
from ..programs.runs import Runs
from ..runtime.compat.torch import is_transformed
from ..runtime.distributed import ALONE, Share
from ..runtime.memory import in_words, memory_limit
from ..runtime.tuning import tuning
from .sizes import bytes_of_code

#: Code numbers are 64-bit integers.
MOST_CODES = 2**62


#: A value for each discrete latent, by its name; if there is only one, the value itself.
PerLatent = Tensor | dict[str, Tensor]


def per_latent(values: dict[str, Tensor]) -> PerLatent:
    """Return values of discrete latents by name, or the value itself if there is one latent."""
    return values if len(values) > 1 else next(iter(values.values()))


class Plan(NamedTuple):
    """How the sum over the S joint codes of a model is cut into slices."""

    layout: Layout
    bytes_per_code: int
    slice_size: int
    share: Share = ALONE

    @property
    def num_codes(self) -> int:
        """S, the number of joint codes: K^N if there is one latent site."""
        return self.layout.space.num_codes

    @property
    def batch_shape(self) -> torch.Size:
        """The batch shape of the results."""
        return self.layout.batch_shape

    @property
    def has_continuous(self) -> bool:
        """Whether the guide has continuous latents, which are drawn."""
        return self.layout.has_continuous

    @property
    def dtype(self) -> torch.dtype:
        """The type of the scores."""
        return self.layout.dtype

    @property
    def device(self) -> torch.device:
        """The device on which the sum is computed."""
        return self.layout.device

    @property
    def num_slices(self) -> int:
        """The number of slices into which the codes of this share are cut."""
        return -(-self.num_shared // self.slice_size)

    @property
    def is_searched(self) -> bool:
        """Whether to search for codes of negligible probability, which saves time only if there are many codes."""
        few, least = tuning(self.device).few_codes, tuning(self.device).searched_bytes
        return self.num_codes > few and (self.num_slices > 1 or self.num_codes * self.bytes_per_code >= least)

    @property
    def num_shared(self) -> int:
        """The number of codes in this share. Shares differ by at most one code."""
        full, rest = divmod(self.num_codes, self.share.world_size)
        return full + (self._place(full) < rest)

    @property
    def log_negligible(self) -> float:
        """log(eps / 16 S): S codes of this probability vanish in the rounding error of one sum."""
        return math.log(torch.finfo(self.dtype).eps / 16) - math.log(self.num_codes)

    def numbers(self) -> Iterator[Tensor]:
        """Yield the numbers of this share's codes, slice by slice: each (s,)."""
        count, world_size = self.num_shared, self.share.world_size
        for start in range(0, count, self.slice_size):
            blocks = torch.arange(start, min(start + self.slice_size, count), device=self.device)
            yield blocks if world_size == 1 else blocks * world_size + self._place(blocks)

    def _place(self, block: Any) -> Any:
        """Choose which of `world_size` consecutive codes belongs to this share, pseudo-randomly in each block.

        Probable codes are similar, so consecutive codes should go to different processes. A fixed choice, such as every
        second code, would give a process only codes whose last latent has an even category.
        """
        scattered = block % 2**31 * 2654435761 // 2**16  # Knuth's multiplicative hashing
        return (self.share.rank + scattered) % self.share.world_size

    def codes(self, numbers: Tensor) -> dict[str, Tensor]:
        """Return the joint codes of the given numbers (...): one-hots (..., N, K) of each latent, by its name."""
        return self.layout.space.codes(numbers, self.dtype)

    def weights(self, log_weights: Tensor) -> Tensor:
        """Compute exp(log_weights), with negligible weights set to exactly 0.

        Under a sharp posterior most codes have a denormal probability, and CPUs compute slowly with denormal numbers,
        and the exponential of numbers whose exponential is denormal or 0, so that it is taken of none.
        """
        return self._exponentials(log_weights.clamp_min(self.log_negligible))

    def _exponentials(self, clamped: Tensor) -> Tensor:
        """Compute the exponential of new numbers of at least `log_negligible`, and 0 for this one, in their place."""
        least = math.exp(self.log_negligible) * (1 + 8 * torch.finfo(self.dtype).eps)  # beyond what exp rounds
        if clamped.requires_grad or is_transformed():
            return torch.threshold(clamped.exp(), least, 0.0)
        return torch.threshold_(clamped.exp_(), least, 0.0)

    def log_sum(self, log_weights: Tensor) -> Tensor:
        """Compute logsumexp over the first dimension without denormal numbers."""
        highest = log_weights.detach().amax(0).clamp_min(torch.finfo(log_weights.dtype).min)
        below = log_weights - highest
        can_write = not (below.requires_grad or is_transformed())
        clamped = (below.clamp_min_ if can_write else below.clamp_min)(self.log_negligible)
        return highest + self._exponentials(clamped).sum(0).log()

    def negligible(self, log_weights: Tensor) -> Tensor:
        """Return which codes (s,) have a negligible weight for every datum, given log-weights (s, B)."""
        return log_weights.amax(1) < self.log_negligible

    def repacked(self, parts: Iterable[Tensor]) -> Iterator[Tensor]:
        """Regroup the code numbers that remain into slices of `slice_size`. Yield at least one code."""
        none_yet = True
        waiting = torch.empty(0, dtype=torch.long, device=self.device)
        for part in parts:
            waiting = torch.cat([waiting, part])
            while len(waiting) >= self.slice_size:
                yield waiting[: self.slice_size]
                waiting, none_yet = waiting[self.slice_size :], False
        if len(waiting):
            yield waiting
        elif none_yet:  # all codes of this share are negligible, but a program cannot run on no codes
            yield next(self.numbers())[:1]


def plan_sum(
    runs: Runs,
    *,
    with_guide: bool = True,
    max_memory: float | None = None,
    slice_size: int | None = None,
    share: Share = ALONE,
    seen: Look | None = None,
    with_gradient: bool = True,
) -> Plan | Chains:
    """Plan a sum over joint codes, or over one latent after another for chains and for latents of the model alone.

    Args:
        runs: the pair with its data bound.
        with_guide: whether the guide is read, as for the ELBO; the evidence needs the model alone.
        max_memory: bytes that a slice may take, or the log-probabilities of a latent; 4 GB if None.
        slice_size: codes of a slice, as for :func:`make_plan`.
        share: which codes this process sums, if several processes divide them.
        seen: what a first look at the pair has shown, where there was one.
        with_gradient: whether a gradient may be taken, as :func:`make_plan`.

    Raises:
        ValueError: as :func:`make_plan` and :func:`~pyro_gvae.programs.chains.lay_out_chains`; also if several
            processes divide the codes of latents that are summed one after another.
    """
    seen = look(runs, with_guide=with_guide) if seen is None else seen
    if not seen.needs_axes:
        return make_plan(
            runs,
            with_guide=with_guide,
            max_memory=max_memory,
            slice_size=slice_size,
            share=share,
            seen=seen,
            with_gradient=with_gradient,
        )
    if share.world_size > 1:
        raise ValueError(
            f"Expected one process, but found {share.world_size} that divide the joint codes of latents that are "
            "summed one after another, which need no table of joint codes. Try dividing the data."
        )
    return lay_out_chains(runs, seen, max_memory)


def make_plan(
    runs: Runs,
    *,
    with_guide: bool = True,
    max_memory: float | None = None,
    slice_size: int | None = None,
    share: Share = ALONE,
    seen: Look | None = None,
    roles: Roles = READ_ALL,
    with_gradient: bool = True,
) -> Plan:
    """Cut the joint codes of a pair into slices, after a few runs on a few codes.

    Args:
        runs: the pair with its data bound.
        with_guide: whether the guide is read, as for the ELBO; the evidence needs the model alone.
        max_memory: bytes that a slice may take, forward and backward; 4 GB if None.
        slice_size: codes of a slice; the largest that is fast and fits into `max_memory` if None.
        share: which codes this process sums, if several processes divide them.
        seen: the result of a first look at the pair, if there was one.
        roles: which discrete latents are summed, all by default, and which latents are scored.
        with_gradient: whether a gradient may be taken. Where none is, smaller slices are faster.

    Returns:
        The plan, with the largest slices that are fast and fit.

    Raises:
        ValueError: if there are fewer codes than processes, or more than 2^62, or if slices of that size, or of
            one code, do not fit into memory.
    """
    layout = lay_out(runs, with_guide=with_guide, roles=roles, seen=seen)
    total = layout.space.num_codes
    if total > MOST_CODES:
        digits: Counter[int] = Counter()
        for latent in layout.space.latents:
            digits[latent.num_categories] += latent.num_latents
        found = " x ".join(f"{num_categories}^{number}" for num_categories, number in digits.items())
        raise TooManyJointCodesError(
            f"Expected at most 2^62 joint codes, but found K^N = {found}, too many to sum. Try `for t in "
            "pyro.markov(range(T))` for a chain in model and guide: exact.elbo, exact.log_evidence and their losses "
            "sum its latents one after another. Or try an estimator that samples, such as relax() with Trace_ELBO."
        )
    if total < share.world_size:
        raise ValueError(f"Expected a code for each process, but found {share.world_size} processes for {total} codes.")
    warn_of(layout.obstacle)
    bytes_per_code = bytes_of_code(runs.again(), layout, with_guide=with_guide)
    limit = memory_limit(max_memory)
    largest = limit // bytes_per_code
    if slice_size is None:
        sizes = tuning(layout.device)
        fast = (sizes.slice_bytes if with_gradient else sizes.forward_bytes) / bytes_per_code  # may be infinite
        slice_size = int(min(max(fast, 1), largest, total))
    total = -(-total // share.world_size)  # codes that this process sums
    slice_size = min(slice_size, total)
    _check_slice(slice_size, largest, bytes_per_code, limit)
    return Plan(
        layout=layout,
        bytes_per_code=bytes_per_code,
        slice_size=-(-total // -(-total // slice_size)),  # slices of equal size
        share=share,
    )


def computed(plan: Plan, part: Callable[[], Any]) -> Any:
    """Compute a part. If there are several, the backward pass recomputes each, so only one graph exists at a time."""
    if plan.num_slices == 1 or not torch.is_grad_enabled() or is_transformed():
        return part()
    return checkpoint(part, use_reentrant=False)


def _check_slice(slice_size: int, largest: int, bytes_per_code: int, limit: int) -> None:
    if largest < 1:
        raise ValueError(
            f"Expected one code to fit into {in_words(limit)}, but found that its scores take "
            f"{in_words(bytes_per_code)}. Try a larger max_memory, fewer data at once, or an estimator that samples."
        )
    if not isinstance(slice_size, Integral) or slice_size < 1:
        raise ValueError(f"Expected a slice_size of at least one code, but found {slice_size}. Try slice_size=None.")
    if slice_size > largest:
        raise ValueError(
            f"Expected a slice to fit into {in_words(limit)}, but found {slice_size:,} codes of "
            f"{in_words(bytes_per_code)} each. Try slice_size={largest}, a larger max_memory, or relax()."
        )
