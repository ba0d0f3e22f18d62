"""The most probable codes against a sorted list of all; samples of the other codes against their probabilities."""

import itertools

import pytest
import torch

from pyro_gvae.distributions.best_codes import add_exits, draw_exits, draw_others, extend, no_digits, no_exits

ANY, TIES, EXCLUDED = "any", "ties", "excluded"


def log_probs_of(kind, num_latents, num_categories, batch_size=6):
    """Return log q of each digit (B, N, K)."""
    torch.manual_seed(3)
    logits = 2 * torch.randn(batch_size, num_latents, num_categories, dtype=torch.float64)
    if kind == TIES:
        logits = logits.round()
    if kind == EXCLUDED:
        logits[:, :, 1] = -torch.inf
        logits[0, 0, 1:] = -torch.inf
    return logits.log_softmax(-1)


def brute_force(log_probs):
    """Return log q of all codes in the order of their numbers, (S, B)."""
    _, num_latents, num_categories = log_probs.shape
    codes = itertools.product(range(num_categories), repeat=num_latents)
    return torch.stack([sum(log_probs[:, n, k] for n, k in enumerate(code)) for code in codes])


@pytest.mark.parametrize("kind", [ANY, TIES, EXCLUDED])
@pytest.mark.parametrize("count", [1, 40, 500])
def test_the_best_codes_are_those_of_a_sorted_list(count, kind):
    log_probs = log_probs_of(kind, 4, 3)
    best = extend(no_digits(len(log_probs), log_probs.device), log_probs[None], count)
    log_q = brute_force(log_probs)
    expected = log_q.sort(0, descending=True).values[:count]
    torch.testing.assert_close(best.log_q, expected)
    numbers = (best.digits * torch.tensor([27, 9, 3, 1])).sum(-1)  # (C, B)
    torch.testing.assert_close(log_q.gather(0, numbers), best.log_q)
    possible = best.log_q > -torch.inf
    for column, has in zip(numbers.T, possible.T, strict=True):
        assert len(column[has].unique()) == has.sum()
    torch.testing.assert_close(best.mass_left()[-1], 1 - expected.exp().sum(0))


def test_digits_may_be_added_in_parts():
    log_probs = log_probs_of(ANY, 5, 3)
    begun = extend(no_digits(len(log_probs), log_probs.device), log_probs[None, :, :2], 7)
    whole = extend(no_digits(len(log_probs), log_probs.device), log_probs[None], 7)
    found = extend(begun, log_probs[None, :, 2:], 7)
    assert torch.equal(found.digits, whole.digits)
    torch.testing.assert_close(found.log_q, whole.log_q)


def test_later_digits_may_depend_on_earlier_ones():
    """A beam as wide as the number of codes loses nothing."""
    torch.manual_seed(0)
    first, second = torch.randn(2, 3).log_softmax(-1), torch.randn(3, 2, 4).log_softmax(-1)  # (B, K), (3, B, 4)
    best = extend(no_digits(2, first.device), first[None, :, None], 12)
    given = second[best.digits[..., 0], torch.arange(2)]  # (C, B, 4)
    best = extend(best, given[:, :, None], 12)
    joint = (first.T.unsqueeze(1) + second.movedim(-1, 1)).reshape(12, 2)  # (3, 4) codes of each datum
    torch.testing.assert_close(best.log_q, joint.double().sort(0, descending=True).values)


def drawn(best, count, latents):
    """Draw codes other than the best ones, of independent latents, each (B, N, K)."""
    exits = no_exits(best)
    for log_probs in latents:
        exits = add_exits(exits, best, log_probs[None])
    leaving, digits = draw_exits(exits, count), best.digits.new_zeros(count, best.digits.shape[1], 0)
    for taken, log_probs in zip(exits.taken, latents, strict=True):
        digits = draw_others(digits, best, leaving, taken, log_probs[None])
    return digits


@pytest.mark.parametrize(("kind", "parts"), [(ANY, [3]), (EXCLUDED, [3]), (ANY, [1, 2])])
def test_the_others_are_drawn_as_often_as_they_are_probable(kind, parts):
    log_probs = log_probs_of(kind, 3, 3, batch_size=3)
    best = extend(no_digits(3, log_probs.device), log_probs[None], 6)
    best = best.first(torch.tensor([6, 2, 0]))
    num_samples = 20_000
    numbers = (drawn(best, num_samples, log_probs.split(parts, 1)) * torch.tensor([9, 3, 1])).sum(-1)
    log_q = brute_force(log_probs)
    for b, count in enumerate((6, 2, 0)):
        probs = log_q[:, b].exp()
        probs[log_q[:, b].sort(descending=True).indices[:count]] = 0
        if probs.sum() < 1e-9:
            continue
        probs = probs / probs.sum()
        found = torch.bincount(numbers[:, b], minlength=27) / num_samples
        errors = (probs * (1 - probs) / num_samples).sqrt()
        assert ((found - probs).abs() <= 5 * errors + 1e-12).all()
