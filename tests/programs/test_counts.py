"""Binomial latents: counts of at most n are summed, drawn and enumerated like integers."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO, TraceEnum_ELBO, config_enumerate, infer_discrete

from pyro_gvae import ExactELBO, discretize, enumerated, estimator, exact, relax

X = torch.tensor([[0.3, -0.4], [2.2, 0.9]]).double()
TRIALS = torch.tensor([1.0, 3.0]).double()


def pair(trials, family=dist.Binomial):
    weight = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)

    def model(x):
        with pyro.plate("data", len(x)):
            prior = dist.BetaBinomial(x.new_tensor(2.0), x.new_tensor(3.0), trials)
            z = pyro.sample("z", prior if family is dist.BetaBinomial else dist.Binomial(trials, x.new_tensor(0.4)))
            pyro.sample("x", dist.Normal(weight * z, 1.0), obs=x[:, 0])

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Binomial(trials, logits=weight * x[:, 1]))

    return model, guide, weight


@pytest.mark.parametrize("family", [dist.Binomial, dist.BetaBinomial])
def test_data_of_different_numbers_of_trials_are_summed_exactly(family):
    model, guide, weight = pair(TRIALS, family)
    evidence, elbo = [], []
    for x, trials in zip(X, TRIALS, strict=True):
        z = torch.arange(int(trials) + 1).double()
        prior = dist.Binomial(trials, x.new_tensor(0.4))
        if family is dist.BetaBinomial:
            prior = dist.BetaBinomial(x.new_tensor(2.0), x.new_tensor(3.0), trials)
        joint = prior.log_prob(z) + dist.Normal(weight * z, 1.0).log_prob(x[0])
        log_q = dist.Binomial(trials, logits=weight * x[1]).log_prob(z)
        evidence.append(joint.logsumexp(0))
        elbo.append((log_q.exp() * (joint - log_q)).sum())
    found = exact.log_evidence(exact.Pair(model, guide), X)
    torch.testing.assert_close(found, torch.stack(evidence), atol=1e-8, rtol=0)
    found = exact.elbo(exact.Pair(model, guide), X)
    torch.testing.assert_close(found, torch.stack(elbo), atol=1e-8, rtol=0)
    (gradient,), (expected,) = (torch.autograd.grad(sum(value), [weight]) for value in (found, elbo))
    torch.testing.assert_close(gradient, expected, atol=1e-8, rtol=0)


def test_stock_elbos_and_posteriors_are_the_same_with_counts():
    model, guide, _ = pair(torch.tensor(3.0).double())
    stock = TraceEnum_ELBO(max_plate_nesting=1).loss(config_enumerate(model), config_enumerate(guide), X)
    found = TraceEnum_ELBO(max_plate_nesting=1).loss(enumerated(model), enumerated(guide), X)
    assert found == pytest.approx(stock, abs=1e-8)
    assert ExactELBO().loss(discretize(model), discretize(guide), X) == pytest.approx(stock, abs=1e-8)
    drawn = pyro.poutine.trace(infer_discrete(enumerated(model), first_available_dim=-2, temperature=0)).get_trace(X)
    posterior = exact.posterior(exact.Pair(model, guide), X)
    assert drawn.nodes["z"]["value"].tolist() == posterior.marginals[:, 0].argmax(-1).tolist()


@pytest.mark.parametrize("name", ["reinforce-loo", "vimco", "local-expectation", "top-c", "disarm-iw"])
def test_estimators_that_draw_or_sum_take_counts(name):
    model, guide, _ = pair(TRIALS)
    expected = -exact.elbo(exact.Pair(model, guide), X).sum().item()
    bound = estimator(name, num_particles=2) if name == "vimco" else estimator(name)
    bound_model, bound_guide, elbo = bound.bind(exact.Pair(model, guide))
    torch.manual_seed(0)
    losses = torch.tensor([elbo.loss(bound_model, bound_guide, X) for _ in range(100)], dtype=torch.float64)
    if name == "vimco":
        assert losses.mean() < expected  # a tighter bound
    else:
        assert (losses.mean() - expected).abs() <= 5 * losses.std() / 10 + 1e-8


def test_counts_have_no_relaxation():
    model, guide, _ = pair(TRIALS)
    with pytest.raises(ValueError, match="found 'z', a Binomial: an integer has no relaxation"):
        Trace_ELBO().loss(relax(model, temperature=0.5), relax(guide, temperature=0.5), X)
