"""Run `torchrun OPTIONS -m pyro_gvae ARGUMENTS` with torch's launcher, but fork its processes, which saves imports."""

import argparse
import sys
from typing import Any

from torch.distributed import run as torchrun
from torch.distributed.run import config_from_args

from pyro_gvae.cli.main import main
from pyro_gvae.jit.traced_elbo import TracedELBO


def command(*words: str) -> None:
    """Run a command without recordings, in a process that torchrun has started."""
    TracedELBO.outcome = lambda *_, **__: None  # as in `conftest.unrecorded`
    if code := main(list(words)):
        raise SystemExit(code)


def forked(arguments: argparse.Namespace) -> tuple[Any, Any, list[str]]:
    """Return torchrun's launch settings, changed to run a function in forked processes instead of a new Python."""
    config, _, _ = config_from_args(arguments)
    config.start_method = "fork"
    return config, command, arguments.training_script_args


if __name__ == "__main__":
    torchrun.config_from_args = forked
    torchrun.main(sys.argv[1:])
