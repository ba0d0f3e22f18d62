"""Posteriors of latents with one axis each, as derivatives of sums."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pairs import DATA, B, D, chain_model, factorial_model, no_guide, second_order_model, without_markov, words_model
from pyro.infer import TraceEnum_ELBO

from pyro_gvae import exact
from pyro_gvae.exact import Pair

MODELS = {
    "a chain": (chain_model, 1),
    "second order": (second_order_model, 1),
    "two chains and a global code": (factorial_model, 1),
}


def pair(model):
    return Pair(model, no_guide)


@pytest.mark.parametrize("name", MODELS)
def test_marginals_are_those_of_stock_pyro(name):
    model, nesting = MODELS[name]
    expected = TraceEnum_ELBO(max_plate_nesting=nesting).compute_marginals(model, no_guide, DATA)
    found = exact.posterior(pair(model), DATA).marginals
    assert found.keys() == expected.keys()
    for key, stock in expected.items():
        is_bit = isinstance(stock, dist.Bernoulli)
        probs = torch.stack([1 - stock.probs, stock.probs], -1) if is_bit else stock.probs
        torch.testing.assert_close(found[key], probs.unsqueeze(-2), rtol=1e-9, atol=1e-9)


def test_marginals_are_those_of_the_forward_backward_algorithm():
    """By hand: forward messages of the first steps times backward messages of the others."""
    initial, transition = torch.tensor([0.5, 0.5]).double(), torch.tensor([[0.9, 0.1], [0.3, 0.7]]).double()

    def model(x):
        z = None
        with pyro.plate("data", len(x)):
            for t in pyro.markov(range(D)):
                z = pyro.sample(f"z{t}", dist.Categorical(initial if z is None else transition[z]))
                pyro.sample(f"x{t}", dist.Normal(2.0 * z, 1.0), obs=x[:, t])

    likelihood = dist.Normal(torch.tensor([0.0, 2.0]).double(), 1.0).log_prob(DATA.unsqueeze(-1)).exp()  # (B, D, 2)
    forward, backward = [initial * likelihood[:, 0]], [torch.ones(B, 2).double()]
    for t in range(1, D):
        forward.append(forward[-1] @ transition * likelihood[:, t])
        backward.insert(0, (backward[0] * likelihood[:, D - t]) @ transition.T)
    found = exact.posterior(pair(model), DATA).marginals
    for t in range(D):
        expected = forward[t] * backward[t]
        expected = expected / expected.sum(-1, keepdim=True)
        torch.testing.assert_close(found[f"z{t}"].squeeze(-2), expected)


def test_the_most_probable_codes_are_those_of_the_joint_table():
    for model in (chain_model, second_order_model):
        for num_codes in (1, 3):
            found = exact.posterior(pair(model), DATA, num_codes=num_codes)
            expected = exact.posterior(pair(without_markov(model)), DATA, num_codes=num_codes)
            torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    assert found.codes["z0"].shape == (B, 3, 1, 2) and found.probs.shape == (B, 3)


def test_samples_are_those_of_the_posterior():
    """Frequencies of pairs of neighbours, which marginals do not determine."""

    def sticky(x):
        z = torch.zeros(3).double()
        with pyro.plate("data", len(x)):
            for t in pyro.markov(range(D)):
                z = pyro.sample(f"z{t}", dist.OneHotCategorical(logits=2 * z))
                pyro.sample(f"x{t}", dist.Normal(z[..., 0], 1.0), obs=x[:, t])

    pyro.set_rng_seed(0)
    num_samples = 4000
    found = exact.sample_posterior(pair(sticky), DATA, num_samples=num_samples)
    assert found["z0"].shape == (num_samples, B, 1, 3)
    best = exact.posterior(pair(without_markov(sticky)), DATA, num_codes=81)
    both = torch.einsum("bcnk,bcml,bc->bkl", best.codes["z1"], best.codes["z2"], best.probs)
    frequency = torch.einsum("pbnk,pbml->bkl", found["z1"], found["z2"]) / num_samples
    error = (both * (1 - both) / num_samples).sqrt()
    assert ((frequency - both).abs() / error).max() < 5
    apart = torch.einsum("pbnk,pbml->bkl", found["z1"], found["z2"].roll(1, 0)) / num_samples
    assert ((apart - both).abs() / error).max() > 5  # the negative control


def test_latents_of_nested_plates():
    """Bits of words are drawn given the topic of their document, and one topic is drawn for each document."""

    def model(x):
        with pyro.markov():
            words_model(x)

    found = exact.posterior(pair(model), DATA)
    expected = exact.posterior(pair(words_model), DATA)
    torch.testing.assert_close(found.marginals, expected.marginals, rtol=1e-9, atol=1e-9)
    pyro.set_rng_seed(0)
    drawn = exact.sample_posterior(pair(model), DATA, num_samples=4000)
    assert drawn["topic"].shape[:3] == (4000, B, 1) and drawn["on"].shape[:3] == (4000, B, D)
    for name, values in drawn.items():
        mean = found.marginals[name]
        assert ((values.mean(0) - mean).abs() / (mean * (1 - mean) / 4000 + 1e-12).sqrt()).max() < 5
