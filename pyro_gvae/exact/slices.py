"""The code space in slices that fit into memory, and what a sum over it costs before it is begun."""

import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..distributions.one_hot import joint_codes, num_codes
from ..memory import in_words, memory_limit
from .programs import HasPair, OwnParameters, Scores, Site, read_guide, score

#: Slices above this size are slower, not faster: their activations leave the processor's cache.
FAST_SLICE = 1024
MOST_CODES = 2**62


class Plan(NamedTuple):
    """How a sum over the S joint codes of a model is cut into slices."""

    num_latents: int
    num_categories: int
    slice_size: int
    nesting: int
    batch_shape: torch.Size
    dtype: torch.dtype
    device: torch.device

    @property
    def num_codes(self) -> int:
        """S = K^N."""
        return num_codes(self.num_latents, self.num_categories)

    @property
    def bounds(self) -> list[tuple[int, int]]:
        """First code of each slice, and one past its last."""
        starts = range(0, self.num_codes, self.slice_size)
        return [(start, min(start + self.slice_size, self.num_codes)) for start in starts]

    def codes(self, start: int, stop: int) -> Tensor:
        """Joint codes (s, N, K)."""
        return joint_codes(self.num_latents, self.num_categories, start, stop, dtype=self.dtype, device=self.device)

    def scores(self, model: Callable[[], Any], start: int, stop: int) -> tuple[Tensor, Scores]:
        """Codes (s, N * K), and what the model says about them."""
        codes = self.codes(start, stop)
        return codes.flatten(1), score(model, codes, self.nesting)


def plan(
    model: Callable[[], Any], *, max_memory: float | None = None, slice_size: int | None = None
) -> Plan:
    if slice_size is not None and slice_size < 1:
        raise ValueError(f"Expected a slice_size of at least one code, but found {slice_size}.")
    with torch.no_grad():
        probe = score(model)
    logits = probe.prior.logits
    shape = logits.shape[-2:]
    size = min(slice_size or FAST_SLICE, num_codes(*shape))
    return Plan(*shape, size, probe.nesting, logits.shape[:-2], logits.dtype, logits.device)
