"""Start Jupyter kernels at once: fork each from a process that has already imported what pages use.

`start` opens a socket. `python -m forked_kernels FILE`, the command of `kernels/python3`, asks there for a kernel with
that connection file, and runs as long as the kernel does.
"""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from importlib import import_module
from pathlib import Path
from socketserver import ForkingMixIn, StreamRequestHandler, UnixStreamServer
from threading import Thread
from typing import final

ADDRESS = "FORKED_KERNELS"
#: Modules that most pages use. The package comes first: after ipykernel, Pyro's progress bar would look for widgets.
IMPORTED = (
    "pyro_gvae.cli.commands",
    "matplotlib.pyplot",
    "sklearn.datasets",
    "torch._inductor",  # used by recordings, like the next
    "torch.fx.experimental.proxy_tensor",
    "IPython",
    "ipykernel.kernelapp",
)


def start() -> None:
    """Start the process from which kernels are forked. It ends with the current process."""
    os.environ[ADDRESS] = str(Path(tempfile.mkdtemp(prefix="kernels")) / "socket")
    with socket.socket(socket.AF_UNIX) as listening:  # requests wait from here on
        listening.bind(os.environ[ADDRESS])
        listening.listen()
        environment = os.environ | {"MPLBACKEND": "module://matplotlib_inline.backend_inline"}
        subprocess.Popen([sys.executable, "-m", __name__], stdin=listening, env=environment)


@final
class Kernel(StreamRequestHandler):
    """Handle a connection by becoming a kernel, in a process of its own."""

    def handle(self) -> None:
        from ipykernel.kernelapp import launch_new_instance

        file, folder = json.loads(self.rfile.readline())
        os.chdir(folder)
        Thread(target=self._end_with_client, daemon=True).start()
        launch_new_instance(["--log-level=ERROR", "-f", file])

    def _end_with_client(self) -> None:
        self.rfile.read()
        os._exit(1)


@final
class Kernels(ForkingMixIn, UnixStreamServer):
    """Fork a kernel for each connection."""

    def __init__(self) -> None:
        super().__init__("", Kernel, bind_and_activate=False)
        self.socket.close()
        self.socket = socket.socket(fileno=sys.stdin.fileno())
        self.builder = os.getppid()

    def service_actions(self) -> None:
        super().service_actions()
        if os.getppid() != self.builder:
            shutil.rmtree(Path(os.environ[ADDRESS]).parent)
            raise SystemExit


def main(arguments: list[str]) -> None:
    """Serve kernels, or ask for one if a connection file is given."""
    if not arguments:
        os.environ["JPY_PARENT_PID"] = str(os.getpid())  # kernels without a parent print how to connect to them
        for name in IMPORTED:
            import_module(name)
        Kernels().serve_forever()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # comes before the request to end
    with socket.socket(socket.AF_UNIX) as kernel:
        kernel.connect(os.environ[ADDRESS])
        kernel.sendall(json.dumps([arguments[0], os.getcwd()]).encode() + b"\n")
        kernel.recv(1)  # returns when the kernel has ended


if __name__ == "__main__":
    main(sys.argv[1:])
