"""Sizes that were found to be fast, for each type of device.

They say how a computation is cut, and so how long it takes; of its result they change no more than the rounding.
"""

from dataclasses import dataclass
from math import inf
from typing import final

import torch


@final
@dataclass(frozen=True)
class Tuning:
    """What a device is given at once where its memory allows more, and where another way is faster.

    Attributes:
        slice_bytes: of a slice of an exact sum, or of samples that are scored, forward and backward.
        few_codes: a sum over no more codes does not look for negligible ones, which would cost what it saves.
        decoded_rows: codes times data that local expectation decodes at once, without a graph.
        normalized_elements: pixels whose log-normalizers are computed before they are summed.
        repeated_bytes: of a call on repeated data, by which the laboratory draws several estimates at once.
        many_categories: over fewer, a recorded softmax is written as elementary operations; 0 if it never is.
    """

    slice_bytes: float
    few_codes: int
    decoded_rows: int
    normalized_elements: int
    repeated_bytes: float
    many_categories: int


#: Measured on two cores of a server: slices and calls beyond these were not faster, `decoded_rows` is what caches hold
#: of a layer and `normalized_elements` what they hold of an image's terms, and a softmax over 10 categories was five
#: times as fast by elementary operations.
CPU = Tuning(
    slice_bytes=96e6,
    few_codes=1024,
    decoded_rows=2**11,
    normalized_elements=2**19,
    repeated_bytes=128e6,
    many_categories=16,
)
#: GPUs and others: slices as large as `max_memory` allows, and many rows at once. The other sizes are those of CPUs,
#: and have not been measured.
ACCELERATOR = Tuning(
    slice_bytes=inf,
    few_codes=1024,
    decoded_rows=2**17,
    normalized_elements=2**19,
    repeated_bytes=128e6,
    many_categories=0,
)


def tuning(device: torch.device) -> Tuning:
    """The sizes for a device, by its type.

    Example:
        >>> tuning(torch.device("cpu")).few_codes
        1024
    """
    return CPU if device.type == "cpu" else ACCELERATOR
