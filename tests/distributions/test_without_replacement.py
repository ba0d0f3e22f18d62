"""Codes drawn without replacement: order, inclusion and weights of sets, against sums over all orders."""

import itertools
import math

import pytest
import torch

from pyro_gvae.distributions.codes import joint_codes
from pyro_gvae.distributions.without_replacement import extend, inclusion_weights, no_digits, set_weights

N, K = 2, 3
LOGITS = torch.tensor([[1.0, 0.0, -1.5], [0.3, -0.7, 0.9]], dtype=torch.float64)
LOG_PROBS = LOGITS.log_softmax(-1)
PROBS = (joint_codes(N, K, dtype=torch.float64) * LOG_PROBS).sum((-2, -1)).exp()  # (9,)
MANY = 20_000


def drawn(log_probs, most, count):
    """Return the numbers of joint codes in the order of their draws, and the final prefixes: (codes, count)."""
    prefixes, numbers = no_digits(log_probs, count), torch.zeros(1, count, dtype=torch.long)
    for digit in log_probs:
        prefixes, parents, digits = extend(prefixes, digit.expand(1, count, -1), most)
        numbers = numbers.gather(0, parents) * log_probs.shape[-1] + digits
    return numbers, prefixes


def ordered_probability(order, probs):
    """Return the probability of drawing these codes, in this order."""
    found, left = 1.0, 1.0
    for s in order:
        found, left = found * probs[s] / left, left - probs[s]
    return found


def set_probability(codes, probs):
    return sum(ordered_probability(order, probs) for order in itertools.permutations(codes))


def test_codes_are_drawn_in_order_with_the_probabilities_of_draws_without_replacement():
    torch.manual_seed(0)
    numbers, prefixes = drawn(LOG_PROBS, 3, MANY)
    torch.testing.assert_close(prefixes.log_probs.exp(), PROBS[numbers])
    assert (prefixes.perturbed.diff(dim=0) <= 0).all()
    orders = torch.tensor(list(itertools.permutations(range(K**N), 3)))
    expected = torch.tensor([ordered_probability(order, PROBS.tolist()) for order in orders.tolist()])
    places = torch.tensor([K ** (2 * N), K**N, 1])
    found = (places @ numbers).bincount(minlength=K ** (3 * N))[orders @ places] / MANY
    assert ((found - expected).abs() < 5.5 * (expected * (1 - expected) / MANY).sqrt() + 5 / MANY).all()


def test_the_largest_variables_are_gumbel_variables():
    """The largest variable of all codes has location 0, so thresholds have the right distribution, too."""
    torch.manual_seed(0)
    _, prefixes = drawn(LOG_PROBS, 4, MANY)
    for location, row in ((0.0, prefixes.perturbed[0]),):
        for quantile in (0.1, 0.5, 0.9):
            expected = location - math.log(-math.log(quantile))
            assert (
                abs((row < expected).double().mean().item() - quantile) < 5 * (quantile * (1 - quantile) / MANY) ** 0.5
            )


def test_all_codes_are_drawn_once_where_there_are_no_more():
    numbers, prefixes = drawn(LOG_PROBS, 50, 7)
    assert (numbers.sort(0).values == torch.arange(K**N).unsqueeze(-1)).all()
    torch.testing.assert_close(prefixes.log_probs.exp().sum(0), torch.ones(7).double())
    torch.testing.assert_close(inclusion_weights(prefixes.log_probs, None), prefixes.log_probs.exp())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_impossible_codes_come_last_and_weigh_nothing(dtype):
    excluding = LOG_PROBS.to(dtype).clone()
    excluding[0, 1:] = torch.finfo(dtype).min
    excluding[0, 0] = 0.0
    torch.manual_seed(0)
    numbers, prefixes = drawn(excluding, 5, 100)
    assert (numbers[:3] < K).all() and (numbers[3:] >= K).all()
    assert prefixes.perturbed.isfinite().all()
    weights = set_weights(prefixes.log_probs[:4])
    expected = prefixes.log_probs[:4].exp()
    torch.testing.assert_close(weights.first, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(weights.second, expected.expand(4, -1, -1), rtol=1e-5, atol=1e-5)
    for threshold in (prefixes.perturbed[4], prefixes.perturbed[3]):
        found = inclusion_weights(prefixes.log_probs[:3], threshold)
        torch.testing.assert_close(found, expected[:3])


def test_weights_of_inclusion_are_unbiased():
    torch.manual_seed(0)
    numbers, prefixes = drawn(LOG_PROBS, 5, MANY)
    values = torch.linspace(-2.0, 3.0, K**N).double().sin()
    weights = inclusion_weights(prefixes.log_probs[:4], prefixes.perturbed[4])
    for found, expected in (
        ((weights * values[numbers[:4]]).sum(0), (PROBS * values).sum()),
        (weights.sum(0), torch.ones(()).double()),
    ):
        assert (found.mean() - expected).abs() < 5 * found.std() / MANY**0.5
    without = prefixes.log_probs[:4].exp()
    off = (without.sum(0).mean() - 1).abs()
    assert off > 0.1  # the negative control


SETS = [(0, 1), (2, 5, 7), (0, 3, 4, 8), (1, 2, 3, 5, 7)]


@pytest.mark.parametrize("codes", SETS)
@pytest.mark.parametrize("sharpness", [1.0, 9.0])
def test_weights_of_a_set_are_sums_over_the_orders_of_its_draws(codes, sharpness):
    log_probs = (sharpness * PROBS.log()).log_softmax(0)
    probs = log_probs.exp().tolist()
    found = set_weights(log_probs[list(codes)].unsqueeze(-1))
    whole = set_probability(codes, probs)
    for i, s in enumerate(codes):
        others = [other for other in codes if other != s]
        given = {other: probs[other] / (1 - probs[s]) for other in others}
        without = set_probability(others, given)
        assert found.first[i].item() == pytest.approx(probs[s] * without / whole, rel=1e-9)
        for j, other in enumerate(codes):
            if other == s:
                assert found.second[i, j].item() == pytest.approx(probs[s], rel=1e-12)
                continue
            left = [third for third in others if third != other]
            twice = {third: probs[third] / (1 - probs[s] - probs[other]) for third in left}
            expected = probs[other] * set_probability(left, twice) / without
            assert found.second[i, j].item() == pytest.approx(expected, rel=1e-9)
    torch.testing.assert_close(found.first.sum(0), torch.ones(1).double())
    torch.testing.assert_close(found.second.sum(1), torch.ones(len(codes), 1).double())


@pytest.mark.parametrize("count", [1, 2, 40])
def test_sets_that_hold_nearly_all_probability_have_weights_that_add_to_one(count):
    log_probs = torch.cat([torch.zeros(1), torch.linspace(-60.0, -20.0, count)]).unsqueeze(-1)
    for is_complete in (True, False):
        found = set_weights(log_probs.log_softmax(0), is_complete=is_complete)
        torch.testing.assert_close(found.first.sum(0), torch.ones(1))
        torch.testing.assert_close(found.second.sum(1), torch.ones(count + 1, 1))
    complete = set_weights(log_probs.log_softmax(0), is_complete=True)
    torch.testing.assert_close(complete.first, log_probs.softmax(0))
