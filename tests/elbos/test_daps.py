"""DAPS: a second implementation of the published formula, and the learned trust region."""

import math

import pytest
import torch
from draws import log_densities
from problems import Rows

from pyro_gvae.distributions.one_hot import FactorizedOneHotCategorical
from pyro_gvae.elbos.daps import DAPS
from pyro_gvae.estimators import estimator


@pytest.mark.parametrize(("eta", "beta"), [(1.0, 1.0), (0.2, 0.0), (5.0, 0.4)])
def test_loss_and_gradients_are_the_published_formula(eta, beta):
    rows, num_codes = Rows("mlp", 3, 2, 4), 4
    elbo = DAPS(num_particles=num_codes, beta=beta, target=0.4)
    with torch.no_grad():
        elbo.own.log_eta.fill_(math.log(eta))
    torch.manual_seed(1)
    found = elbo.loss_and_grads(rows.model, rows.guide, rows.x)
    gradients, of_eta = rows.gradients(), elbo.own.log_eta.grad
    torch.manual_seed(1)
    codes = FactorizedOneHotCategorical(logits=rows.logits.detach()).sample((num_codes,))
    rows.zero_grad()
    log_eta = torch.tensor(math.log(eta), dtype=torch.float64, requires_grad=True)
    elbos, surrogate, numbers = 0.0, 0.0, []
    for row in range(4):
        log_p, log_q = log_densities(rows, codes[:, row], row)
        target = (log_p.detach() + log_eta.exp() * log_q.detach()) / (log_eta.exp() + beta)  # log q* of each
        shares = (target - log_q.detach()).exp() / (target - log_q.detach()).exp().sum()
        numbers.append(1 / (shares**2).sum())
        surrogate = surrogate + log_p.mean() + (shares.detach() * log_q).sum()
        elbos += (log_p - log_q).mean().item()
    (-surrogate).backward()
    assert found == pytest.approx(-elbos)
    torch.testing.assert_close(gradients, rows.gradients())
    [expected] = torch.autograd.grad((sum(numbers) / 4 - 0.4 * num_codes) ** 2, log_eta)
    torch.testing.assert_close(of_eta, expected)


def test_the_trust_region_learns_to_meet_its_target():
    rows, elbo = Rows("mlp", 3, 3, 200), DAPS(num_particles=8, target=0.75)
    optimizer = torch.optim.Adam(elbo.own.parameters(), lr=0.1)
    with torch.no_grad():
        elbo.own.log_eta.fill_(-3.0)
    misses = []  # deviations from the target, as shares of P
    for _ in range(80):
        optimizer.zero_grad()
        found = elbo.estimate_of(rows.model, rows.guide, (rows.x,), {})
        found.own_loss.backward(inputs=list(elbo.own.parameters()))
        misses.append(found.own_loss.item() ** 0.5 / 8)
        optimizer.step()
    assert misses[0] > 0.2 and sum(misses[-10:]) / 10 < 0.04


def test_options_out_of_range_are_refused():
    with pytest.raises(ValueError, match="Expected a target between 1 / 8 and 1"):
        estimator("daps", target=0.1)
    with pytest.raises(ValueError, match="Expected beta of at least 0"):
        estimator("daps", beta=-1.0)
