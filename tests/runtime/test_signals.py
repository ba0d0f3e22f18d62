"""Signals: noted, raised, ignored and late ones; and processes that end with their parent."""

import pickle
import signal
import subprocess
import sys
import time

import psutil
import pytest

from pyro_gvae.runtime.signals import STOPPING, StoppedError, raise_on_signal, stop_on_signal


@pytest.fixture(params=STOPPING, ids=lambda number: number.name)
def number(request):
    """Provide a signal that raises an exception if nothing else handles it, and that is not ignored."""

    def hear(number, frame):
        raise StoppedError(signal.Signals(number))

    before = signal.signal(request.param, hear)
    yield request.param
    signal.signal(request.param, before)


def test_the_first_signal_is_noted_and_a_second_one_is_not(number):
    with pytest.raises(StoppedError), stop_on_signal() as stop:
        signal.raise_signal(number)
        assert stop.asked is number
        signal.raise_signal(number)


def test_a_signal_that_nobody_heeds_is_sent_again_at_the_end(number):
    """It is not swallowed, because the code after the block must learn of it."""
    ended = []
    with pytest.raises(StoppedError) as stopped:
        with stop_on_signal():
            signal.raise_signal(number)
            ended.append(True)
        ended.append(False)
    assert stopped.value.signal is number and ended == [True]
    with pytest.raises(StoppedError), stop_on_signal():
        signal.raise_signal(number)
        raise ValueError("of something else")


def test_a_signal_that_is_heeded_is_sent_once(number):
    with pytest.raises(KeyboardInterrupt, match="heeded"), stop_on_signal():
        signal.raise_signal(number)
        raise KeyboardInterrupt("heeded")


def test_a_signal_is_raised_once_and_handlers_are_as_before(number):
    heard = signal.getsignal(number)
    with pytest.raises(StoppedError, match=f"stopped by {number.name}") as stopped, raise_on_signal():
        assert signal.getsignal(number) is not heard
        signal.raise_signal(number)
    assert stopped.value.signal is number and signal.getsignal(number) is heard
    assert pickle.loads(pickle.dumps(stopped.value)).signal is number


@pytest.mark.parametrize("hear", [stop_on_signal, raise_on_signal])
def test_an_ignored_signal_stays_ignored(number, hear):
    """This is the case after `nohup`, and in background jobs of a script."""
    signal.signal(number, signal.SIG_IGN)
    with hear() as stop:
        signal.raise_signal(number)
        assert signal.getsignal(number) is signal.SIG_IGN
    assert getattr(stop, "asked", None) is None


def test_a_process_ends_with_its_parent():
    child = "import os, time; from pyro_gvae.runtime.signals import end_with\nend_with(os.getppid())\ntime.sleep(60)"
    parent = (
        f"import subprocess, sys, time; child = subprocess.Popen([sys.executable, '-c', {child!r}])\n"
        "print(child.pid, flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", parent], stdout=subprocess.PIPE, text=True) as process:
        orphan = psutil.Process(int(process.stdout.readline()))
        time.sleep(0.3)
        assert orphan.is_running()  # the control: it lives as long as its parent
        process.kill()
    deadline = time.monotonic() + 10
    while orphan.is_running() and orphan.status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline
        time.sleep(0.05)
