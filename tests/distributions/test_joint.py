"""Distributions over joint codes, against factorized ones and against loops over codes."""

import copy
import itertools
import math
import pickle

import pytest
import torch
from torch.nn.functional import one_hot

from pyro_gvae.distributions.joint import joint_one_hot
from pyro_gvae.distributions.one_hot import FactorizedOneHotCategorical

B, N, K = 4, 2, 3
S = K**N
CODES = torch.stack([one_hot(torch.tensor(code), K).double() for code in itertools.product(range(K), repeat=N)])


def dependent(batch_shape=(B,)):
    """Return logits of a joint distribution that is no product of categoricals."""
    generator = torch.Generator().manual_seed(0)
    return joint_one_hot(N, K, torch.float64)(logits=2 * torch.randn(*batch_shape, S, generator=generator).double())


def test_of_independent_one_hots_it_is_the_factorized_distribution():
    q = FactorizedOneHotCategorical(logits=torch.randn(5, B, N, K).double())
    table = torch.stack([q.log_prob(code) for code in CODES], -1)  # (5, B, S)
    p = joint_one_hot(N, K, torch.float64)(logits=table + 3.0)  # unnormalized
    z = q.sample((7,))
    for name in ("batch_shape", "event_shape"):
        assert getattr(p, name) == getattr(q, name)
    for name in ("mean", "variance"):
        torch.testing.assert_close(getattr(p, name), getattr(q, name))
    assert torch.equal(p.mode, q.mode)
    assert p.sample((7,)).shape == z.shape and p.sample().dtype == z.dtype
    torch.testing.assert_close(p.entropy(), q.entropy())
    torch.testing.assert_close(p.log_prob(z), q.log_prob(z))
    for expand in (False, True):
        assert torch.equal(p.enumerate_support(expand), q.enumerate_support(expand))
    torch.testing.assert_close(p.log_prob(p.enumerate_support(False)), q.log_prob(q.enumerate_support(False)))


def test_of_dependent_one_hots_mean_and_entropy_are_sums_over_codes():
    p = dependent()
    weights = torch.stack([p.log_prob(code) for code in CODES]).exp()  # (S, B)
    torch.testing.assert_close(weights.sum(0), torch.ones(B).double())
    torch.testing.assert_close(p.mean, torch.einsum("sb,snk->bnk", weights, CODES))
    torch.testing.assert_close(p.entropy(), -(weights * weights.log()).sum(0))
    assert torch.equal(p.mode, CODES[weights.argmax(0)])


def test_samples_have_the_probabilities_of_the_codes():
    p, draws = dependent(), 20_000
    z = p.sample((draws,))
    frequency = (z.unsqueeze(2) == CODES).all(-1).all(-1).double().mean(0)  # (B, S)
    standard_error = (p.probs * (1 - p.probs) / draws).sqrt()
    assert ((frequency - p.probs).abs() < 5 * standard_error).all()


def test_scores_are_differentiable_in_logits():
    logits = torch.randn(B, S).double().requires_grad_()
    kind = joint_one_hot(N, K, torch.float64)
    assert torch.autograd.gradcheck(lambda logits: kind(logits=logits).log_prob(CODES.unsqueeze(1)), logits)


def test_excluded_codes_have_probability_zero():
    logits = torch.full((S,), -math.inf).double()
    logits[4] = 0.0
    p = joint_one_hot(N, K, torch.float64)(logits=logits.requires_grad_())
    assert torch.equal(p.mean, CODES[4]) and p.entropy() == 0
    assert p.log_prob(CODES[3]) == -math.inf
    assert not torch.autograd.grad(p.entropy() + p.mean.sum(), logits)[0].any()


@pytest.mark.parametrize("same", [copy.deepcopy, lambda p: pickle.loads(pickle.dumps(p)), lambda p: p.expand((2, B))])
def test_copies_are_of_one_class(same):
    p = dependent()
    found = same(p)
    assert type(found) is type(p) is joint_one_hot(N, K, torch.float64)
    torch.testing.assert_close(found.mean, p.mean.expand_as(found.mean))
    torch.testing.assert_close(found.log_prob(CODES[2]), p.log_prob(CODES[2]).expand(found.batch_shape))


def test_samples_may_be_of_half_precision():
    p = joint_one_hot(N, K, torch.float16)(logits=torch.zeros(S, dtype=torch.float16))
    assert p.sample().dtype == torch.float16 and p.probs.dtype == torch.float32


def test_another_number_of_codes_is_refused():
    with pytest.raises(ValueError, match=r"each of the 3\^2 = 9 joint codes, but found shape \(4, 8\)"):
        joint_one_hot(N, K)(logits=torch.zeros(4, 8))
