"""A progress bar never stops the work that it shows."""

import io
import sys
import threading

import pytest

from pyro_gvae.runtime.progress import Progress


class Broken(io.StringIO):
    def __init__(self, error):
        super().__init__()
        self.error = error

    def write(self, text):
        raise self.error


BROKEN = {
    "none": lambda: None,
    "closed pipe": lambda: Broken(BrokenPipeError(32, "Broken pipe")),
    "full disk": lambda: Broken(OSError(28, "No space left on device")),
    "closed file": lambda: Broken(ValueError("I/O operation on closed file")),
    "ascii": lambda: io.TextIOWrapper(io.BytesIO(), encoding="ascii", errors="strict"),
}


@pytest.mark.parametrize("make", BROKEN.values(), ids=BROKEN)
def test_a_stream_that_cannot_be_written_stops_no_work(make, monkeypatch):
    monkeypatch.setattr(sys, "stderr", make())
    assert list(Progress(range(3), desc="±", mininterval=0)) == [0, 1, 2]
    with Progress(total=2) as bar:
        bar.set_postfix_str("±")
        bar.update()


def test_a_bar_is_seen_and_leaves_no_thread(monkeypatch):
    seen = io.StringIO()
    monkeypatch.setattr(sys, "stderr", seen)
    before = threading.active_count()
    assert sum(Progress([1, 2, 3], desc="seen")) == 6
    assert seen.getvalue().startswith("seen: 100%| 3/3 it, ") and threading.active_count() == before
    assert "\r" not in seen.getvalue() and seen.getvalue().count("\n") == 1  # one line at the end


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_terminal_has_a_bar_and_a_log_a_line_every_so_often(monkeypatch):
    clock = {"now": 0.0}
    monkeypatch.setattr("pyro_gvae.runtime.progress.time.monotonic", lambda: clock["now"])
    for seen, lines in ((Terminal(), 1), (io.StringIO(), 4)):
        clock["now"] = 0.0
        monkeypatch.setattr(sys, "stderr", seen)
        with Progress(total=100, desc="work", unit="step") as bar:
            for _ in range(100):
                clock["now"] += 1.0
                bar.set_postfix_str(f"at {clock['now']:g}")
                bar.update()
        assert ("\r" in seen.getvalue(), seen.getvalue().count("\n")) == (lines == 1, lines)
    assert [line.split()[-1] for line in seen.getvalue().splitlines()] == ["30", "60", "90", "100"]
