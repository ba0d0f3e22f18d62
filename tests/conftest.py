"""What every test shares: nothing global, a seed, and MNIST where it lies beside the repository."""

import time
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pyro
import pytest
import torch

MNIST_ROOT = Path(__file__).parents[2] / "shared" / "mnist"

# The same examples in every run, and no limit of time on one: torch's first call is slow.
hypothesis.settings.register_profile("repeatable", derandomize=True, deadline=None, database=None)
hypothesis.settings.load_profile("repeatable")


class Isolation:
    """A plugin of its own: a fixture of this conftest would not reach the doctests outside `tests/`."""

    @pytest.fixture(autouse=True)
    def isolated(self) -> Iterator[None]:
        """Start with an empty param store and seed 0; put back dtype, settings and random state."""
        dtype = torch.get_default_dtype()
        random_state = pyro.util.get_rng_state()
        settings = pyro.settings.get()
        with pyro.get_param_store().scope():
            pyro.set_rng_seed(0)
            yield
        torch.set_default_dtype(dtype)
        pyro.util.set_rng_state(random_state)
        pyro.settings.set(**settings)


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(Isolation(), "isolation")


@pytest.fixture(scope="session")
def mnist_root() -> Path:
    """The folder that torchvision takes as `root`; the test is skipped where it is absent."""
    if not MNIST_ROOT.is_dir():
        pytest.skip("needs MNIST in ../shared/mnist (relative to the repository), which is absent")
    return MNIST_ROOT


@pytest.fixture
def slow_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """By its clock, this machine takes a million times as long for everything."""
    clock = time.perf_counter
    monkeypatch.setattr(time, "perf_counter", lambda: 1e6 * clock())
