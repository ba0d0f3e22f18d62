"""Setup shared by all tests: their order, hypothesis settings, MNIST, child processes, and fixtures that save time."""

import gc
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import hypothesis
import pytest
from matplotlib.figure import Figure
from processes import Server

from pyro_gvae.cli import commands as commands_module
from pyro_gvae.compare import run as compare_module
from pyro_gvae.jit.traced_elbo import TracedELBO
from pyro_gvae.report import style

MNIST_ROOT = Path(__file__).parents[2] / "shared" / "mnist"
OUTCOME = TracedELBO.outcome

# Use the same examples in every run, without a time limit, because the first call of torch is slow.
hypothesis.settings.register_profile("repeatable", derandomize=True, deadline=None, database=None)
hypothesis.settings.load_profile("repeatable")


# Half a million objects of torch and of the tests are never freed. Garbage collections at Python's default pace would
# visit them all, and take a tenth of the time of the tests.
gc.set_threshold(50_000, 20, 100)


# A shell ignores SIGINT in background jobs such as `make test &`, and child processes of the tests would inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the pages, which take longest, and the files with most slow tests first, so that all workers end together."""
    slow = Counter(item.path for item in items if item.get_closest_marker("slow"))
    items.sort(key=lambda item: (item.path.name != "test_docs.py", -slow[item.path]))


@pytest.fixture(scope="session")
def mnist_root() -> Path:
    """Return the MNIST folder (torchvision's `root`); skip the test if there is none."""
    if not MNIST_ROOT.is_dir():
        pytest.skip("needs MNIST in ../shared/mnist (relative to the repository), which is absent")
    return MNIST_ROOT


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    """Provide a server that runs commands in new processes."""
    running = Server()
    yield running
    running.close()


@pytest.fixture(scope="session", autouse=True)
def coarse_pictures() -> Iterator[None]:
    """Figures have few pixels: to compress them takes as long as to draw them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(style, "DPI", 30)
        yield


@pytest.fixture(scope="module", autouse=True)
def unrecorded() -> Iterator[None]:
    """Do not record steps, since a recording takes as long as hundreds of small ones; doctests and processes do."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TracedELBO, "outcome", lambda *_, **__: None)
        yield


@pytest.fixture
def recorded(unrecorded: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Record steps as outside of tests, for tests of what a recording may change."""
    monkeypatch.setattr(TracedELBO, "outcome", OUTCOME)


@pytest.fixture(scope="session")
def without_rendering() -> Callable[[], AbstractContextManager[None]]:
    """Draw figures, but save them as empty files: their layout and rendering take most of the time of a report."""

    @contextmanager
    def patched() -> Iterator[None]:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Figure, "savefig", lambda self, path, **_: Path(path).write_bytes(b""))
            yield

    return patched


@pytest.fixture
def unrendered(without_rendering: Callable[[], AbstractContextManager[None]]) -> Iterator[None]:
    """Save figures as empty files in one test."""
    with without_rendering():
        yield


@pytest.fixture(scope="session")
def without_reports() -> Callable[[], AbstractContextManager[None]]:
    """Train without writing reports, since their figures take as long as a short training; `report` writes them."""

    @contextmanager
    def patched() -> Iterator[None]:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(compare_module, "write_report", lambda run: None)
            patch.setattr(commands_module, "write_train_report", lambda run, **_: run / "report.html")
            yield

    return patched


@pytest.fixture
def unreported(without_reports: Callable[[], AbstractContextManager[None]]) -> Iterator[None]:
    """Train without writing reports in one test."""
    with without_reports():
        yield


@pytest.fixture
def slow_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let everything appear to take a million times as long."""
    clock = time.perf_counter
    monkeypatch.setattr(time, "perf_counter", lambda: 1e6 * clock())
