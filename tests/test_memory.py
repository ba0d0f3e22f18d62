"""How much memory a computation may take."""

import psutil
import pytest
import torch

from pyro_gvae.memory import DEFAULT_FRACTION, in_words, memory_limit

CPU = torch.device("cpu")


def test_the_callers_limit_counts():
    assert memory_limit(2e9, CPU) == 2_000_000_000


def test_the_default_is_a_fraction_of_what_is_free():
    free = psutil.virtual_memory().available
    assert memory_limit(None, CPU) == pytest.approx(DEFAULT_FRACTION * free, rel=0.2)


@pytest.mark.parametrize("wrong", [0, -1.0, float("nan")])
def test_a_limit_is_positive(wrong):
    with pytest.raises(ValueError, match="Expected max_memory in bytes, a positive number"):
        memory_limit(wrong, CPU)


@pytest.mark.parametrize(
    ("size", "words"), [(12, "12 bytes"), (4_700, "4.7 kB"), (1e6, "1.0 MB"), (2.55e9, "2.5 GB"), (9e15, "9000.0 TB")]
)
def test_words(size, words):
    assert in_words(size) == words
