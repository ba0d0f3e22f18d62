"""Limits of memory, and the behaviour when memory ends."""

import errno
import json
import sys

import pytest
import torch

from pyro_gvae import exact
from pyro_gvae.cli import pages
from pyro_gvae.cli.main import main
from pyro_gvae.config.compare import CompareConfig
from pyro_gvae.config.gradients import AdviseConfig, GradientsConfig
from pyro_gvae.config.train import TrainConfig
from pyro_gvae.config.units import in_bytes
from pyro_gvae.models.categorical_vae import CategoricalVAE
from pyro_gvae.runs.checkpoint import load_checkpoint
from pyro_gvae.runs.files import write_json
from pyro_gvae.runtime import memory
from pyro_gvae.runtime.memory import DEFAULT_MEMORY, in_words, is_out_of_memory, memory_limit, peak_memory
from pyro_gvae.train.training import Training


def test_the_limit_is_the_callers_or_the_same_on_every_machine(monkeypatch):
    """The limit determines slices, and with them the rounding of sums, so it does not depend on free memory."""
    monkeypatch.setattr("psutil.virtual_memory", lambda: pytest.fail("Expected no look at the machine."))
    assert memory_limit(2e9) == 2_000_000_000
    assert memory_limit(None) == DEFAULT_MEMORY == in_bytes(TrainConfig().max_memory)
    assert {config().max_memory for config in (CompareConfig, GradientsConfig, AdviseConfig)} == {4.0}
    assert memory_limit(float("inf")) > 1e18


@pytest.mark.parametrize("wrong", [0, -1.0, float("nan")])
def test_a_limit_is_positive(wrong):
    with pytest.raises(ValueError, match="Expected max_memory in bytes, a positive number"):
        memory_limit(wrong)


@pytest.mark.parametrize(
    ("error", "is_one"),
    [
        (MemoryError(), True),
        (torch.OutOfMemoryError("CUDA out of memory."), True),
        (RuntimeError("std::bad_alloc"), True),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), True),
        (ImportError("libfigures.so: failed to map segment from shared object"), True),
        (RuntimeError("shapes do not fit"), False),
        (ImportError("No module named 'figures'"), False),
        (OSError(errno.ENOSPC, "No space left on device"), False),
        (ValueError("allocate memory"), False),
    ],
)
def test_errors_that_say_that_memory_has_ended(error, is_one):
    assert is_out_of_memory(error) is is_one


def test_an_impossible_allocation_is_such_an_error():
    with pytest.raises(RuntimeError) as error:
        torch.empty(2**60, dtype=torch.uint8)
    assert is_out_of_memory(error.value)


def test_a_command_without_memory_is_one_sentence(monkeypatch, capsys, tmp_path):
    def greedy(config):
        torch.empty(2**60, dtype=torch.uint8)

    monkeypatch.setattr(pages, "report_command", greedy)
    write_json(tmp_path / "config.json", {"train": {}})
    assert main(["report", str(tmp_path)]) == 2
    assert "Expected enough memory for this command, but found that it ran out. Try" in capsys.readouterr().err


def written(folder, script):
    """Write a script to a file."""
    path = folder / "script.py"
    path.write_text(script)
    return path


LIMITED = """
import resource, sys, torch
from pathlib import Path
from pyro_gvae.runs.checkpoint import load_checkpoint, save_checkpoint
from pyro_gvae.runtime.memory import is_out_of_memory

path = Path(sys.argv[1])
tensors = {"weights": torch.zeros(25_000_000)}
save_checkpoint(path, tensors)
used = next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith("VmSize"))
resource.setrlimit(resource.RLIMIT_AS, (used + 150_000_000, resource.RLIM_INFINITY))
for call in (lambda: save_checkpoint(path, tensors), lambda: load_checkpoint(path)):
    try:
        call()
    except (MemoryError, RuntimeError) as error:
        print("refused" if is_out_of_memory(error) else error)
resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
print(len(load_checkpoint(path)["weights"]))
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits memory as Linux does")
def test_memory_that_ends_with_a_checkpoint_leaves_the_last_one(server, tmp_path):
    """Under `ulimit -v`, safetensors by itself would end the process without an exception."""
    folder = tmp_path / "folder"
    folder.mkdir()
    done = server.run(str(folder / "checkpoint.safetensors"), script=written(tmp_path, LIMITED))
    assert done.out.split() == ["refused", "refused", "25000000"], done.err
    assert list(folder.iterdir()) == [folder / "checkpoint.safetensors"]


AMID = """
import resource, sys
from pyro_gvae.cli.main import main

run = sys.argv[1]
#: 16^5 codes, summed in slices of 32 MB, after steps that take hardly any memory.
network = ["--num-latents", "5", "--num-categories", "16", "--hidden", "500", "--judge", "sampled"]
assert main(["train", *network, "--stages", "gumbel-softmax:1steps", "--output", run]) == 0
assert main(["evaluate", run, "--num-data", "4", "--num-particles", "1", "--evidence", "importance-weighted"]) == 0
print("limited", file=sys.stderr)
used = next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith("VmSize"))
resource.setrlimit(resource.RLIMIT_AS, (used + 2_000_000, resource.RLIM_INFINITY))
print("status", main(["evaluate", run, "--evidence", "exact", "--max-memory", "8"]), file=sys.stderr)
"""
NO_MEMORY = "pyro-gvae: Expected enough memory for this command, but found that it ran out"


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits memory as Linux does")
def test_memory_that_ends_amid_an_evaluation_is_one_sentence(server, tmp_path):
    """The limit is like that of `ulimit -v`."""
    done = server.run(str(tmp_path / "run"), script=written(tmp_path, AMID))
    sentence, status = done.err.partition("limited\n")[2].splitlines()[-2:]
    assert sentence.startswith(NO_MEMORY) and status == "status 2" and "Traceback" not in done.err


def test_memory_that_ends_amid_a_stage_leaves_the_stages_before(tmp_path, capsys, monkeypatch):
    advance = Training.advance

    def greedy(training):
        if training.state.stage == 1:
            torch.empty(2**60, dtype=torch.uint8)
        advance(training)

    monkeypatch.setattr(Training, "advance", greedy)
    network = ["--num-latents", "2", "--num-categories", "3", "--hidden", "8", "--judge", "none"]
    stages = ["--stages", "reinforce:3steps,exact:2steps"]
    assert main(["train", *network, *stages, "--output", str(tmp_path / "run")]) == 2
    assert NO_MEMORY in capsys.readouterr().err
    steps = [json.loads(line)["step"] for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert steps == [0, 3] and load_checkpoint(tmp_path / "run" / "checkpoint.safetensors")["state"]["step"] == 3


GROWTH = """
import resource, torch
from pyro_gvae import CategoricalVAE
from pyro_gvae.evaluate.importance import importance_weighted

peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
vae, x = CategoricalVAE(64, 10, 500, (32,)), torch.rand(20, 64).round()
importance_weighted(vae, x[:1], 1, max_memory=1e8)
before = peak()
importance_weighted(vae, x, 2, max_memory=1e8)
print(peak() - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads kilobytes, as Linux has them")
def test_many_slices_take_as_much_memory_as_few(server, tmp_path):
    """Memory is that of the process, not of tensors: at these sizes it once grew by more than 400 MB, not by 100.

    It varies between runs, from 0 to 300 MB, so one run of three must stay below.
    """
    script = written(tmp_path, GROWTH)
    assert any(float(server.run(script=script).out) < 300 for _ in range(3))


@pytest.mark.parametrize(
    ("size", "words"), [(12, "12 bytes"), (4_700, "4.7 kB"), (1e6, "1.0 MB"), (2.55e9, "2.5 GB"), (9e15, "9000.0 TB")]
)
def test_words(size, words):
    assert in_words(size) == words


def test_the_peak_is_what_lived_at_once():
    def run():
        first = torch.zeros(1000)  # 4 kB
        second = first + 1
        del first
        third = second.view(10, 100).add_(1)  # no new memory
        return third.double()  # 8 kB beside 4 kB

    assert peak_memory(run) == 12_000
    before = torch.zeros(5000)
    assert peak_memory(lambda: before.add_(1).sum()) == 4  # existing tensors are not counted, nor is writing to them


def test_the_peak_has_the_backward_pass():
    x = torch.randn(1000, requires_grad=True)
    assert peak_memory(lambda: (x * 2).exp().sum()) < peak_memory(lambda: (x * 2).exp().sum().backward())


def test_the_allocator_is_set_only_on_request(monkeypatch, tmp_path):
    """The command line allocates a block of 31 MiB to set it; a sum does not."""
    asked = []
    vae, x = CategoricalVAE(6, 4, 3, (5,)), torch.ones(4, 6)
    assert peak_memory(lambda: exact.elbo(vae, x)) < 2**20 < 31 * 2**20 == peak_memory(memory.keep_freed_memory)
    monkeypatch.setattr(memory, "keep_freed_memory", lambda: asked.append(1))
    write_json(tmp_path / "config.json", {"train": {}})
    assert main(["report", str(tmp_path)]) == 2 and asked == [1]
