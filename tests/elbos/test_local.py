"""Partial enumeration: an exact gradient of q for one latent; otherwise unbiased, with less variance than samples."""

from dataclasses import replace

import draws
import problems
import pyro
import pyro.distributions as dist
import pytest
import torch
from draws import LeaveOneOut
from problems import PROBLEMS

from pyro_gvae.distributions.one_hot import FactorizedOneHotCategorical
from pyro_gvae.elbos import local
from pyro_gvae.elbos.exact import ExactELBO
from pyro_gvae.elbos.local import LocalExpectation
from pyro_gvae.estimators import estimator
from pyro_gvae.jit.traced_elbo import TracedELBO
from pyro_gvae.runtime import tuning

BERNOULLI = PROBLEMS[0]


@pytest.mark.parametrize("num_categories", [1, 2, 5])
@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("num_particles", [1, 3])
def test_one_latent_is_exact_but_for_the_decoder(num_categories, scaled, num_particles):
    case = draws.case(1, num_categories, scaled=scaled)
    found = case.gradient(LocalExpectation(num_particles=num_particles))
    theirs = 1 + sum(parameter.numel() for parameter in case.parameters[:2])  # the bound, logits of q and prior
    if num_categories == 1:  # z is the only code
        theirs = len(found)
    torch.testing.assert_close(found[:theirs], case.exact()[:theirs], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(("num_latents", "num_categories"), [(2, 2), (3, 3)])
def test_the_mean_is_the_exact_elbo_and_its_gradient(num_latents, num_categories):
    """Programs are scaled and masked here; plain ones are tested in `tests/estimators/test_unbiased.py`."""
    case = draws.case(num_latents, num_categories, scaled=True)
    found = case.draws(LocalExpectation(num_particles=20), 80)
    assert draws.z_scores(found, case.exact()).abs().max() < 5
    error = found.std(0).norm() / len(found) ** 0.5
    assert error < 0.05 * case.exact().norm()


def test_the_check_finds_a_wrong_weight(monkeypatch):
    """The negative control: neighbours and their probabilities are in different orders."""
    case = draws.case(2, 3)
    in_order = local._by_latent
    monkeypatch.setattr(local, "_by_latent", lambda *args: in_order(*args).flip(2))
    found = case.draws(LocalExpectation(num_particles=20), 80)
    assert draws.z_scores(found, case.exact()).abs().max() > 10


def test_gradients_are_those_of_the_published_sum():
    """The sum is a loop, with log p(x, z) - log q(z) instead of the analytic KL."""
    vae, x = BERNOULLI.vae(), BERNOULLI.x()
    log_q = torch.log_softmax(vae.encoder(x), -1)
    torch.manual_seed(4)
    samples = FactorizedOneHotCategorical(logits=log_q.detach()).sample((2,))  # (P, B, N, K)
    for_encoder, for_decoder = torch.zeros((), dtype=x.dtype), torch.zeros((), dtype=x.dtype)
    for z in samples:
        likelihood = BERNOULLI.likelihood(vae, vae.decoder(z)).log_prob(x).sum()
        for_decoder = for_decoder - likelihood / len(samples)
        for datum in range(problems.B):
            for n in range(problems.N):
                for k, changed in enumerate(torch.eye(problems.K, dtype=x.dtype)):
                    code = z[datum].clone()
                    code[n] = changed
                    likelihood = BERNOULLI.likelihood(vae, vae.decoder(code)).log_prob(x[datum]).sum()
                    signal = likelihood + (code * torch.log_softmax(vae.prior_logits, -1)).sum()
                    signal = signal - (code * log_q[datum]).sum()
                    prob = log_q[datum, n, k].exp()
                    for_encoder = for_encoder - prob * signal.detach() / len(samples)
    expected = problems.gradients(for_encoder + for_decoder, vae)
    torch.manual_seed(4)
    loss = LocalExpectation(num_particles=2).differentiable_loss(vae.model, vae.guide, x)
    torch.testing.assert_close(problems.gradients(loss, vae), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(("num_latents", "num_categories"), [(2, 2), (3, 3), (2, 8)])
def test_its_variance_is_below_that_of_as_many_samples(num_latents, num_categories):
    calls = 1 + num_latents * (num_categories - 1)
    found = draws.variance(LocalExpectation(), num_latents, num_categories)
    assert found < 0.25 * draws.variance(LeaveOneOut(num_particles=calls), num_latents, num_categories)


def test_the_decoder_is_differentiated_at_the_samples_only_and_called_once_for_each_distinct_code():
    vae, x = BERNOULLI.vae(), BERNOULLI.x()
    elbo = LocalExpectation(num_particles=5)
    elbo.loss(vae.model, vae.guide, x)  # finds the nesting of plates
    shapes = []
    vae.decoder.register_forward_hook(
        lambda module, args, output: shapes.append((*args[0].shape, output.requires_grad))
    )
    elbo.loss(vae.model, vae.guide, x)
    rest = problems.B, problems.N, problems.K
    assert shapes == [(5, *rest, True), (5 * problems.N * (problems.K - 1), *rest, False)]


@pytest.mark.parametrize("rows", [1, problems.B, 4 * problems.B])
def test_slices_change_nothing_and_bound_what_is_decoded_at_once(rows, monkeypatch):
    vae, x = BERNOULLI.vae(), BERNOULLI.x()
    decoded = []

    def count(module, args, output):
        if not output.requires_grad:
            decoded.append(args[0].shape[:2].numel())

    vae.decoder.register_forward_hook(count)

    def found():
        elbo = LocalExpectation(num_particles=3)
        elbo.loss(vae.model, vae.guide, x)  # finds the latents by a few runs, which are not counted
        torch.manual_seed(4)
        decoded.clear()
        return problems.gradients(elbo.differentiable_loss(vae.model, vae.guide, x), vae)

    whole, at_once = found(), max(decoded)
    monkeypatch.setattr(tuning, "CPU", replace(tuning.CPU, decoded_rows=rows))
    torch.testing.assert_close(found(), whole, rtol=1e-12, atol=1e-12)
    assert max(decoded) == max(rows, problems.B) < at_once
    monkeypatch.setattr(local, "MOST_SLICES", 1)
    found()
    assert max(decoded) == at_once


def test_impossible_categories_add_nothing():
    logits = torch.tensor([[[0.3, 0.1, -torch.inf]]] * 2, dtype=torch.float64, requires_grad=True)

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.OneHotCategorical(logits=torch.zeros(1, 3).double()).to_event(1))
            scale = (z.squeeze(-2) * torch.tensor([1.0, 2.0, 0.5])).sum(-1)
            pyro.sample("x", dist.Uniform(0.0, scale, validate_args=False), obs=x)  # impossible in the third category

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.OneHotCategorical(logits=logits).to_event(1))

    case = draws.Case(model, guide, torch.tensor([0.7, 0.9]).double(), [logits])
    found = case.gradient(LocalExpectation())
    torch.testing.assert_close(found, case.exact())


def test_several_particles_are_recorded():
    vae, x = BERNOULLI.vae(), BERNOULLI.x()
    losses, gradients = [], []
    for elbo in (LocalExpectation(num_particles=3), TracedELBO(LocalExpectation(num_particles=3))):
        torch.manual_seed(5)
        vae.zero_grad()
        losses.append([elbo.loss_and_grads(vae.model, vae.guide, x) for _ in range(3)])
        gradients.append([parameter.grad for parameter in vae.parameters()])
    assert losses[0] == pytest.approx(losses[1], rel=1e-10)
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-10, atol=1e-10)
    assert len(set(losses[0])) == 3


def test_what_the_registry_says():
    chosen = estimator("local-expectation", num_particles=2)
    assert chosen.is_unbiased and not chosen.is_exact and chosen.num_categories is None
    with pytest.raises(ValueError, match=r"at least one particle, but found num_particles=0"):
        estimator("local-expectation", num_particles=0)
    vae, x = BERNOULLI.vae(), BERNOULLI.x()
    model, guide, elbo = chosen.bind(vae)
    exact = ExactELBO().loss(model, guide, x)
    assert elbo.loss(model, guide, x) == pytest.approx(exact, rel=0.5)
