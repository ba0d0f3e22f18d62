"""Codes with their numbers and probabilities, against the guide's probabilities and the exact posterior."""

import pytest
import torch

from pyro_gvae import CategoricalVAE, exact
from pyro_gvae.distributions.codes import code_numbers
from pyro_gvae.evaluate.code_statistics import guide_log_probs
from pyro_gvae.evaluate.encoded import MOST_NUMBERED, Encoded, encoded
from pyro_gvae.models.hierarchical_categorical_vae import HierarchicalCategoricalVAE
from pyro_gvae.models.joint_vae import JointVAE

X = torch.tensor([[1.0, 0.0, 1.0, 1.0], [0.0, 0.0, 1.0, 0.0], [1.0, 1.0, 1.0, 1.0]])


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.mark.parametrize("kind", ["map", "sample"])
def test_a_code_of_the_guide_has_the_guides_probability(kind):
    vae = CategoricalVAE(4, 3, 4, (5,))
    found = encoded(vae, X, kind)
    expected = (guide_log_probs(vae, X) * found.codes).sum((-2, -1)).exp()
    torch.testing.assert_close(found.probs, expected)
    assert torch.equal(found.numbers(), code_numbers(found.codes))


def test_a_code_of_the_posterior_has_the_posteriors_probability():
    vae = CategoricalVAE(4, 2, 3, (5,))
    found, posterior = encoded(vae, X, "exact"), exact.posterior(vae, X, num_codes=1)
    assert torch.equal(found.codes, posterior.codes[:, 0]) and torch.equal(found.probs, posterior.probs[:, 0])


def test_layers_are_digits_of_one_number():
    """A code of the upper layer is as probable as the lower one makes it."""
    vae = HierarchicalCategoricalVAE(4, num_layers=2, num_latents=1, num_categories=3, hidden=(5,))
    found = encoded(vae, X)
    lower, upper = found.codes["z1"], found.codes["z2"]
    log_q = vae.encoder(X).log_softmax(-1) * lower + vae.up[0](lower).log_softmax(-1) * upper
    torch.testing.assert_close(found.probs, log_q.sum((-2, -1)).exp())
    assert found.numbers().tolist() == (3 * lower.argmax(-1) + upper.argmax(-1)).flatten().tolist()


def test_beside_a_gaussian_only_the_code_counts():
    vae = JointVAE(4, num_latents=1, num_categories=3, latent_dim=2, hidden=(5,))
    found = encoded(vae, X)
    torch.testing.assert_close(found.probs, guide_log_probs(vae, X).exp().amax(-1).squeeze(-1))
    assert found.numbers().tolist() == found.codes["y"].argmax(-1).flatten().tolist()


def test_too_many_codes_have_no_numbers():
    assert MOST_NUMBERED < 2**63
    assert Encoded(torch.eye(2)[torch.ones(1, 63, dtype=torch.long)], None).numbers() is None
    assert Encoded(torch.eye(2)[torch.ones(1, 62, dtype=torch.long)], None).numbers().item() == 2**62 - 1
