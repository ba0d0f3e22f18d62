"""The judge of a run: it is chosen by counted work, stored, and independent of the machine's speed."""

import json
from dataclasses import replace

import pytest
import torch

from pyro_gvae import exact
from pyro_gvae.config.commands import ResumeConfig
from pyro_gvae.config.train import TrainConfig
from pyro_gvae.data.dataset import Dataset
from pyro_gvae.models.categorical_vae import CategoricalVAE
from pyro_gvae.train.fit import fit
from pyro_gvae.train.launch import resume, train
from pyro_gvae.train.monitor import choose_judge
from pyro_gvae.train.training import Training

D = 6
PATIENT = TrainConfig(stages="gumbel-softmax[kl=relaxed]:40", batch_size=4, patience=2, learning_rate=0.05)


def vae_of(num_latents, num_categories):
    torch.manual_seed(0)
    return CategoricalVAE(D, num_latents, num_categories, (5,))


def images():
    x = torch.rand(16, D, generator=torch.Generator().manual_seed(1)).round()
    return Dataset("small", x[:12], x[12:], (2, 3))


SIZES = pytest.mark.parametrize(("size", "judge"), [((2, 3), "exact"), ((32, 2), "sampled")])


@SIZES
def test_small_sums_are_taken_and_large_ones_sampled(size, judge):
    assert choose_judge(vae_of(*size), images().test) == judge


@SIZES
def test_a_busier_machine_has_the_same_judge(size, judge, slow_clock):
    vae = vae_of(*size)
    assert exact.cost(vae, images().test).seconds > 10  # by this clock, all sums are large
    assert choose_judge(vae, images().test) == judge


def trained(config=PATIENT):
    vae = vae_of(2, 3)
    done = fit(vae, images(), config, progress=False)
    return done, vae.state_dict()


@pytest.fixture(scope="module")
def undisturbed():
    return trained()


def test_a_busier_machine_ends_with_the_same_weights(undisturbed, slow_clock):
    (before, weights), (done, found) = undisturbed, trained()
    assert done.steps == before.steps < 40 * 3  # patience ended it
    assert [line["elbo_is"] for line in done.history] == ["exact"] * len(before.history)
    assert all(torch.equal(weights[name], found[name]) for name in weights)


def test_another_judge_would_end_it_elsewhere(undisturbed):
    done, _ = trained(replace(PATIENT, judge="sampled"))
    assert done.steps != undisturbed[0].steps and done.history[-1]["elbo_is"] == "sampled"


def test_what_cannot_be_the_judge_is_refused():
    with pytest.raises(ValueError, match=r"2\^64"):
        Training(vae_of(64, 2), images(), replace(PATIENT, judge="exact"))


def test_a_run_keeps_the_judge_that_it_has_written(tmp_path):
    config = TrainConfig(num_latents=2, num_categories=3, hidden=(5,), stages="exact:3steps")
    run, done = train(replace(config, output=tmp_path / "run"))
    written = json.loads((run / "config.json").read_text())
    assert written["train"]["judge"] == done.history[-1]["elbo_is"] == "exact"
    # For a run that was stopped before its first checkpoint, only config.json tells the judge.
    (tmp_path / "begun").mkdir()
    written["train"]["judge"] = "sampled"
    (tmp_path / "begun" / "config.json").write_text(json.dumps(written))
    _, done = resume(ResumeConfig(tmp_path / "begun"))
    assert done.history[-1]["elbo_is"] == "sampled"


def test_a_checkpoint_that_is_older_than_a_setting_is_gone_on_from():
    content = Training(vae_of(2, 3), images(), PATIENT).content()
    del content["config"]["judge"]
    Training(vae_of(2, 3), images(), PATIENT).restore(content)
    content["config"]["batch_size"] = 5
    with pytest.raises(ValueError, match="another batch_size"):
        Training(vae_of(2, 3), images(), PATIENT).restore(content)


@pytest.mark.parametrize("has_validation", [True, False])
def test_validation_data_stop_a_stage_in_place_of_test_data(has_validation):
    """While the model learns ones, the ELBO of the validation zeros falls, and that of the test ones rises."""
    ones, zeros = torch.ones(8, 6), torch.zeros(4, 6)
    data = Dataset("mine", ones, ones[:4], (2, 3), validation=zeros if has_validation else None)
    config = TrainConfig(stages="exact:6", batch_size=8, learning_rate=0.1, patience=1)
    done = fit(CategoricalVAE(6, 1, 2, (4,)), data, config, progress=False)
    assert done.steps == (1 if has_validation else 6)
    assert ("validation_elbo" in done.history[0]) == has_validation
