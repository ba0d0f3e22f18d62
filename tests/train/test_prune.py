"""Pruned programs: on the remaining codes, they compute the same function as before."""

import copy
import math
from dataclasses import replace

import pytest
import torch
from torch.nn.functional import one_hot

from pyro_gvae import CategoricalVAE, TrainConfig, exact, fit, load_run
from pyro_gvae.config.pruning import Pruning
from pyro_gvae.config.stages import Amount
from pyro_gvae.distributions.codes import joint_codes
from pyro_gvae.models.networks import conv_networks
from pyro_gvae.models.priors import JointPrior
from pyro_gvae.train.milestones import Milestones
from pyro_gvae.train.prune import cut_averages, cuts, prune, shrink, what_is_left
from pyro_gvae.train.trained import load_model

H, W = 4, 4
X = torch.rand(30, H * W, generator=torch.Generator().manual_seed(0)).round().double()
N, K = 3, 4
#: Categories that no datum has, and the only category of the latent that carries no information.
DEAD, CONSTANT = ((0, 1), (2, 3)), (1, 2)
#: Priors of dependent digits that are of the same kind given some of the codes.
COUPLED = ("joint", "markov", "tree", "mixture[num_components=3]")


def new_vae(*, prior="uniform", conv=False):
    torch.manual_seed(0)
    encoder, decoder = conv_networks((H, W), N, K, hidden=(7,)) if conv else (None, None)
    vae = CategoricalVAE(H * W, N, K, (7,), prior=prior, encoder=encoder, decoder=decoder).double()
    with torch.no_grad():
        last = [one for one in vae.encoder.modules() if isinstance(one, torch.nn.Linear)][-1]
        last.weight.mul_(6)
        for n, k in DEAD:
            last.bias.view(N, K)[n, k] = -900.0
        last.bias.view(N, K)[CONSTANT] = 900.0
        for parameter in vae.prior.parameters() if vae.prior else [vae.prior_logits] * (prior == "independent"):
            parameter.add_(torch.randn_like(parameter))
    return vae


def log_prior(vae, codes):
    return vae.prior.log_prob(codes) if vae.prior else (vae.prior_logits.log_softmax(-1) * codes).sum((-2, -1))


@pytest.mark.parametrize(
    ("prior", "conv"),
    [("uniform", False), ("uniform", True), ("independent", False), *((own, False) for own in COUPLED)],
)
def test_the_function_of_the_networks_is_preserved(prior, conv):
    vae = new_vae(prior=prior, conv=conv)
    found = prune(vae, X, information=1e-6, usage=1e-6)
    assert found.left.latents.tolist() == [0, 2] and found.left.categories.tolist() == [[0, 2, 3], [0, 1, 2]]
    codes = joint_codes(2, 3).double()
    larger = one_hot(found.left.larger(codes), K).double()
    torch.testing.assert_close(found.vae.decoder(codes), vae.decoder(larger), rtol=1e-12, atol=1e-12)
    logits = vae.encoder(X)[:, found.left.latents].gather(-1, found.left.categories.expand(len(X), -1, -1))
    torch.testing.assert_close(found.vae.encoder(X), logits, rtol=1e-12, atol=1e-12)
    # The guide never had the other codes, so that the ELBO grows by minus the prior's log-probability of those left.
    kept = log_prior(vae, larger).logsumexp(0)
    torch.testing.assert_close(log_prior(found.vae, codes), log_prior(vae, larger) - kept, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(exact.elbo(found.vae, X), exact.elbo(vae, X) - kept, rtol=1e-8, atol=1e-8)
    if prior == "uniform":
        assert kept.item() == pytest.approx(2 * math.log(3 / 4) - math.log(4))


def test_a_program_that_uses_all_stays_as_it_is():
    vae = new_vae()
    found = prune(vae, X, information=0.0, usage=0.0)
    torch.testing.assert_close(found.vae.state_dict(), vae.state_dict(), rtol=0, atol=0)
    assert found.vae.encoder is not vae.encoder


def test_training_goes_on():
    vae = prune(new_vae(), X, information=1e-6, usage=1e-6).vae.float()
    before = exact.elbo(vae, X.float()).mean()
    fit(vae, X.float(), TrainConfig(stages="exact:2", batch_size=10), progress=False)
    assert exact.elbo(vae, X.float()).mean() > before


def test_what_cannot_be_pruned_is_refused():
    with pytest.raises(ValueError, match=r"Expected a latent of 99 nats of information .* but found none"):
        prune(new_vae(), X, information=99.0)
    with pytest.raises(
        ValueError, match=r"Expected a prior whose .* but found an AutoregressivePrior: given that a later"
    ):
        prune(CategoricalVAE(H * W, N, K, (7,), prior="autoregressive").double(), X)
    of_ones_own = JointPrior(N, K, torch.nn.Sequential(torch.nn.Flatten(-2), torch.nn.ReLU())).double()
    with pytest.raises(ValueError, match=r"Expected a prior that says what it is given .* but found a JointPrior"):
        prune(CategoricalVAE(H * W, N, K, (7,), prior=of_ones_own).double(), X)
    plain = torch.nn.Sequential(torch.nn.Linear(H * W, N * K), torch.nn.Unflatten(-1, (N, 2, 2)), torch.nn.Flatten(-2))
    no_bias = torch.nn.Sequential(torch.nn.Flatten(-2), torch.nn.Linear(N * K, H * W, bias=False))
    with pytest.raises(ValueError, match="Expected a first layer of the decoder with a bias"):
        prune(CategoricalVAE(H * W, N, K, (7,), decoder=no_bias).double(), X)
    with pytest.raises(ValueError, match=r"Expected an encoder that ends in nn.Unflatten\(-1, \(3, 4\)\)"):
        prune(CategoricalVAE(H * W, N, K, (7,), encoder=plain).double(), X, information=0.0)


PRUNING = TrainConfig(stages="exact:3", batch_size=10, learning_rate=1e-3, prune="1[information=1e-6,usage=1e-6]")


def sizes(history):
    return [(line["step"], line["num_latents"], line["num_categories"]) for line in history]


@pytest.mark.parametrize("prior", ["uniform", "independent", *COUPLED])
def test_a_run_that_prunes_goes_on_from_what_is_left(prior, tmp_path):
    """By hand: an epoch, prune, and Adam goes on with the averages of what is left."""
    vae = new_vae(prior=prior).float()
    x = X.float()
    fit(by_hand := copy.deepcopy(vae), x, replace(PRUNING, stages="exact:1", prune=None), progress=False)
    expected = prune(by_hand, x, information=1e-6, usage=1e-6).vae
    done = fit(vae, x, PRUNING, output=tmp_path, progress=False)
    assert sizes(done.history) == [(0, 3, 4), (3, 3, 4), (6, 2, 3), (9, 2, 3)]
    fit(expected, x, replace(PRUNING, stages="exact:2", prune=None), progress=False)
    # The data have another order, and averages restart, so weights are only close to each other.
    for name, weight in vae.state_dict().items():
        torch.testing.assert_close(weight, expected.state_dict()[name], rtol=0, atol=0.02)
    for again in (load_run(tmp_path).model(), load_model(tmp_path).vae):
        torch.testing.assert_close(again.state_dict(), vae.state_dict(), rtol=0, atol=0)
        assert (again.num_latents, again.num_categories) == (2, 3)


@pytest.mark.parametrize(("epochs", "prior"), [(1, "uniform"), (2, "uniform"), *((2, own) for own in COUPLED)])
def test_a_run_that_is_continued_prunes_as_one_that_is_not(epochs, prior, tmp_path):
    whole, cut, fresh = (new_vae(prior=prior).float() for _ in range(3))
    history = fit(whole, X.float(), PRUNING, progress=False).history
    at_the_seam = Milestones([Amount(epochs, "epochs")], lambda _: {})
    fit(cut, X.float(), PRUNING, output=tmp_path, progress=False, milestones=at_the_seam)
    found = fit(fresh, X.float(), PRUNING, output=tmp_path, progress=False, resume=True).history
    torch.testing.assert_close(fresh.state_dict(), whole.state_dict(), rtol=0, atol=0)
    assert sizes(found) == sizes(history)


def test_averages_of_what_is_left_are_kept():
    vae = new_vae().float()
    optimizer = torch.optim.Adam(vae.parameters())
    exact.elbo(vae, X.float()).sum().backward()
    optimizer.step()
    vae.zero_grad()
    rows = torch.tensor([0, 2, 3, 8, 9, 10])
    weight = vae.decoder[1].weight
    expected = optimizer.state[weight]["exp_avg"][:, rows].clone()
    left = what_is_left(vae, X.float(), 1e-6, 1e-6)
    cut_averages(optimizer, cuts(vae, left))
    shrink(vae, left)
    torch.testing.assert_close(optimizer.state[weight]["exp_avg"], expected, rtol=0, atol=0)
    exact.elbo(vae, X.float()).sum().backward()
    optimizer.step()
    assert vae.decoder[1].weight is weight and weight.shape == (7, 6)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("60s", "Expected epochs or steps between two prunings, but found '60s'"),
        ("5[usage=2]", "Expected information .* and usage .* but found usage=2"),
        ("5[nats=0.1]", "Expected information .* and usage .* but found nats=0.1"),
        ("stages", "Expected several stages with prune='stages'"),
    ],
)
def test_invalid_settings_are_refused(text, told):
    with pytest.raises(ValueError, match=told):
        TrainConfig(prune=text)


def test_a_threshold_of_information_may_be_any_number_of_nats():
    assert Pruning.parse("5[information=2.5]").information == 2.5  # of K = 16 categories, log 16 = 2.77 at most


def test_it_is_time_where_an_epoch_or_a_stage_begins():
    by_epochs, by_stages = Pruning.parse("2"), Pruning.parse("stages")
    assert [step for step in range(13) if by_epochs.is_due(step, 0, 3)] == [6, 12]
    assert [step for step in range(13) if by_stages.is_due(step, 9 if step >= 9 else 0, 3)] == [9]
