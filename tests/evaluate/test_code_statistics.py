"""Statistics of codes against their definitions, loops over all codes, and repeated draws of the data."""

import itertools
import math

import pytest
import torch
from problems import PROBLEMS

from pyro_gvae.evaluate.code_statistics import (
    guide_log_probs,
    joint_mutual_information,
    latent_statistics,
    mean_over_data,
    mean_perplexity,
)


def random_posteriors(size=50, num_latents=3, num_categories=4, sharpness=2.0):
    return (torch.randn(size, num_latents, num_categories).double() * sharpness).log_softmax(-1)


def test_one_latent_at_a_time_by_its_definition():
    log_q = random_posteriors()
    found = latent_statistics(log_q)
    q = log_q.exp()
    for n in range(3):
        aggregate = [sum(q[b, n, k].item() for b in range(50)) / 50 for k in range(4)]
        used = -sum(p * math.log(p) for p in aggregate)
        entropy = -sum(q[b, n, k].item() * log_q[b, n, k].item() for b in range(50) for k in range(4)) / 50
        variance = sum((q[b, n, k].item() - aggregate[k]) ** 2 for b in range(50) for k in range(4)) / 50
        assert found.perplexity[n].item() == pytest.approx(math.exp(used))
        assert found.entropy[n].item() == pytest.approx(entropy)
        assert found.mutual_information[n].item() == pytest.approx(used - entropy)
        assert found.variance[n].item() == pytest.approx(variance)


def test_a_latent_is_active_where_its_mean_moves():
    moving, still = torch.tensor([[0.95, 0.05], [0.05, 0.95]]), torch.tensor([[0.55, 0.45], [0.45, 0.55]])
    found = latent_statistics(torch.stack([moving, still], 1).log())  # variances 2 * 0.45^2 and 2 * 0.05^2
    assert found.active.tolist() == [True, False]
    assert found.variance.tolist() == pytest.approx([0.405, 0.005])


def test_extremes():
    same = torch.zeros(10, 2, 4).log_softmax(-1)
    found = latent_statistics(same)
    assert found.perplexity.tolist() == pytest.approx([4.0, 4.0])
    assert found.mutual_information.tolist() == pytest.approx([0.0, 0.0]) and not found.active.any()
    assert joint_mutual_information(same).value == pytest.approx(0.0, abs=1e-6)
    lowest = torch.finfo(torch.float32).min  # the logit of excluded categories
    one_each = torch.full((4, 1, 4), lowest).masked_fill(torch.eye(4).bool().unsqueeze(1), 0.0)
    found = latent_statistics(one_each)
    assert found.perplexity.item() == pytest.approx(4.0) and found.entropy.item() == 0
    assert joint_mutual_information(one_each).value == pytest.approx(math.log(4))


def test_the_joint_information_in_a_loop():
    log_q = random_posteriors(size=20)
    joint = torch.stack([sum(log_q[:, n, k] for n, k in enumerate(z)) for z in itertools.product(range(4), repeat=3)])
    aggregate = joint.exp().mean(1, keepdim=True)
    each = (joint.exp() * (joint - aggregate.log())).sum(0)
    found = joint_mutual_information(log_q)
    assert found.value == pytest.approx(each.mean().item())
    assert found.standard_error == pytest.approx((each.std() / math.sqrt(20)).item())
    assert 0 < found.value < latent_statistics(log_q).mutual_information.sum()
    assert found.value < math.log(20)


def test_the_joint_information_in_slices(monkeypatch):
    log_q = random_posteriors(size=20)
    at_once = joint_mutual_information(log_q).value
    monkeypatch.setattr("pyro_gvae.evaluate.code_statistics.ENTRIES_AT_A_TIME", 60)
    assert joint_mutual_information(log_q).value == pytest.approx(at_once)
    monkeypatch.setattr("pyro_gvae.evaluate.code_statistics.MOST_ENTRIES", 20 * 4**3 - 1)
    assert joint_mutual_information(log_q) is None


@pytest.mark.parametrize("statistic", [mean_perplexity, joint_mutual_information])
def test_standard_errors_are_those_of_other_data(statistic):
    everything = random_posteriors(size=200_000, num_latents=2, sharpness=1.5)
    everything = (everything + torch.tensor([1.0, 0.5, 0.0, -1.0])).log_softmax(-1)  # unequal use
    found = [statistic(rows) for rows in everything.split(1000)]
    spread = torch.tensor([one.value for one in found]).std().item()
    claimed = sum(one.standard_error for one in found) / len(found)
    assert spread == pytest.approx(claimed, rel=0.2)


def test_perplexity_is_the_mean_of_latents():
    log_q = random_posteriors()
    assert mean_perplexity(log_q).value == pytest.approx(latent_statistics(log_q).perplexity.mean().item())


def test_a_category_whose_mean_underflows_is_not_used():
    log_q = torch.tensor([[[0.0, -744.0]]] + [[[0.0, -torch.inf]]] * 9, dtype=torch.float64)  # exp(-744) / 10 is 0
    found = mean_perplexity(log_q)
    assert (found.value, found.standard_error) == pytest.approx((1.0, 0.0))


def test_one_datum_has_no_standard_error():
    assert mean_over_data(torch.tensor([2.0])).standard_error is None


def test_guides_of_all_kinds_are_read():
    for problem in PROBLEMS:
        vae, x = problem.vae(), problem.x()
        torch.testing.assert_close(guide_log_probs(vae, x), vae.encoder(x).log_softmax(-1))
