"""Double control variates: the published formula for bits, leave-one-out without expansions, and the learned scale."""

import pyro
import pytest
import torch
from draws import exact_gradient, standard_scores
from pairs import DATA, PROGRAMS
from problems import Rows
from torch.nn import functional as F

from pyro_gvae.distributions.one_hot import FactorizedOneHotCategorical
from pyro_gvae.elbos.double_cv import DoubleCV
from pyro_gvae.elbos.score import ReinforceLOO
from pyro_gvae.estimators import estimator
from pyro_gvae.exact import Pair


def gradients(loss, rows):
    torch.manual_seed(1)
    return loss.loss_and_grads(rows.model, rows.guide, rows.x), rows.gradients()


@pytest.mark.parametrize("num_codes", [2, 3, 5])
def test_the_gradient_for_bits_is_the_published_formula(num_codes):
    """The gradient is that of the log-odds, one code at a time; alpha has the opposite sign in the paper."""
    rows, alpha, elbo = Rows("mlp", 3, 2), 0.7, DoubleCV(num_particles=num_codes)
    with torch.no_grad():
        elbo.own.alpha.fill_(alpha)
    _, found = gradients(elbo, rows)
    torch.manual_seed(1)
    bits = FactorizedOneHotCategorical(logits=rows.logits.detach()).sample((num_codes,))[:, 0, :, 1]  # (P, N)
    logits = rows.logits.detach()[0]
    theta = (logits[:, 1] - logits[:, 0]).sigmoid()

    def cost(b):
        natural = (torch.stack([1 - b, b], -1).flatten() @ rows.first[0]).tanh() @ rows.second[0]
        log_prior = rows.prior[0].log_softmax(-1)
        log_p = -F.binary_cross_entropy_with_logits(natural, rows.x[0], reduction="none").sum()
        log_p = log_p + ((1 - b) * log_prior[:, 0] + b * log_prior[:, 1]).sum()
        return log_p - ((1 - b) * (1 - theta).log() + b * theta.log()).sum()

    f, slopes = [], []
    for b in bits:
        soft = b.clone().requires_grad_()
        f.append(cost(soft))
        slopes.append(torch.autograd.grad(f[-1], soft)[0])
    expected, count = torch.zeros(3).double(), num_codes
    others = [sum(slopes[j] for j in range(count) if j != i) / (count - 1) for i in range(count)]
    h = [f[i] - alpha * (others[i] * (bits[i] - theta)).sum() for i in range(count)]
    for i in range(count):
        baseline = sum(h[j] for j in range(count) if j != i) / (count - 1)
        expected += ((h[i] - baseline) * (bits[i] - theta) + alpha * others[i] * theta * (1 - theta)).detach() / count
    odds = found[0, :6].reshape(3, 2)
    torch.testing.assert_close(-odds[:, 1], expected)
    torch.testing.assert_close(odds[:, 0], -odds[:, 1])


def test_without_the_expansions_it_is_leave_one_out():
    elbo = DoubleCV(num_particles=3)
    with torch.no_grad():
        elbo.own.alpha.zero_()
    found, expected = (
        gradients(elbo, Rows("mlp", 3, 3, 4)),
        gradients(ReinforceLOO(num_particles=3), Rows("mlp", 3, 3, 4)),
    )
    assert found[0] == pytest.approx(expected[0], rel=1e-12)
    torch.testing.assert_close(found[1], expected[1], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("num_categories", [2, 3])
def test_it_has_less_variance_with_an_equal_mean(num_categories):
    problem = "mlp", 3, num_categories
    _, found = gradients(DoubleCV(num_particles=4), Rows(*problem, 4000))
    _, other = gradients(ReinforceLOO(num_particles=4), Rows(*problem, 4000))
    assert found.var(0)[: 3 * num_categories].sum() < 0.5 * other.var(0)[: 3 * num_categories].sum()
    assert standard_scores(found, exact_gradient(*problem), 3, num_categories).max() < 5


def test_the_scale_learns_to_lower_the_variance():
    """For costs that are linear in the codes the best scale is 1."""
    rows, elbo = Rows("mlp", 3, 2, 100), DoubleCV(num_particles=2)
    with torch.no_grad():
        elbo.own.alpha.fill_(-1.0)
    optimizer = torch.optim.Adam(elbo.own.parameters(), lr=0.1)
    for _ in range(30):
        optimizer.zero_grad()
        elbo.loss_and_grads(rows.model, rows.guide, rows.x)
        optimizer.step()
    assert 0.4 < elbo.own.alpha < 1.6


def test_integers_have_no_slope():
    model, guide, elbo = estimator("double-cv").bind(Pair(*PROGRAMS["bits and an integer"][:2]))
    with pyro.get_param_store().scope(), pytest.raises(ValueError, match="an integer has no relaxation"):
        elbo.loss_and_grads(model, guide, DATA)
