"""What tests share: the examples of hypothesis, MNIST where it lies beside the repository, a slow clock."""

import signal
import time
from pathlib import Path

import hypothesis
import pytest

MNIST_ROOT = Path(__file__).parents[2] / "shared" / "mnist"

# The same examples in every run, and no limit of time on one: torch's first call is slow.
hypothesis.settings.register_profile("repeatable", derandomize=True, deadline=None, database=None)
hypothesis.settings.load_profile("repeatable")


# A shell starts background jobs with SIGINT ignored, as `make test &` would, and what tests start would inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


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
