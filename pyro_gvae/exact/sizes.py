"""Measure the memory that a code takes, on a few codes."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..programs.factors import Layout
from ..programs.joint import NEVER_RUN, read_both, read_guide_once
from ..programs.modes import without_trace
from ..programs.runs import Runs
from ..programs.statements import read
from ..runtime.compat.torch import Results, is_transformed

#: The peak memory of a slice, forward and backward, is about this many times what autograd saves for the backward pass.
WORK_PER_SAVED_BYTE = 3


def bytes_of_code(runs: Runs, layout: Layout, *, with_guide: bool = True) -> int:
    """Measure the bytes that one more code takes, forward and backward, on a few codes."""
    few, more = layout.few()
    grown = _saved_bytes(runs, layout, more, with_guide) - _saved_bytes(runs, layout, few, with_guide)
    saved = WORK_PER_SAVED_BYTE * max(grown, 0) // (more - few)
    digits = sum(latent.num_latents * latent.num_categories for latent in layout.space.latents)
    return saved + (digits + layout.batch_size) * layout.dtype.itemsize


def _saved_bytes(runs: Runs, layout: Layout, num_codes: int, with_guide: bool) -> int:
    """Return the bytes that autograd saves for the backward pass of some codes, constant parts included."""
    if is_transformed():
        return _bytes_of_results(runs, layout, num_codes, with_guide)
    # Codes require gradients so that frozen models are measured too.
    codes = {name: own.requires_grad_() for name, own in layout.some_codes(num_codes).items()}
    return saved_bytes(lambda: read_codes(runs, layout, codes, with_guide))


def saved_bytes(run: Callable[[], Any]) -> int:
    """Return the bytes that autograd saves for the backward pass of a run."""
    saved: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor.detach()  # the tensor itself would make a reference cycle with its graph

    with without_trace(), torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        _found = run()  # the name keeps the graph alive
    return sum(saved.values())


def _bytes_of_results(runs: Runs, layout: Layout, num_codes: int, with_guide: bool) -> int:
    """Return the bytes of all results of operations, an upper bound: torch.func does not show what it saves."""
    with without_trace(), Results() as results:
        read_codes(runs, layout, layout.some_codes(num_codes), with_guide)
    return results.num_bytes


def read_codes(runs: Runs, layout: Layout, codes: dict[str, Tensor], with_guide: bool) -> Any:
    """Read both programs, or the model alone, on some codes."""
    if with_guide:
        is_asked = layout.guide_depends or layout.has_continuous  # otherwise the guide does not depend on the codes
        return read_both(runs, layout, read_guide_once(runs, layout) if is_asked else NEVER_RUN, codes)
    return read(runs.model, layout, codes, {})
