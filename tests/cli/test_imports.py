"""Imports of commands: only the libraries that a command uses, so that it starts fast."""

import json
import subprocess
import sys

import pytest

from pyro_gvae.cli.main import main

#: Modules that take as long to import as torch, and that only training needs.
SLOW = {"torch._dynamo", "torch.fx.experimental.symbolic_shapes", "sympy", "triton", "sklearn", "torchvision", "joblib"}
#: Commands, and what they may import in addition to the commands before them.
COMMANDS = [
    (["list"], set()),
    (["sample", "RUN"], {"torch", "pyro", "PIL"}),
    (["evaluate", "RUN"], {"scipy"}),  # for the linear probe
    (["encode", "RUN"], {"pandas"}),
    (["gaps", "RUN", "--num-particles", "1", "--num-data", "2"], {"jinja2", "matplotlib"}),
]
WATCHED = SLOW.union(*(more for _, more in COMMANDS))

#: Run commands one after another in one process, and list its imports after each.
ONE_AFTER_ANOTHER = """
import json, sys
from pyro_gvae.cli.main import main
commands, watched = json.loads(sys.argv[1])
for words in commands:
    assert main(words) == 0
    print(json.dumps(sorted({*watched} & {*sys.modules})), file=sys.stderr)
"""


@pytest.mark.slow  # starts a process
def test_a_command_imports_what_it_uses(tmp_path):
    run = str(tmp_path / "run")
    size = ["--num-latents", "1", "--num-categories", "2", "--hidden", "4"]
    assert main(["train", *size, "--stages", "exact:1steps", "--output", run]) == 0
    words = [[run if word == "RUN" else word for word in command] for command, _ in COMMANDS]
    asked = json.dumps([words, sorted(WATCHED)])
    done = subprocess.run([sys.executable, "-c", ONE_AFTER_ANOTHER, asked], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    imported = [set(json.loads(line)) for line in done.stderr.splitlines() if line.startswith("[")]
    allowed: set[str] = set()
    for (command, more), found in zip(COMMANDS, imported, strict=True):
        allowed |= more
        assert found == allowed, command  # all allowed modules are found, so the check can see them
