"""How much memory a computation may take."""

import psutil
import pytest
import torch

from pyro_gvae import exact
from pyro_gvae.cli.main import main
from pyro_gvae.models.categorical_vae import CategoricalVAE
from pyro_gvae.runtime import memory
from pyro_gvae.runtime.memory import DEFAULT_FRACTION, in_words, memory_limit, peak_memory

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


def test_the_peak_is_what_lived_at_once():
    def run():
        first = torch.zeros(1000)  # 4 kB
        second = first + 1
        del first
        third = second.view(10, 100).add_(1)  # no new memory
        return third.double()  # 8 kB beside 4 kB

    assert peak_memory(run) == 12_000
    before = torch.zeros(5000)
    assert peak_memory(lambda: before.add_(1).sum()) == 4  # what was there is not counted, nor what is written to


def test_the_peak_has_the_backward_pass():
    x = torch.randn(1000, requires_grad=True)
    assert peak_memory(lambda: (x * 2).exp().sum()) < peak_memory(lambda: (x * 2).exp().sum().backward())


def test_the_allocator_is_set_for_those_who_ask_alone(monkeypatch):
    """A block of 31 MiB is taken by the command line, and not by a sum."""
    asked = []
    vae, x = CategoricalVAE(6, 4, 3, (5,)), torch.ones(4, 6)
    assert peak_memory(lambda: exact.elbo(vae, x)) < 2**20 < 31 * 2**20 == peak_memory(memory.keep_freed_memory)
    monkeypatch.setattr(memory, "keep_freed_memory", lambda: asked.append(1))
    assert main(["report", "no-such-run"]) == 2 and asked == [1]
