"""New rows for unused categories: what they change, and what they keep."""

import math

import pytest
import torch

from pyro_gvae import CategoricalVAE, TrainConfig, exact, fit
from pyro_gvae.config.stages import Amount
from pyro_gvae.models.bernoulli_vae import BernoulliVAE
from pyro_gvae.models.priors import PRIORS, JointPrior
from pyro_gvae.train.milestones import Milestones
from pyro_gvae.train.prune import prune
from pyro_gvae.train.revive import revive

X = torch.rand(20, 6, generator=torch.Generator().manual_seed(0)).round()


def new_vae(*, learn_prior=False, prior="uniform", dead=((0, 2),)):
    """Return a VAE with categories that no datum uses."""
    torch.manual_seed(0)
    vae = CategoricalVAE(6, 2, 4, hidden=(5,), learn_prior=learn_prior, prior=prior).double()
    with torch.no_grad():
        for n, k in dead:
            vae.encoder[-2].bias.view(2, 4)[n, k] = -60.0
    return vae


def use(vae):
    return vae.encoder(X.double()).softmax(-1)


def test_the_most_used_category_is_split_in_two():
    vae = new_vae()
    before, elbo = use(vae), exact.elbo(vae, X.double()).mean()
    most = int(before.mean(0)[0].argmax())
    assert revive(vae, X.double(), 0.01, noise=0.0) == 1
    expected = before.clone()
    expected[:, 0, most] /= 2
    expected[:, 0, 2] = expected[:, 0, most]
    torch.testing.assert_close(use(vae), expected)
    gained = before[:, 0, most].mean() * math.log(2)  # the KL from a uniform prior falls by this much
    torch.testing.assert_close(exact.elbo(vae, X.double()).mean(), elbo + gained)


def test_a_learned_prior_is_split_as_well():
    vae = new_vae(learn_prior=True)
    with torch.no_grad():
        vae.prior_logits[0, 2] = -60.0
    elbo = exact.elbo(vae, X.double())
    assert revive(vae, X.double(), 0.01, noise=0.0) == 1
    torch.testing.assert_close(exact.elbo(vae, X.double()), elbo)
    assert vae.prior_logits.softmax(-1)[0, 2] > 0.05


@pytest.mark.parametrize("prior", [*PRIORS, "autoregressive[network=transformer]"])
def test_a_prior_of_dependent_digits_is_split_as_well(prior):
    vae = new_vae(prior=prior, dead=((0, 2), (1, 1)))
    with torch.no_grad():
        for parameter in vae.prior.parameters():
            parameter.add_(torch.randn_like(parameter))
    elbo, before = exact.elbo(vae, X.double()), use(vae)
    assert revive(vae, X.double(), 0.01, noise=0.0) == 2
    assert (exact.elbo(vae, X.double()) >= elbo - 1e-9).all()
    assert use(vae)[:, 0, 2].min() > 1e-3 > before[:, 0, 2].max()


def test_a_prior_of_ones_own_that_cannot_be_split_is_refused():
    class Equal(torch.nn.Module):
        def forward(self, codes):
            return codes.prod(-2).sum(-1)

    joint = JointPrior(2, 4, Equal())
    vae = CategoricalVAE(6, 2, 4, hidden=(5,), prior=joint)
    with pytest.raises(ValueError, match=r"Expected a prior that can split .* in two, but found a JointPrior"):
        fit(vae, X, TrainConfig(stages="exact:1", batch_size=10, revive=0.1), progress=False)


def test_several_unused_categories_share_the_used_ones():
    vae = new_vae(dead=((0, 0), (0, 1), (0, 2), (1, 3)))
    assert revive(vae, X.double(), 0.01) == 4
    assert use(vae).mean(0).min() > 0.1
    rows = vae.encoder[-2].weight.view(2, 4, -1)[0]
    assert torch.pdist(rows).min() > 1e-3  # by noise, without which they would stay equal


def test_used_categories_stay_as_they_are():
    vae, same = new_vae(dead=()), new_vae(dead=())
    assert revive(vae, X.double(), 0.01) == 0
    torch.testing.assert_close(vae.state_dict(), same.state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize("share", [None, 0.01])
def test_fit_revives_at_the_beginning_of_epochs(share):
    """A category with such a low logit has no gradient."""
    vae = new_vae().float()
    fit(vae, X, TrainConfig(stages="exact:2", batch_size=10, learning_rate=1e-3, revive=share), progress=False)
    assert (vae.encoder(X).softmax(-1).mean(0)[0, 2] > 0.05) == (share is not None)


def test_a_run_that_is_continued_revives_as_one_that_is_not(tmp_path):
    config = TrainConfig(stages="exact:2", batch_size=10, revive=0.3)
    whole, cut = new_vae().float(), new_vae().float()
    fit(whole, X, config, progress=False)
    at_the_seam = Milestones([Amount(1, "epochs")], lambda _: {})
    assert fit(cut, X, config, output=tmp_path, progress=False, milestones=at_the_seam).steps == 2
    fit(cut, X, config, output=tmp_path, progress=False, resume=True)
    torch.testing.assert_close(cut.state_dict(), whole.state_dict(), rtol=0, atol=0)


def test_programs_without_such_rows_are_refused():
    vae = BernoulliVAE(6, 2, hidden=(5,))
    with pytest.raises(ValueError, match="Expected a CategoricalVAE whose encoder ends in a linear layer"):
        fit(vae, X, TrainConfig(stages="reinforce-loo:1", batch_size=10, revive=0.1), progress=False)


class Centred(torch.nn.Module):
    def forward(self, z):
        return 2 * z - 1


class Turned(torch.nn.Module):
    def forward(self, z):
        return z.flip(-2)


@pytest.mark.parametrize("first", [Centred, Turned])
def test_a_decoder_that_changes_codes_before_its_rows_is_refused(first):
    """The rows are then not those of the categories alone, or those of another latent."""
    vae = new_vae()
    vae.decoder = torch.nn.Sequential(first(), *vae.decoder)
    for change in (lambda: revive(vae, X.double(), 0.1), lambda: prune(vae, X.double())):
        with pytest.raises(ValueError, match="decoder begins with one that takes codes as they are"):
            change()
