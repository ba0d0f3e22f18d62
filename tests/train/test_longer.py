"""A run that is given more stages, or a larger budget, is the run that was begun with them, bit for bit."""

import json

import pytest
import torch

from pyro_gvae import load_run
from pyro_gvae.config.commands import ResumeConfig
from pyro_gvae.config.train import TrainConfig
from pyro_gvae.models.categorical_vae import CategoricalVAE
from pyro_gvae.runs.checkpoint import load_checkpoint, load_tensors
from pyro_gvae.runs.config import commands_of
from pyro_gvae.train.fit import fit
from pyro_gvae.train.launch import resume

D = 8


def trained(folder, stages, **options):
    """Train a small program on 15 images, in batches of 5, from the checkpoint in the folder if there is one."""
    torch.manual_seed(0)
    x = torch.rand(15, D, generator=torch.Generator().manual_seed(1)).round()
    config = TrainConfig(stages=stages, batch_size=5, **options)
    return fit(CategoricalVAE(D, 2, 3, (6,)), x, config, output=folder, resume=True, progress=False)


def weights_and_random_numbers(folder):
    content = load_checkpoint(folder / "checkpoint.safetensors")
    return load_tensors(folder / "weights.safetensors") | {"random": content["random"]["torch"]}


def assert_the_same(folder, other):
    found, expected = map(weights_and_random_numbers, (folder, other))
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in found)


# `relax` has parameters of its own, which are drawn when its stage begins; 4 steps end within an epoch.
@pytest.mark.parametrize("more", ["relax:4steps", "gumbel-softmax[kl=relaxed]:2", "gumbel-softmax:4steps"])
def test_more_stages_are_those_of_a_run_that_was_begun_with_them(more, tmp_path):
    whole = f"gumbel-softmax:4steps,{more}"
    trained(tmp_path / "whole", whole)
    first = trained(tmp_path / "longer", "gumbel-softmax:4steps")
    done = trained(tmp_path / "longer", whole)
    assert first.steps == 4 < done.steps and done.history[: len(first.history)] == first.history
    assert_the_same(tmp_path / "longer", tmp_path / "whole")
    again = trained(tmp_path / "longer", whole)
    assert again.steps == done.steps and again.history == done.history


def test_negative_control(tmp_path):
    """One stage of 8 steps is another run than two of 4: the second begins with new parameters of the loss."""
    trained(tmp_path / "one", "relax:8steps")
    trained(tmp_path / "two", "relax:4steps,relax:4steps")
    with pytest.raises(AssertionError):
        assert_the_same(tmp_path / "one", tmp_path / "two")


def test_a_larger_budget_goes_on_within_the_stage(tmp_path):
    trained(tmp_path / "whole", "exact:9steps", steps=7)
    assert trained(tmp_path / "longer", "exact:9steps", steps=4).reason == "4 steps"
    assert trained(tmp_path / "longer", "exact:9steps", steps=7).reason == "7 steps"
    assert_the_same(tmp_path / "longer", tmp_path / "whole")
    assert trained(tmp_path / "longer", "exact:9steps").reason == "all stages"


def test_more_of_the_last_stage_is_as_if_it_had_been_asked_for_first(tmp_path):
    trained(tmp_path / "whole", "reinmax:3steps,exact:7steps")
    trained(tmp_path / "longer", "reinmax:3steps,exact:4steps")
    assert trained(tmp_path / "longer", "reinmax:3steps,exact:7steps").steps == 10
    assert_the_same(tmp_path / "longer", tmp_path / "whole")


def test_a_plan_that_does_not_begin_with_the_own_is_refused(tmp_path):
    trained(tmp_path, "exact:4steps")
    with pytest.raises(ValueError, match="found one with another stages"):
        trained(tmp_path, "exact:3steps")


def test_the_folder_says_what_was_asked_for_before(tmp_path):
    trained(tmp_path, "exact:4steps")
    resume(ResumeConfig(tmp_path, more="2steps"))
    _, done = resume(ResumeConfig(tmp_path, more="gumbel-softmax:1steps"))
    assert done.steps == 7
    written = json.loads((tmp_path / "config.json").read_text())
    assert written["train"]["stages"] == "exact:4steps,exact:2steps,gumbel-softmax:1steps"
    assert [(one["before"], one["at_step"]) for one in written["extended"]] == [
        ({"stages": "exact:4steps"}, 4),
        ({"stages": "exact:4steps,exact:2steps"}, 6),
    ]
    assert written["command"] in commands_of(written) and len(commands_of(written).splitlines()) == 3
    assert load_run(tmp_path).results["step"].tolist() == [4, 6, 7]


def test_more_stages_of_a_run_that_has_used_its_budget_are_refused(tmp_path):
    trained(tmp_path, "exact:9steps", steps=4)
    before = (tmp_path / "config.json").read_bytes()
    with pytest.raises(ValueError, match=r"has used all of its 4\. Try --steps 8 as well"):
        resume(ResumeConfig(tmp_path, more="2steps"))
    assert (tmp_path / "config.json").read_bytes() == before
    assert resume(ResumeConfig(tmp_path, more="2steps", steps=10))[1].steps == 10


def test_a_run_that_is_killed_while_it_goes_on_is_unfinished_and_goes_on(tmp_path, monkeypatch):
    trained(tmp_path / "whole", "exact:4steps,exact:4steps")
    folder = tmp_path / "longer"
    trained(folder, "exact:4steps")
    with monkeypatch.context() as patched:
        patched.setattr("pyro_gvae.train.fit._advance", lambda *_: (_ for _ in ()).throw(MemoryError))
        with pytest.raises(MemoryError):
            resume(ResumeConfig(folder, more="4steps"))
    assert not load_run(folder).is_finished and not (folder / "weights.safetensors").exists()
    assert load_checkpoint(folder / "checkpoint.safetensors")["state"]["done"] is None
    resume(ResumeConfig(folder))
    assert_the_same(folder, tmp_path / "whole")
