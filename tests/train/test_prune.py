"""Smaller programs: on the codes that are left, they are the function that they were."""

import math

import pytest
import torch
from torch.nn.functional import one_hot

from pyro_gvae import CategoricalVAE, TrainConfig, exact, fit
from pyro_gvae.distributions.codes import joint_codes
from pyro_gvae.models.networks import conv_networks
from pyro_gvae.train.prune import prune

H, W = 4, 4
X = torch.rand(30, H * W, generator=torch.Generator().manual_seed(0)).round().double()
N, K = 3, 4
#: Categories that no datum has, and the one that all have of the latent that tells nothing.
DEAD, CONSTANT = ((0, 1), (2, 3)), (1, 2)


def new_vae(*, learn_prior=False, conv=False):
    torch.manual_seed(0)
    encoder, decoder = conv_networks((H, W), N, K, hidden=(7,)) if conv else (None, None)
    vae = CategoricalVAE(H * W, N, K, (7,), learn_prior=learn_prior, encoder=encoder, decoder=decoder).double()
    with torch.no_grad():
        last = [one for one in vae.encoder.modules() if isinstance(one, torch.nn.Linear)][-1]
        last.weight.mul_(6)
        for n, k in DEAD:
            last.bias.view(N, K)[n, k] = -900.0
        last.bias.view(N, K)[CONSTANT] = 900.0
        vae.prior_logits.add_(torch.randn(N, K) if learn_prior else 0.0)
    return vae


@pytest.mark.parametrize("learn_prior", [False, True])
@pytest.mark.parametrize("conv", [False, True])
def test_the_function_of_the_networks_is_preserved(learn_prior, conv):
    vae = new_vae(learn_prior=learn_prior, conv=conv)
    found = prune(vae, X, information=1e-6, usage=1e-6)
    assert found.latents.tolist() == [0, 2] and found.categories.tolist() == [[0, 2, 3], [0, 1, 2]]
    codes = joint_codes(2, 3).double()
    larger = one_hot(found.larger(codes), K).double()
    torch.testing.assert_close(found.vae.decoder(codes), vae.decoder(larger), rtol=1e-12, atol=1e-12)
    logits = vae.encoder(X)[:, found.latents].gather(-1, found.categories.expand(len(X), -1, -1))
    torch.testing.assert_close(found.vae.encoder(X), logits, rtol=1e-12, atol=1e-12)
    # The guide never had the other codes, so that the ELBO grows by minus the prior's log-probability of those left.
    kept = vae.prior_logits.softmax(-1)[found.latents].gather(-1, found.categories).sum(-1).log().sum()
    kept = kept + vae.prior_logits.log_softmax(-1)[CONSTANT]
    torch.testing.assert_close(exact.elbo(found.vae, X), exact.elbo(vae, X) - kept)
    if not learn_prior:
        assert kept.item() == pytest.approx(2 * math.log(3 / 4) - math.log(4))


def test_a_program_that_uses_all_stays_as_it_is():
    vae = new_vae()
    found = prune(vae, X, information=0.0, usage=0.0)
    torch.testing.assert_close(found.vae.state_dict(), vae.state_dict(), rtol=0, atol=0)
    assert found.vae.encoder is not vae.encoder


@pytest.mark.usefixtures("unrecorded")
def test_training_goes_on():
    vae = prune(new_vae(), X, information=1e-6, usage=1e-6).vae.float()
    before = exact.elbo(vae, X.float()).mean()
    fit(vae, X.float(), TrainConfig(stages="exact:2", batch_size=10), progress=False)
    assert exact.elbo(vae, X.float()).mean() > before


def test_what_cannot_be_pruned_is_refused():
    with pytest.raises(ValueError, match=r"Expected a latent of 99 nats of information .* but found none"):
        prune(new_vae(), X, information=99.0)
    with pytest.raises(ValueError, match=r"Expected a prior of independent digits, .* but found a TreePrior"):
        prune(CategoricalVAE(H * W, N, K, (7,), prior="tree").double(), X)
    plain = torch.nn.Sequential(torch.nn.Linear(H * W, N * K), torch.nn.Unflatten(-1, (N, 2, 2)), torch.nn.Flatten(-2))
    with pytest.raises(ValueError, match=r"Expected an encoder that ends in nn.Unflatten\(-1, \(3, 4\)\)"):
        prune(CategoricalVAE(H * W, N, K, (7,), encoder=plain).double(), X, information=0.0)
