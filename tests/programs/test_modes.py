"""Evaluations run in eval mode: without dropout and learning, and every module keeps its mode."""

import pytest
import torch
from torch import nn

from pyro_gvae import CategoricalVAE, Dataset, TrainConfig, exact, fit
from pyro_gvae.evaluate import discrete_scores, encode, evaluate, reconstruct, sample
from pyro_gvae.evaluate.gaps import gaps
from pyro_gvae.evaluate.importance import importance_weighted
from pyro_gvae.exact import Pair
from pyro_gvae.programs.modes import eval_mode


def new_vae():
    encoder = nn.Sequential(nn.Linear(12, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(), nn.Linear(8, 6))
    return CategoricalVAE(12, 2, 3, encoder=nn.Sequential(encoder, nn.Unflatten(-1, (2, 3))), hidden=(8,))


def images(count):
    return torch.rand(count, 12).round()


JUDGEMENTS = {
    "discrete_scores": lambda vae, x: discrete_scores(vae, x),
    "evaluate": lambda vae, x: evaluate(vae, Dataset("mine", x, x, (3, 4))),
    "encode": lambda vae, x: encode(vae, x),
    "reconstruct": lambda vae, x: reconstruct(vae, x),
    "sample": lambda vae, x: sample(vae, 3),
    "gaps": lambda vae, x: gaps(vae, x, num_particles=2),
    "gaps of a pair": lambda vae, x: gaps(Pair(vae.model, vae.guide), x, num_particles=2),
    "importance": lambda vae, x: importance_weighted(vae, x, 5),
}


@pytest.mark.parametrize("judgement", JUDGEMENTS)
def test_a_judgement_learns_nothing_and_leaves_the_modes(judgement):
    vae = new_vae()
    vae.decoder.eval()  # a mode of its own
    modes = {name: module.training for name, module in vae.named_modules()}
    before = {name: buffer.clone() for name, buffer in vae.named_buffers()}
    JUDGEMENTS[judgement](vae, images(10))
    assert {name: module.training for name, module in vae.named_modules()} == modes
    assert all(torch.equal(buffer, before[name]) for name, buffer in vae.named_buffers())


def test_in_train_mode_the_same_sum_learns():
    """The negative control."""
    vae = new_vae()
    before = vae.encoder[0][1].running_mean.clone()
    exact.elbo(vae, images(10))
    assert not torch.equal(vae.encoder[0][1].running_mean, before)


def test_modes_come_back_after_an_error():
    vae = new_vae()
    with pytest.raises(KeyError), eval_mode(vae):
        assert not any(module.training for module in vae.modules())
        raise KeyError
    assert all(module.training for module in vae.modules())


def test_fit_judges_in_eval_mode():
    """It reports the scores of the returned model in eval mode; dropout would add noise to them."""
    train, test, vae = images(20), images(10), new_vae()
    config = TrainConfig(stages="exact:3", batch_size=10)
    done = fit(vae, Dataset("mine", train, test, (3, 4)), config, progress=False)
    assert done.history[-1]["test_elbo"] == pytest.approx(exact.elbo(vae.eval(), test).mean().item(), abs=1e-5)
    assert vae.encoder[0][1].num_batches_tracked == 6
