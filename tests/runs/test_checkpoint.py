"""Checkpoints: contents come back, damaged and foreign files are refused, and the last checkpoint survives failures."""

import json
import os
import random
import resource
import shutil
import signal
import subprocess

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from pyro_gvae.runs.checkpoint import load_checkpoint, save_checkpoint
from pyro_gvae.runs.files import append_json_line
from pyro_gvae.runtime.rng import own_randomness, random_states, set_random_states

CONTENT = {
    "step": 3,
    "best": None,
    "rate": 0.1,
    "name": "exact",
    "weights": {"a": torch.arange(6.0).reshape(2, 3), "b": torch.tensor(1.5, dtype=torch.float64)},
    "optimizer": {0: {"step": torch.tensor(3.0)}, 1: {}},
    "list": [1, [True, torch.zeros(0, dtype=torch.uint8)]],
    "odd names": {"tensor": "no tensor", "pairs": 1},
}


def same(found, expected):
    if isinstance(expected, torch.Tensor):
        return found.dtype == expected.dtype and torch.equal(found, expected)
    if isinstance(expected, dict):
        return list(found) == list(expected) and all(same(found[key], expected[key]) for key in expected)
    if isinstance(expected, list):
        return len(found) == len(expected) and all(map(same, found, expected))
    return type(found) is type(expected) and found == expected


@pytest.fixture
def path(tmp_path):
    save_checkpoint(tmp_path / "checkpoint.safetensors", CONTENT)
    return tmp_path / "checkpoint.safetensors"


def test_what_is_written_comes_back(path):
    assert same(load_checkpoint(path), CONTENT)
    assert not same(load_checkpoint(path) | {"step": 4}, CONTENT)


def test_views_and_shared_tensors_are_written(tmp_path):
    table = torch.arange(6.0).reshape(2, 3)
    save_checkpoint(tmp_path / "views", {"t": table.t(), "same": table, "row": table[1]})
    found = load_checkpoint(tmp_path / "views")
    assert torch.equal(found["t"], table.t()) and torch.equal(found["row"], table[1])


def test_any_reader_of_safetensors_finds_the_tensors(path):
    assert torch.equal(load_file(path)["weights/a"], CONTENT["weights"]["a"])


@pytest.mark.parametrize("value", [object(), {1, 2}, print], ids=["object", "set", "function"])
def test_what_only_code_could_read_back_is_refused(value, path):
    before = path.read_bytes()
    with pytest.raises(ValueError, match=r"but found \w+ at 'here/0', which could only be read back by running code"):
        save_checkpoint(path, {"here": [value]})
    assert path.read_bytes() == before and list(path.parent.iterdir()) == [path]


def test_every_flipped_bit_is_noticed(path):
    whole = path.read_bytes()
    choose = random.Random(0)
    refused = 0
    for _ in range(400):
        damaged = bytearray(whole)
        damaged[choose.randrange(len(whole))] ^= 1 << choose.randrange(8)
        path.write_bytes(damaged)
        try:
            found = load_checkpoint(path)
        except ValueError as error:
            assert "damaged" in str(error) or "another file" in str(error) or "version" in str(error)
            refused += 1
        else:  # white space that pads the header
            assert same(found, CONTENT)
    assert refused > 380


@pytest.mark.parametrize("length", [0, 7, 8, 100, -1])
def test_a_truncated_file_is_refused(length, path):
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(ValueError, match=r"Expected a whole checkpoint, but found that .* is damaged"):
        load_checkpoint(path)


def rewritten(path, **changes):
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    save_file(load_file(path), path, metadata | changes)


def test_another_version_is_refused(path):
    rewritten(path, version="0")
    with pytest.raises(ValueError, match=r"of format version 1, but found version 0 .* Try the release"):
        load_checkpoint(path)


def test_changed_numbers_are_refused(path):
    with safe_open(path, framework="pt") as file:
        content = json.loads(file.metadata()["content"])
    rewritten(path, content=json.dumps(content | {"step": 4}))
    with pytest.raises(ValueError, match="damaged"):
        load_checkpoint(path)


def test_foreign_files_are_refused_and_run_no_code(path, tmp_path):
    save_file({"a": torch.zeros(2)}, path)
    with pytest.raises(ValueError, match="another file of tensors"):
        load_checkpoint(path)

    class Bomb:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "exploded"),)

    bomb = tmp_path / "bomb.pt"
    torch.save(Bomb(), bomb)
    path.write_bytes(bomb.read_bytes())
    with pytest.raises(ValueError, match="damaged"):
        load_checkpoint(path)
    assert not (tmp_path / "exploded").exists()
    torch.load(bomb, weights_only=False)  # the negative control
    assert (tmp_path / "exploded").exists()


def test_an_absent_file(tmp_path):
    with pytest.raises(ValueError, match="does not exist"):
        load_checkpoint(tmp_path / "nothing")


@pytest.fixture
def small_disk(tmp_path):
    """Return a disk of 256 kB; skip the test if none can be mounted."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = shutil.which("mount")
    options = ["-t", "tmpfs", "-o", "size=256k", "tmpfs", str(disk)]
    if mount is None or subprocess.run([mount, *options], capture_output=True).returncode:
        pytest.skip("needs the right to mount a tmpfs")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_a_full_disk_leaves_the_last_checkpoint(small_disk):
    path = small_disk / "checkpoint"
    save_checkpoint(path, CONTENT)
    with pytest.raises(OSError, match="No space left"):
        save_checkpoint(path, {"large": torch.zeros(100_000)})
    assert same(load_checkpoint(path), CONTENT) and list(small_disk.iterdir()) == [path]


def test_a_file_that_may_not_grow_leaves_the_last_checkpoint(path):
    """Simulate a full disk without a mount: the process may write at most 20 kB to a file."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    heard = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
        with pytest.raises(OSError, match="File too large"):
            save_checkpoint(path, {"large": torch.zeros(100_000)})
        lines = path.with_name("metrics.jsonl")
        append_json_line(lines, {"step": 1})
        with pytest.raises(OSError, match="File too large"):
            append_json_line(lines, {"long": "x" * 30_000})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, heard)
    assert same(load_checkpoint(path), CONTENT) and lines.read_text() == '{"step": 1}\n'
    assert set(path.parent.iterdir()) == {path, lines}


def draws():
    return [torch.rand(3).tolist(), np.random.rand(3).tolist(), np.random.randn(1).tolist(), random.gauss(0, 1)]


def test_random_states_go_through_a_checkpoint(path):
    np.random.randn(1)  # one number of a pair; the other one is part of the state
    random.gauss(0, 1)
    save_checkpoint(path, random_states())
    expected = draws()
    assert draws() != expected
    set_random_states(load_checkpoint(path))
    assert draws() == expected


def test_own_randomness_leaves_no_trace():
    expected_inside = []
    for _ in range(2):
        states = random_states()
        with own_randomness(5):
            expected_inside.append(draws())
        assert same(random_states(), states)
    assert expected_inside[0] == expected_inside[1]
