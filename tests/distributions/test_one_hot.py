"""The factorized one-hot against torch's OneHotCategorical and brute force over its support."""

import itertools
import math
import pickle

import pytest
import torch
from torch.distributions import Independent, OneHotCategorical, kl_divergence
from torch.utils._python_dispatch import TorchDispatchMode

from pyro_gvae.distributions.codes import joint_codes, num_codes
from pyro_gvae.distributions.one_hot import FactorizedOneHotCategorical

SIZES = [(1, 2), (1, 5), (3, 2), (2, 4), (4, 3)]


def random_logits(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize(("n", "k"), SIZES)
def test_joint_codes_are_the_cartesian_product(n, k):
    codes = joint_codes(n, k)
    expected = list(itertools.product(range(k), repeat=n))
    assert codes.shape == (num_codes(n, k), n, k)
    assert [tuple(code) for code in codes.argmax(-1).tolist()] == expected
    assert torch.equal(codes.sum(-1), torch.ones(len(codes), n))


@pytest.mark.parametrize(("n", "k"), SIZES)
@pytest.mark.parametrize("size", [1, 2, 3, 7, 10_000])
def test_slices_join_to_the_whole(n, k, size):
    q = FactorizedOneHotCategorical(logits=torch.zeros(n, k))
    slices = list(q.code_slices(size))
    assert torch.equal(torch.cat(slices), joint_codes(n, k))
    assert max(map(len, slices)) <= size


def test_codes_are_made_lazily():
    """10^20 codes do not exist in memory, but any three of them do."""
    codes = joint_codes(18, 10, 10**18 - 3, 10**18)
    assert codes.argmax(-1)[:, -1].tolist() == [7, 8, 9]
    first = next(FactorizedOneHotCategorical(logits=torch.zeros(18, 10)).code_slices(2))
    assert first.shape == (2, 18, 10)


@pytest.mark.parametrize(("start", "stop"), [(-1, 2), (3, 2), (0, 10)])
def test_slices_outside_of_the_support_are_refused(start, stop):
    with pytest.raises(ValueError, match="Expected 0 <= start <= stop <= 9 joint codes"):
        joint_codes(2, 3, start, stop)


def test_a_slice_has_at_least_one_code():
    with pytest.raises(ValueError, match="at least one code, but found 0"):
        list(FactorizedOneHotCategorical(logits=torch.zeros(2, 3)).code_slices(0))


@pytest.mark.parametrize(("n", "k"), SIZES)
@pytest.mark.parametrize("batch", [(), (5,), (2, 5)])
def test_agrees_with_independent_one_hots(n, k, batch):
    logits = random_logits(*batch, n, k)
    ours = FactorizedOneHotCategorical(logits=logits)
    theirs = Independent(OneHotCategorical(logits=logits), 1)
    assert (ours.batch_shape, ours.event_shape) == (theirs.batch_shape, theirs.event_shape)
    value = theirs.sample((7,))
    for name in ("mean", "variance", "mode"):
        torch.testing.assert_close(getattr(ours, name), getattr(theirs, name))
    torch.testing.assert_close(ours.log_prob(value), theirs.log_prob(value))
    torch.testing.assert_close(ours.entropy(), theirs.entropy())
    other = random_logits(*batch, n, k).flip(0)
    torch.testing.assert_close(
        kl_divergence(ours, FactorizedOneHotCategorical(logits=other)),
        kl_divergence(theirs, Independent(OneHotCategorical(logits=other), 1)),
    )


@pytest.mark.parametrize(("n", "k"), SIZES)
def test_support_has_probability_one_and_the_kl_is_its_sum(n, k):
    q = FactorizedOneHotCategorical(logits=random_logits(5, n, k))
    p = FactorizedOneHotCategorical(logits=random_logits(5, n, k).flip(0))
    support = q.enumerate_support(expand=False)
    assert support.shape == (num_codes(n, k), 1, n, k)
    log_q, log_p = q.log_prob(support), p.log_prob(support)
    torch.testing.assert_close(log_q.exp().sum(0), torch.ones(5, dtype=torch.float64))
    torch.testing.assert_close((log_q.exp() * (log_q - log_p)).sum(0), kl_divergence(q, p))
    torch.testing.assert_close(-(log_q.exp() * log_q).sum(0), q.entropy())


@pytest.mark.parametrize(("n", "k"), SIZES)
def test_the_table_is_log_prob_of_the_support(n, k):
    q = FactorizedOneHotCategorical(logits=random_logits(5, n, k))
    expanded = q.enumerate_support()
    assert expanded.shape == (num_codes(n, k), 5, n, k)
    torch.testing.assert_close(q.log_prob_table(), q.log_prob(expanded))
    torch.testing.assert_close(q.log_prob_table(1, 2), q.log_prob(expanded[1:2]))


@pytest.mark.parametrize(("n", "k"), SIZES)
def test_sample_frequencies(n, k):
    torch.manual_seed(0)
    q = FactorizedOneHotCategorical(logits=random_logits(n, k))
    count = 40_000
    frequency = q.sample((count,)).mean(0)
    assert ((frequency - q.probs).abs() < 5 * (q.variance / count).sqrt()).all()


def test_sample_has_no_gradient():
    assert not FactorizedOneHotCategorical(logits=random_logits(2, 3).requires_grad_()).sample().requires_grad


def test_excluded_categories_have_probability_zero():
    q = FactorizedOneHotCategorical(logits=torch.tensor([[0.0, -math.inf], [0.0, 0.0]]))
    log_prob = q.log_prob(q.enumerate_support(expand=False))
    torch.testing.assert_close(log_prob.exp(), torch.tensor([0.5, 0.5, 0.0, 0.0]))
    assert q.entropy().item() == pytest.approx(math.log(2))
    assert torch.equal(q.sample((50,))[:, 0], torch.tensor([1.0, 0.0]).expand(50, 2))


def test_expand_and_pickle():
    q = FactorizedOneHotCategorical(logits=random_logits(5, 2, 3)).expand((4, 5))
    assert isinstance(q, FactorizedOneHotCategorical) and q.batch_shape == (4, 5)
    value = q.sample()
    again = pickle.loads(pickle.dumps(q))
    assert torch.equal(again.log_prob(value), q.log_prob(value))


@pytest.mark.parametrize("num_categories", [2, 3])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_codes_have_the_type_of_the_logits(dtype, num_categories):
    q = FactorizedOneHotCategorical(logits=torch.zeros(5, 2, num_categories, dtype=dtype))
    support = q.enumerate_support(expand=False)
    assert {q.sample().dtype, q.mode.dtype, support.dtype, next(q.code_slices(4)).dtype} == {dtype}
    assert q.log_prob(support).dtype == torch.promote_types(dtype, torch.float32)


def test_values_must_be_one_hot():
    q = FactorizedOneHotCategorical(logits=random_logits(2, 3), validate_args=True)
    with pytest.raises(ValueError, match="within the support"):
        q.log_prob(torch.full((2, 3), 1 / 3, dtype=torch.float64))


def test_a_single_latent_needs_its_dimension():
    with pytest.raises(ValueError, match=r"Expected logits of shape \(..., N, K\)"):
        FactorizedOneHotCategorical(logits=torch.zeros(3))


def test_codes_against_data_hold_nothing_of_their_product():
    """log_prob of (S, 1, N, K) codes under (B, N, K) logits allocates the (S, B) table, not (S, B, N, K)."""
    q = FactorizedOneHotCategorical(logits=random_logits(50, 3, 4))
    support = q.enumerate_support(expand=False)
    with Largest() as product:
        log_prob = q.log_prob(support)
    assert log_prob.shape == (64, 50) and product.size < 64 * 50 * 2
    with Largest() as broadcast:  # the negative control
        torch.testing.assert_close((support * q.log_probs).sum((-2, -1)), log_prob)
    assert broadcast.size >= 64 * 50 * 12


class Largest(TorchDispatchMode):
    """Record the number of elements of the largest tensor that an operation returned."""

    size = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, list | tuple) else [result]:
            if isinstance(tensor, torch.Tensor) and function.overloadpacket is not torch.ops.aten.expand:
                self.size = max(self.size, tensor.untyped_storage().nbytes() // tensor.element_size())
        return result
