"""Milestones: a run is measured at each of them, returns at the last one, and is otherwise unchanged."""

import re

import pytest
import torch

from pyro_gvae.config.stages import Amount
from pyro_gvae.config.train import TrainConfig
from pyro_gvae.models.categorical_vae import CategoricalVAE
from pyro_gvae.train.fit import fit
from pyro_gvae.train.milestones import Milestones

D = 6
CLOCKS = ("seconds", "steps_per_second")


def drawn(training):
    return {"at": training.state.step, "draw": torch.rand(()).item()}


def trained(*amounts, every="1", **options):
    """Return what `fit` did, and the weights, after part of the training or all of it; an epoch is three steps."""
    torch.manual_seed(0)
    vae = CategoricalVAE(D, 2, 3, (5,))
    x = torch.rand(12, D, generator=torch.Generator().manual_seed(1)).round()
    if amounts:
        options["milestones"] = Milestones([Amount.parse(amount) for amount in amounts], drawn)
    config = TrainConfig(stages="gumbel-softmax:4steps,gumbel-softmax:5steps", batch_size=4, evaluate_every=every)
    return fit(vae, x, config, progress=False, **options), vae.state_dict()


@pytest.fixture(scope="module")
def in_parts(tmp_path_factory):
    """Train in two calls; return what each of them did, the weights, and the folder."""
    folder = tmp_path_factory.mktemp("parts")
    first, _ = trained("2steps", "1", output=folder)
    assert not (folder / "weights.safetensors").exists()
    return first, *trained("8steps", "2steps", "4steps", "6steps", "9steps", output=folder, resume=True), folder


def without_clocks(lines):
    return [{name: value for name, value in line.items() if name not in CLOCKS} for line in lines]


def test_measured_in_parts_a_run_is_the_same_run(in_parts):
    whole, weights = trained()
    first, done, found, folder = in_parts
    assert (first.steps, first.reason) == (3, "all milestones")
    assert (done.steps, done.reason) == (9, "all stages") and (folder / "weights.safetensors").exists()
    assert all(torch.equal(found[name], weights[name]) for name in weights)
    assert without_clocks(done.history) == without_clocks(whole.history)


def test_it_is_measured_once_at_each_with_random_numbers_of_its_own(in_parts):
    first, done, _, folder = in_parts
    lines = [(line["milestone"], line["step"], line["at"], line["epoch"], line["stage"]) for line in done.milestones]
    assert lines == [
        ("2steps", 2, 2, 2 / 3, 0),
        ("1epochs", 3, 3, 1, 0),
        ("4steps", 4, 4, 4 / 3, 1),
        ("6steps", 6, 6, 2, 1),
        ("8steps", 8, 8, 8 / 3, 1),
        ("9steps", 9, 9, 3, 1),
    ]
    assert first.milestones == done.milestones[:2] and len({line["draw"] for line in done.milestones}) == 6
    assert trained("4steps", "1", output=folder, resume=True)[0] == done  # there is nothing left to do


def test_the_objective_at_a_milestone_is_the_mean_since_the_evaluation_before(in_parts):
    """The oracle is a run that is evaluated at each step; here evaluations are at steps 3, 4 (a stage ends) and 7."""
    each = [line["train_objective"] for line in trained(every="1steps")[0].history][1:]
    found = {line["step"]: line["train_objective"] for line in in_parts[1].milestones}
    begun = {2: 0, 3: 0, 4: 3, 6: 4, 8: 7, 9: 7}
    assert found == {end: pytest.approx(sum(each[start:end]) / (end - start)) for end, start in begun.items()}


def test_a_milestone_behind_the_run_is_refused(in_parts):
    sentence = "Expected milestones ahead of the run, but found that it is at step 9 and was not measured at '5steps'."
    with pytest.raises(ValueError, match=re.escape(sentence)):
        trained("4steps", "5steps", output=in_parts[-1], resume=True)


def test_seconds_are_a_milestone_and_several_may_fall_into_one_step():
    done, _ = trained("1e-9s", "2e-9s", "1steps", "1steps")
    assert done.steps == 1
    assert [line["milestone"] for line in done.milestones] == ["1e-09s", "2e-09s", "1steps"]
