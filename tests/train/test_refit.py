"""Priors fitted to the codes of data: a prior alone, and the tree of a prior at each epoch."""

import pytest
import torch

from pyro_gvae import CategoricalVAE, TrainConfig, exact, fit
from pyro_gvae.config.stages import Amount
from pyro_gvae.models.pairwise_priors import TreePrior
from pyro_gvae.models.priors import PRIORS, MixturePrior
from pyro_gvae.train.milestones import Milestones
from pyro_gvae.train.refit import fit_prior

#: The first and the last pixels are equal, and so are digits that depend on them.
X = torch.rand(40, 6, generator=torch.Generator().manual_seed(0)).round()
X[:, 3:] = X[:, :3].flip(-1)


def new_vae(prior="uniform"):
    torch.manual_seed(0)
    vae = CategoricalVAE(6, 3, 2, hidden=(5,), prior=prior)
    with torch.no_grad():
        vae.encoder[-2].weight.mul_(8)
    return vae


@pytest.mark.parametrize("prior", PRIORS)
def test_a_prior_that_is_fitted_alone_raises_the_elbo_and_changes_nothing_else(prior):
    vae = new_vae(prior)
    others = {name: value.clone() for name, value in vae.state_dict().items() if not name.startswith("prior.")}
    before = exact.elbo(vae, X).mean()
    mean = fit_prior(vae, X, epochs=60, learning_rate=0.05)
    gained = exact.elbo(vae, X).mean() - before
    assert gained > 0.1
    torch.testing.assert_close({name: vae.state_dict()[name] for name in others}, others, rtol=0, atol=0)
    found = vae.prior.mean_log_prob(vae.encoder(X).softmax(-1)).mean().item()
    assert mean == pytest.approx(found, abs=0.02)


def test_independent_digits_are_not_fitted():
    with pytest.raises(ValueError, match="Expected a prior to fit, but found independent digits"):
        fit_prior(new_vae(), X)


def test_large_codes_are_drawn():
    vae = CategoricalVAE(6, 30, 10, hidden=(5,))
    vae.prior = MixturePrior(30, 10)
    first = fit_prior(vae, X, epochs=1)
    assert fit_prior(vae, X, epochs=30) > first


def test_fit_finds_the_tree_at_the_beginning_of_epochs(tmp_path):
    config = TrainConfig(stages="exact:2", batch_size=20, prior="tree")
    whole, cut, chain = new_vae("tree"), new_vae("tree"), new_vae("markov")
    fit(whole, X, config, progress=False)
    fit(chain, X, config, progress=False)
    expected = TreePrior(3, 2)
    expected.refit(whole.encoder(X).softmax(-1))
    assert whole.prior.edges == expected.edges != chain.prior.edges
    at_the_seam = Milestones([Amount(1, "epochs")], lambda _: {})
    fit(cut, X, config, output=tmp_path, progress=False, milestones=at_the_seam)
    fit(cut, X, config, output=tmp_path, progress=False, resume=True)
    torch.testing.assert_close(cut.state_dict(), whole.state_dict(), rtol=0, atol=0)
