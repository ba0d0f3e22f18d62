"""Distributions of bits, against Bernoulli distributions and loops over all values."""

import itertools
import pickle

import pyro.distributions as dist
import pytest
import torch
from torch.distributions import kl_divergence

from pyro_gvae.distributions.bits import FactorizedBernoulli, StraightThroughBernoulli, digit_logits, joint_bits

LOGITS = torch.tensor([[0.3, -1.2, 2.0], [0.0, 0.7, -0.4]], dtype=torch.float64)  # (B, N)
OTHERS = LOGITS.flip(0) + 0.5
VALUES = torch.tensor(list(itertools.product([0.0, 1.0], repeat=3)), dtype=torch.float64)  # (8, N)


def test_factorized_bits_are_independent_bernoullis():
    found, expected = FactorizedBernoulli(logits=LOGITS), dist.Bernoulli(logits=LOGITS).to_event(1)
    assert torch.equal(found.enumerate_support(expand=False).squeeze(1), VALUES)
    torch.testing.assert_close(found.log_prob(VALUES.unsqueeze(1)), expected.log_prob(VALUES.unsqueeze(1)))
    torch.testing.assert_close(found.entropy(), expected.entropy())
    torch.testing.assert_close(found.mean, expected.mean)
    torch.testing.assert_close(found.variance, expected.variance)
    assert torch.equal(found.mode, (LOGITS > 0).double())
    found = kl_divergence(FactorizedBernoulli(logits=LOGITS), FactorizedBernoulli(logits=OTHERS))
    torch.testing.assert_close(found, kl_divergence(expected, dist.Bernoulli(logits=OTHERS).to_event(1)))


def test_bits_may_have_any_event_shape():
    found = FactorizedBernoulli(logits=LOGITS, event_dim=2)
    assert found.batch_shape == () and found.event_shape == (2, 3) and found.enumerate_support().shape == (64, 2, 3)
    assert found.expand((5,)).sample((4,)).shape == (4, 5, 2, 3)
    torch.testing.assert_close(found.log_prob(found.enumerate_support()).exp().sum().item(), 1.0)
    torch.testing.assert_close(found.logits, LOGITS)


def test_straight_through_bits_are_scored_as_bernoullis():
    bit = torch.tensor([[0.0, 1.0, 1.0], [1.0, 0.0, 0.0]], dtype=torch.float64, requires_grad=True)
    found = StraightThroughBernoulli(0.5, logits=LOGITS)
    score = found.log_prob(bit)
    torch.testing.assert_close(score.detach(), dist.Bernoulli(logits=LOGITS).log_prob(bit.detach()))
    torch.testing.assert_close(torch.autograd.grad(score.sum(), bit)[0], LOGITS)  # linear in the bit
    expected = kl_divergence(dist.Bernoulli(logits=LOGITS), dist.Bernoulli(logits=OTHERS))
    for other in (StraightThroughBernoulli(0.1, logits=OTHERS), dist.Bernoulli(logits=OTHERS)):
        torch.testing.assert_close(kl_divergence(found, other), expected)


@pytest.mark.parametrize(
    "family", [FactorizedBernoulli, lambda logits: StraightThroughBernoulli(0.5, logits=logits).to_event(1)]
)
def test_draws_have_the_probabilities_of_the_bernoulli(family):
    torch.manual_seed(0)
    draws = family(logits=LOGITS).sample((10_000,))
    error = (LOGITS.sigmoid() * LOGITS.neg().sigmoid() / len(draws)).sqrt()
    assert ((draws.mean(0) - LOGITS.sigmoid()).abs() < 5 * error).all()
    assert ((draws.mean(0) - OTHERS.sigmoid()).abs() > 5 * error).all()


def test_infinite_log_odds_exclude_a_value():
    log_odds = torch.tensor([float("inf"), -float("inf"), 0.0], requires_grad=True)
    bits = FactorizedBernoulli(logits=log_odds)
    assert bits.sample()[:2].tolist() == [1.0, 0.0]
    value = torch.tensor([1.0, 0.0, 1.0])
    score = bits.log_prob(value)
    assert score.exp().item() == pytest.approx(0.5)
    assert torch.autograd.grad(score, log_odds)[0].tolist() == [0.0, 0.0, 0.5]


def test_half_precision_bits_are_scored_in_float32():
    bits = FactorizedBernoulli(logits=LOGITS.half())
    assert bits.sample().dtype == torch.float16 and bits.log_prob(bits.sample()).dtype == torch.float32
    assert digit_logits(LOGITS.half()).dtype == torch.float32


def test_any_joint_distribution_of_bits():
    probs = torch.arange(1.0, 17.0, dtype=torch.float64).reshape(2, 8)
    probs = probs / probs.sum(-1, keepdim=True)
    joint = joint_bits(torch.Size([3]), torch.float64)(probs=probs)
    assert type(joint)(logits=probs.log()).event_shape == (3,)
    torch.testing.assert_close(joint.mean, probs @ VALUES)
    torch.testing.assert_close(joint.log_prob(VALUES.unsqueeze(1)).exp().T, probs)
    again = pickle.loads(pickle.dumps(joint))
    torch.testing.assert_close(again.mean, joint.mean)
