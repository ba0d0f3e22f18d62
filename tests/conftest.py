"""What tests share: their order, the examples of hypothesis, MNIST beside the repository, processes, quick runs."""

import gc
import signal
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest
from processes import Server

from pyro_gvae.compare import run as compare_module
from pyro_gvae.jit.traced_elbo import TracedELBO
from pyro_gvae.report import style

MNIST_ROOT = Path(__file__).parents[2] / "shared" / "mnist"

# The same examples in every run, and no limit of time on one: torch's first call is slow.
hypothesis.settings.register_profile("repeatable", derandomize=True, deadline=None, database=None)
hypothesis.settings.load_profile("repeatable")


# Half a million objects of torch and of the tests themselves live for ever. To go through them at Python's own pace
# takes a tenth of the tests' time.
gc.set_threshold(50_000, 20, 100)


# A shell starts background jobs with SIGINT ignored, as `make test &` would, and what tests start would inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the pages, which take longest, and the files with most slow tests: so all workers end at one time."""
    slow = Counter(item.path for item in items if item.get_closest_marker("slow"))
    items.sort(key=lambda item: (item.path.name != "test_docs.py", -slow[item.path]))


@pytest.fixture(scope="session")
def mnist_root() -> Path:
    """The folder that torchvision takes as `root`; the test is skipped where it is absent."""
    if not MNIST_ROOT.is_dir():
        pytest.skip("needs MNIST in ../shared/mnist (relative to the repository), which is absent")
    return MNIST_ROOT


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    """Runs commands in processes of their own."""
    running = Server()
    yield running
    running.close()


@pytest.fixture(scope="session", autouse=True)
def coarse_pictures() -> Iterator[None]:
    """Figures have few pixels: to compress them takes as long as to draw them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(style, "DPI", 30)
        yield


@pytest.fixture
def unrecorded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps run as they are: a recording takes as long as hundreds of small steps."""
    monkeypatch.setattr(TracedELBO, "outcome", lambda *_, **__: None)


@pytest.fixture
def unreported(monkeypatch: pytest.MonkeyPatch) -> None:
    """Comparisons have all results, and no figures of them, which take longer than to train."""
    monkeypatch.setattr(compare_module, "write_report", lambda run: None)


@pytest.fixture
def slow_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """By its clock, this machine takes a million times as long for everything."""
    clock = time.perf_counter
    monkeypatch.setattr(time, "perf_counter", lambda: 1e6 * clock())
