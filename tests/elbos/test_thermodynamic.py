"""The thermodynamic objective: the ELBO for one part, and the exact left Riemann sum, a bound, for many codes."""

import itertools

import pytest
import torch
from draws import log_densities
from problems import Rows

from pyro_gvae.distributions.codes import joint_codes
from pyro_gvae.elbos.score import ReinforceLOO
from pyro_gvae.elbos.thermodynamic import ThermodynamicObjective, partition
from pyro_gvae.estimators import estimator


def exact(rows, num_partitions, first):
    """Compute the left Riemann sum over all codes of one datum, to be differentiated by autograd."""
    log_p, log_q = log_densities(rows, joint_codes(2, 3, dtype=torch.float64), 0)
    betas = partition(num_partitions, first)
    total = torch.zeros(()).double()
    for beta, end in itertools.pairwise(betas):
        heated = (beta * log_p + (1 - beta) * log_q).softmax(0)
        total = total + (end - beta) * (heated * (log_p - log_q)).sum()
    return total, log_p.logsumexp(0)


@pytest.mark.parametrize("num_particles", [2, 5])
def test_one_part_is_the_elbo_with_leave_one_out_baselines(num_particles):
    found = []
    for loss in (
        ThermodynamicObjective(num_particles=num_particles, num_partitions=1),
        ReinforceLOO(num_particles=num_particles),
    ):
        rows = Rows("mlp", 3, 2, 4)
        torch.manual_seed(1)
        found.append((loss.loss_and_grads(rows.model, rows.guide, rows.x), rows.gradients()))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-12)
    torch.testing.assert_close(found[0][1], found[1][1], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("num_partitions", [2, 4])
def test_many_codes_give_the_exact_sum_and_its_gradient(num_partitions):
    one, previous = Rows("mlp", 2, 3), None
    total, evidence = exact(one, num_partitions, 0.1)
    (-total).backward()
    expected = one.gradients()
    assert exact(one, 1, 0.1)[0] < total < evidence
    for num_particles in (20, 20_000):
        rows = Rows("mlp", 2, 3, 10)
        torch.manual_seed(0)
        elbo = ThermodynamicObjective(num_particles=num_particles, num_partitions=num_partitions, first=0.1)
        loss = elbo.loss_and_grads(rows.model, rows.guide, rows.x)
        distance = (rows.gradients() - expected).norm(dim=-1).mean() / expected.norm()
        assert previous is None or distance < 0.06 < previous
        previous = distance
    assert loss / 10 == pytest.approx(-total.item(), rel=0.01)


def test_parts_that_do_not_divide_the_integral_are_refused():
    with pytest.raises(ValueError, match="Expected at least one part of the integral"):
        estimator("tvo", num_partitions=0)
    with pytest.raises(ValueError, match=r"Expected the first beta to be in \(0, 1\], but found first=0"):
        estimator("tvo", first=0.0)
    with pytest.raises(ValueError, match="Expected gamma between 0 and 1"):
        estimator("ovis", gamma=2.0)
