"""Sizes that were measured to be fast, for each type of device.

They decide how a computation is cut, and so how long it takes. Results change only by rounding.
"""

from dataclasses import dataclass
from math import inf
from typing import final

import torch


@final
@dataclass(frozen=True)
class Tuning:
    """How much work a device gets at once, and when it uses another algorithm.

    Attributes:
        slice_bytes: bytes of a slice of an exact sum, or of samples that are scored, forward and backward.
        forward_bytes: the same of a sum of which no gradient is taken, counted as if it were.
        few_codes: a sum over at most this many codes does not look for negligible ones, since the search would cost as
            much as it saves.
        searched_bytes: nor does a sum in one slice of fewer bytes, since its recording saves more.
        decoded_rows: codes times data that are decoded at once, without a graph.
        normalized_elements: pixels whose log-normalizers are computed before they are summed.
        repeated_bytes: bytes of a call on repeated data, by which the laboratory draws several estimates at once.
        many_categories: a recorded softmax over fewer categories is written as elementary operations; 0 for never.
    """

    slice_bytes: float
    forward_bytes: float
    few_codes: int
    searched_bytes: float
    decoded_rows: int
    normalized_elements: int
    repeated_bytes: float
    many_categories: int


#: Measured on two cores of a server. Larger slices and calls were not faster. `decoded_rows` rows of images fit into a
#: core's cache: with 2,048 a step of `top-c` took 1.1 to 1.25 times as long, and one of `local-expectation` 1.15 to 1.2
#: times. `normalized_elements` terms of images fit into the caches. A softmax over 10 categories was five times as fast
#: by elementary operations.
CPU = Tuning(
    slice_bytes=96e6,
    forward_bytes=32e6,
    few_codes=1024,
    searched_bytes=24e6,
    decoded_rows=2**9,
    normalized_elements=2**19,
    repeated_bytes=128e6,
    many_categories=16,
)
#: For GPUs and others: slices as large as memory allows, and many rows at once. The other sizes are those of CPUs and
#: were not measured.
ACCELERATOR = Tuning(
    slice_bytes=inf,
    forward_bytes=inf,
    few_codes=1024,
    searched_bytes=24e6,
    decoded_rows=2**17,
    normalized_elements=2**19,
    repeated_bytes=128e6,
    many_categories=0,
)


def tuning(device: torch.device) -> Tuning:
    """Return the sizes for a device, by its type.

    Example:
        >>> tuning(torch.device("cpu")).few_codes
        1024
    """
    return CPU if device.type == "cpu" else ACCELERATOR
