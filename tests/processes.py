"""Processes that begin with everything imported: a server has imported it and forks, which saves seconds each time."""

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

SERVER = """
import os, sys
from pyro_gvae.cli import commands, main  # everything that a run imports
import torch._inductor, torch.fx.experimental.proxy_tensor, sklearn.datasets
sys.path.insert(0, sys.argv[1])
from faults import FAULTS
for line in sys.stdin:
    fault, number, *words = line.split()
    child = os.fork()
    if child == 0:
        sys.stdout = open(os.devnull, "w")
        if fault in FAULTS:
            FAULTS[fault](int(number))
        os._exit(main.main(words))
    print(child, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


class Server:
    """Runs `pyro-gvae ARGUMENTS` in a process of its own, one after another."""

    def __init__(self) -> None:
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            [sys.executable, "-c", SERVER, str(Path(__file__).parent)],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    def __call__(
        self,
        command: str,
        *arguments: str,
        kill: Callable[[], None] | None = None,
        number: int = signal.SIGKILL,
        fault: tuple[str, int] = ("none", 0),
    ) -> int:
        """The exit code, negative if a signal ended it; `kill` is called when the process has begun.

        A fault of `faults.FAULTS`, and a number, say at which call the process ends itself.
        """
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(" ".join((*map(str, fault), command, *arguments)) + "\n")
        self.process.stdin.flush()
        child = int(self.process.stdout.readline())
        if kill is not None:
            kill()
            with contextlib.suppress(ProcessLookupError):  # it was faster
                os.kill(child, number)
        return int(self.process.stdout.readline())

    def close(self) -> None:
        self.process.communicate()
