"""Whether this machine can compile a recorded graph."""

import os
import shutil
import sys
import sysconfig
from importlib.util import find_spec
from pathlib import Path

import torch


def has_compiler(device: torch.device) -> bool:
    """Return whether this machine has what Inductor needs: a C++ compiler and Python's headers, and Triton on a GPU.

    If the environment variable CXX is set, it names the compiler.
    """
    if sys.platform == "win32":
        default = "cl"
    else:
        default = "clang++" if sys.platform == "darwin" else "g++"
    has_headers = Path(sysconfig.get_path("include"), "Python.h").is_file()
    is_there = shutil.which(os.environ.get("CXX", default)) is not None and has_headers
    return is_there and (device.type == "cpu" or find_spec("triton") is not None)
