"""Processes with all imports done: a server has imported everything and forks, which saves seconds each time."""

import contextlib
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any, NamedTuple

#: The server starts one process per line of input. A child ends as Python does, so that exit handlers are called.
SERVER = """
import json, os, runpy, sys
from pyro_gvae.cli import commands, main, pages, trained  # everything that a run imports
from pyro_gvae.jit import traced_elbo
from matplotlib.figure import Figure
from pathlib import Path
import torch._inductor, torch.distributed.run, torch.fx.experimental.proxy_tensor, sklearn.datasets
sys.path[:0] = sys.argv[1:]
from faults import FAULTS
for line in sys.stdin:
    asked = json.loads(line)
    child = os.fork()
    if child == 0:
        for number, name in ((0, os.devnull), (1, asked["out"]), (2, asked["err"])):
            os.dup2(os.open(name, os.O_RDWR | os.O_CREAT), number)
        fault, call = asked["fault"]
        if fault in FAULTS:
            FAULTS[fault](call)
        if asked["script"]:
            sys.argv = [asked["script"], *asked["words"]]
            runpy.run_path(asked["script"], run_name="__main__")
            sys.exit()
        traced_elbo.TracedELBO.outcome = lambda *_, **__: None  # as in `conftest.unrecorded`
        Figure.savefig = lambda self, path, **_: Path(path).write_bytes(b"")  # as in `conftest.unrendered`
        sys.exit(main.main(asked["words"]))
    print(child, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""
HERE = Path(__file__).parent


def forking() -> ForkServerContext:
    """Return a multiprocessing context whose processes have already imported most of what a run needs."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        ["pyro_gvae.train.launch", "pyro_gvae.report.training", "torch.fx.experimental.proxy_tensor"]
    )
    return context


class Done(NamedTuple):
    """A process that has ended.

    Attributes:
        code: its exit code, negative if a signal ended it.
        out: what it printed.
        err: what it said on stderr.
    """

    code: int
    out: str
    err: str


class Server:
    """Run `pyro-gvae ARGUMENTS` without recordings and pictures, or a script, in new processes, one after another."""

    def __init__(self) -> None:
        self.folder = tempfile.TemporaryDirectory()
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", SERVER, str(HERE), str(HERE.parent / "experiments")],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    def start(self, *words: str, script: str | Path | None = None, fault: tuple[str, int] = ("none", 0)) -> int:
        """Start a process, and return its number; the next call must be `end`.

        Args:
            words: the arguments.
            script: a file of Python that is run instead of `pyro-gvae`.
            fault: one of `faults.FAULTS`, and the number of the call at which the process ends itself.
        """
        assert self.process.stdin is not None and self.process.stdout is not None
        for path in self._said:
            path.write_text("")
        out, err = map(str, self._said)
        asked = {"words": words, "script": script and str(script), "fault": fault, "out": out, "err": err}
        self.process.stdin.write(json.dumps(asked) + "\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline())

    def end(self) -> Done:
        """Wait for the started process, and return it."""
        assert self.process.stdout is not None
        code = int(self.process.stdout.readline())
        return Done(code, *(path.read_text() for path in self._said))

    def run(self, *words: str, script: str | Path | None = None) -> Done:
        """Run a process to its end."""
        self.start(*words, script=script)
        return self.end()

    def in_a_process(self, script: str, **arguments: Any) -> dict[str, Any]:
        """Replace `bench.in_a_process` by a forked process, for scripts that do not die."""
        done = self.run(json.dumps(arguments), script=script)
        assert done.code == 0, done.err
        return {"died": False, **json.loads(done.out.splitlines()[-1])}

    def __call__(
        self,
        *words: str,
        kill: Callable[[], None] | None = None,
        number: int = signal.SIGKILL,
        fault: tuple[str, int] = ("none", 0),
    ) -> int:
        """Return the exit code of a command, negative if a signal ended it; kill the process when `kill` returns."""
        child = self.start(*words, fault=fault)
        if kill is not None:
            kill()
            with contextlib.suppress(ProcessLookupError):  # the process has already ended
                os.kill(child, number)
        return self.end().code

    def close(self) -> None:
        self.process.communicate()
        self.folder.cleanup()

    @property
    def _said(self) -> list[Path]:
        return [Path(self.folder.name) / name for name in ("out", "err")]
