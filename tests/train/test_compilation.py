"""A run compiles its steps if its counted work outweighs a compilation, and keeps this choice."""

import json
from dataclasses import replace

import pytest
import torch

from pyro_gvae.config.stages import Amount
from pyro_gvae.config.train import TrainConfig
from pyro_gvae.models.categorical_vae import CategoricalVAE
from pyro_gvae.train import compilation, training
from pyro_gvae.train.fit import fit
from pyro_gvae.train.milestones import Milestones
from pyro_gvae.train.training import Training

LONG = TrainConfig(stages="gumbel-softmax:1000000000", batch_size=4)


def new_vae():
    torch.manual_seed(0)
    return CategoricalVAE(6, 2, 3, (5,))


@pytest.fixture
def compiler(monkeypatch):
    monkeypatch.setattr(compilation, "has_compiler", lambda device: True)


@pytest.fixture
def asked(monkeypatch):
    """Record for each step whether it should be compiled, without compiling it."""
    found, make_step = [], training.make_step

    def noted(*args, compile, **options):
        found.append(compile)
        return make_step(*args, **options)

    monkeypatch.setattr(training, "make_step", noted)
    return found


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, True),
        ({"stages": "gumbel-softmax:1e12s"}, True),
        ({"stages": "gumbel-softmax:9"}, False),
        ({"stages": "gumbel-softmax:60s"}, False),
        ({"steps": 100_000}, False),  # enough steps for large networks, but not for these
        ({"seconds": 60.0}, False),
        ({"compile": False}, False),
        ({"stages": "gumbel-softmax:9", "compile": True}, True),
    ],
)
@pytest.mark.usefixtures("compiler")
def test_the_counted_work_decides(changes, expected, asked):
    chosen = Training(new_vae(), torch.ones(8, 6), replace(LONG, **changes)).compilation
    assert chosen.is_compiled is expected and asked == [expected], chosen.why


def test_nothing_is_compiled_without_a_compiler(asked, monkeypatch):
    monkeypatch.setenv("CXX", "there-is-no-such-compiler")
    assert not Training(new_vae(), torch.ones(8, 6), LONG).compilation.is_compiled and asked == [False]


@pytest.mark.usefixtures("compiler")
def test_a_resumed_run_compiles_as_it_did(asked, tmp_path, monkeypatch):
    half = Milestones([Amount(2, "steps")], lambda training: {})
    short = replace(LONG, stages="gumbel-softmax:4steps")
    with monkeypatch.context() as patch:
        patch.setattr(compilation, "COMPILATION", 0)
        fit(new_vae(), torch.ones(8, 6), short, output=tmp_path, milestones=half, progress=False)
    written = json.loads((tmp_path / "config.json").read_text())
    assert written["compilation"]["is_compiled"] and written["train"]["compile"] is None
    assert asked == [True]
    fit(new_vae(), torch.ones(8, 6), short, output=tmp_path, resume=True, progress=False)
    assert asked[-1] is True  # although it does not pay off any more
    for never in (False, True):  # a finished run takes no step
        fit(new_vae(), torch.ones(8, 6), replace(short, compile=never), output=tmp_path, resume=True, progress=False)
        assert asked[-1] is never
