"""The ReinMax protocol: its definitions on literals, and its numbers against an independent loop."""

import pytest
import torch
from problems import PROBLEMS, codes

from pyro_gvae.diagnostics.reinmax import fidelity, reinmax_protocol

PROBLEM = PROBLEMS[0]


@pytest.mark.parametrize(
    ("exact", "mean", "std", "expected"),
    [
        ([3.0, 4.0], [3.0, 4.0], [0.0, 0.0], (0.0, 0.0, 1.0)),
        ([3.0, 4.0], [0.0, 0.0001], [3.0, 4.0], (1.0, 50000.0, 0.8)),
        ([1.0, 0.0], [-2.0, 0.0], [1.0, 1.0], (3.0, 0.5**0.5, -1.0)),
    ],
)
def test_definitions(exact, mean, std, expected):
    found = fidelity(*(torch.tensor(values, dtype=torch.float64) for values in (exact, mean, std)))
    assert tuple(found) == ("relative_bias", "relative_std", "cosine")
    assert tuple(found.values()) == pytest.approx(expected, abs=1e-3)


def reconstruction(vae, x, log_pi):
    """sum_z q(z|x) log p(x|z), one code at a time: (B,)."""
    total = 0.0
    for _, code in codes():
        log_p = PROBLEM.likelihood(vae, vae.decoder(code)).log_prob(x).sum(-1)  # (B,)
        total = total + (code * log_pi).sum((-2, -1)).exp() * log_p
    return total


def test_the_protocol_agrees_with_a_loop():
    vae, x = PROBLEM.vae(), PROBLEM.x()
    logits = vae.encoder(x).detach().requires_grad_()
    log_pi = logits.log_softmax(-1)
    exact = -torch.autograd.grad(reconstruction(vae, x, log_pi).sum(), logits)[0].flatten()
    torch.manual_seed(0)
    noise = torch.distributions.Gumbel(torch.tensor(0.0).double(), 1.0).sample((4000, *logits.shape))
    leaf = logits.detach().expand_as(noise).clone().requires_grad_()
    z = (leaf.log_softmax(-1) + noise).softmax(-1)  # temperature 1
    log_p = torch.distributions.Bernoulli(logits=vae.decoder(z)).log_prob(x).sum(-1)
    g = -torch.autograd.grad(log_p.sum(), leaf)[0].flatten(1)
    expected = fidelity(exact, g.mean(0), g.std(0))
    found = reinmax_protocol(vae, x, ["gumbel-softmax", "exact"], num_samples=4000, kl="categorical")
    for name, value in expected.items():
        assert found[name][0] == pytest.approx(value, rel=0.1), name
    assert expected["relative_bias"] > 0.1
    assert list(found["images"]) == [len(x)] * 2 and list(found["samples"]) == [4000, 1]
    assert found["relative_bias"][1] < 1e-12 and found["relative_std"][1] == 0


def test_a_refusal_is_a_row():
    found = reinmax_protocol(PROBLEM.vae(), PROBLEM.x(), ["exact-evidence", "exact"])
    assert "gradient with respect to the guide's logits" in found["refused"][0]
    assert found["relative_bias"].isna().tolist() == [True, False]


def test_what_the_elbo_is_not_is_not_called_biased():
    found = reinmax_protocol(PROBLEM.vae(), PROBLEM.x(), ["vimco"], num_samples=50)
    assert found[["relative_bias", "cosine"]].isna().all(axis=None)
    assert found["approximates"].notna().all()
