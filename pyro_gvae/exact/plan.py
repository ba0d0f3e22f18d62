"""The space of joint codes, cut into slices that fit into memory."""

import itertools
import math
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..distributions.codes import num_codes, numbered_codes
from ..handlers.sites import Run
from ..programs.reader import Scores, Site, score
from ..runtime.distributed import ALONE, Share
from ..runtime.memory import in_words, memory_limit
from ..runtime.tuning import tuning

#: The peak memory of a slice, forward and backward, is about this many times what autograd saves for the backward pass.
WORK_PER_SAVED_BYTE = 3
#: Code numbers are 64-bit integers.
MOST_CODES = 2**62


class Plan(NamedTuple):
    """How the sum over the S joint codes of a model is cut into slices."""

    name: str  # of the one-hot site
    num_latents: int
    num_categories: int
    batch_shape: torch.Size
    nesting: int  # the number of batch dimensions that the model's plates take
    bytes_per_code: int
    slice_size: int
    dtype: torch.dtype
    device: torch.device
    share: Share = ALONE

    @property
    def num_codes(self) -> int:
        """S = K^N."""
        return num_codes(self.num_latents, self.num_categories)

    @property
    def num_slices(self) -> int:
        """The number of slices into which the codes of this share are cut."""
        return -(-self.num_shared // self.slice_size)

    @property
    def num_shared(self) -> int:
        """The number of codes in this share. Shares differ by at most one code."""
        full, rest = divmod(self.num_codes, self.share.world_size)
        return full + (self._place(full) < rest)

    @property
    def log_negligible(self) -> float:
        """log(eps / 16 S): S codes with this probability are lost in the rounding error of one sum."""
        return math.log(torch.finfo(self.dtype).eps / 16) - math.log(self.num_codes)

    def check(self, guide: Site) -> Site:
        """Return the guide's site if it has the name and shape of the model's.

        Raises:
            ValueError: if name or shape differ.
        """
        if guide.name != self.name:
            raise ValueError(
                f"Expected the one-hot sites of model and guide to have the same name, but found '{self.name}' in the "
                f"model and '{guide.name}' in the guide."
            )
        expected, found = (*self.batch_shape, self.num_latents, self.num_categories), tuple(guide.logits.shape)
        if found != expected:
            raise ValueError(
                f"Expected model and guide to have codes of the same shape, but found {expected} in the model and "
                f"{found} in the guide at site '{self.name}'."
            )
        return guide

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

    def codes(self, numbers: Tensor) -> Tensor:
        """Return the joint codes (s, N, K) with the given numbers (s,)."""
        return numbered_codes(numbers, self.num_latents, self.num_categories, dtype=self.dtype)

    def weights(self, log_weights: Tensor) -> Tensor:
        """Compute exp(log_weights), with negligible weights set to exactly 0.

        Under a sharp posterior most codes have a denormal probability, and CPUs compute slowly with denormal numbers.
        """
        return torch.threshold(log_weights, self.log_negligible, -math.inf).exp()

    def log_sum(self, log_weights: Tensor) -> Tensor:
        """Compute logsumexp over the first dimension without denormal numbers."""
        highest = log_weights.detach().amax(0).clamp_min(torch.finfo(log_weights.dtype).min)
        return highest + self.weights(log_weights - highest).sum(0).log()

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
        elif none_yet:  # all codes of this share are negligible, but a program cannot run on none
            yield next(self.numbers())[:1]


def make_plan(
    model: Run, *, max_memory: float | None = None, slice_size: int | None = None, share: Share = ALONE
) -> Plan:
    """Cut the code space of a model into slices, after a few runs on one to four codes.

    Args:
        model: the program with its data bound.
        max_memory: bytes that a slice may take, forward and backward; a quarter of the free memory if None.
        slice_size: codes of a slice; the largest that is fast and fits into `max_memory` if None.
        share: which codes this process sums, if several processes divide them.

    Returns:
        The plan, with the largest slices that are fast and fit.

    Raises:
        ValueError: if there are fewer codes than processes, or more than 2^62, or if slices of that size, or of
            one code, do not fit.
    """
    with torch.no_grad():
        probe = score(model)
    logits = probe.prior.logits
    num_latents, num_categories = logits.shape[-2:]
    total = num_codes(num_latents, num_categories)
    if total > MOST_CODES:
        raise ValueError(
            f"Expected at most 2^62 joint codes, but found K^N = {num_categories}^{num_latents}, too many to sum. Try "
            "an estimator that samples, such as relax() with Trace_ELBO."
        )
    if total < share.world_size:
        raise ValueError(f"Expected a code for each process, but found {share.world_size} processes for {total} codes.")
    bytes_per_code = bytes_of_code(model, probe)
    limit = memory_limit(max_memory, logits.device)
    largest = limit // bytes_per_code
    if slice_size is None:
        fast = tuning(logits.device).slice_bytes / bytes_per_code  # infinite if larger slices are always faster
        slice_size = int(min(max(fast, 1), largest, total))
    total = -(-total // share.world_size)  # codes that this process sums
    slice_size = min(slice_size, total)
    _check_slice(slice_size, largest, bytes_per_code, limit)
    return Plan(
        name=probe.prior.name,
        num_latents=num_latents,
        num_categories=num_categories,
        batch_shape=probe.prior.batch_shape,
        nesting=probe.nesting,
        bytes_per_code=bytes_per_code,
        slice_size=-(-total // -(-total // slice_size)),  # slices of equal size
        dtype=logits.dtype,
        device=logits.device,
        share=share,
    )


def _check_slice(slice_size: int, largest: int, bytes_per_code: int, limit: int) -> None:
    if largest < 1:
        raise ValueError(
            f"Expected one code to fit into {in_words(limit)}, but found that its scores take "
            f"{in_words(bytes_per_code)}. Try a larger max_memory, fewer data at once, or an estimator that samples."
        )
    if slice_size < 1:
        raise ValueError(f"Expected a slice_size of at least one code, but found {slice_size}. Try slice_size=None.")
    if slice_size > largest:
        raise ValueError(
            f"Expected a slice to fit into {in_words(limit)}, but found {slice_size:,} codes of "
            f"{in_words(bytes_per_code)} each. Try slice_size={largest}, a larger max_memory, or relax()."
        )


def bytes_of_code(model: Run, probe: Scores) -> int:
    """Measure the bytes that one more code takes, forward and backward, on a few codes."""
    logits = probe.prior.logits
    # Use numbers of codes that are no plate's size, so that a decoder that pairs codes with data fails and is refused.
    numbers = (number for number in itertools.chain((2, 4), itertools.count(5)) if number not in probe.sizes)
    few, more = next(numbers), next(numbers)
    grown = max(_saved_bytes(model, probe, more) - _saved_bytes(model, probe, few), 0)
    saved = WORK_PER_SAVED_BYTE * grown // (more - few)
    return saved + (logits.shape[-2:].numel() + probe.prior.batch_shape.numel()) * logits.element_size()


def _saved_bytes(model: Run, probe: Scores, num_codes: int) -> int:
    """Return the bytes that autograd saves for the backward pass of some codes, constant parts included."""
    saved: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor.detach()  # the tensor itself would make a reference cycle with its graph

    shape, logits = probe.prior.logits.shape[-2:], probe.prior.logits
    codes = logits.new_zeros(num_codes, *shape)
    codes[..., 0] = 1.0
    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        # Codes require gradients so that frozen models are measured too; the name keeps the graph alive.
        _table = score(model, codes.requires_grad_(), probe.nesting).table
    return sum(saved.values())
