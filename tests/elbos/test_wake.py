"""Exact wake phases: gradients of two objectives from one table of codes, in slices, nested plates and chains."""

from dataclasses import replace

import pairs
import problems
import pyro
import pytest
import torch
from pairs import DATA, with_gradients
from problems import PROBLEMS

from pyro_gvae import ExactELBO, ExactEvidence
from pyro_gvae.elbos.free_bits import FreeBits
from pyro_gvae.elbos.wake import ExactWake
from pyro_gvae.estimators import estimator
from pyro_gvae.exact.wake import Exclusive, Inclusive
from pyro_gvae.jit.traced_elbo import TracedELBO
from pyro_gvae.runtime import tuning

ENCODERS = [Exclusive(), Inclusive()]
EACH_ENCODER = pytest.mark.parametrize("encoder", ENCODERS, ids=["exclusive", "inclusive"])
PROBLEM = next(problem for problem in PROBLEMS if problem.name == "bernoulli-learned")


def in_a_loop(vae, x, encoder):
    """Compute -log p(x) and its gradient, except the encoder's, one code and one datum at a time."""
    joint, log_q = problems.joint_in_a_loop(PROBLEM, vae, x), problems.log_q_in_a_loop(vae, x)
    posterior = joint.softmax(0).detach()
    of_guide = posterior * log_q if isinstance(encoder, Inclusive) else log_q.exp() * (joint.detach() - log_q)
    return -joint.logsumexp(0).sum(), problems.gradients(-joint.logsumexp(0).sum() - of_guide.sum(), vae)


@EACH_ENCODER
@pytest.mark.parametrize("slice_size", [1, 3, None])
@pytest.mark.parametrize("sharpness", [1.0, 30.0], ids=["smooth", "sharp"])
def test_slices_have_the_gradients_of_a_loop_over_codes(monkeypatch, encoder, slice_size, sharpness):
    monkeypatch.setattr(tuning, "CPU", replace(tuning.CPU, few_codes=0))
    vae, x = PROBLEM.vae(), PROBLEM.x()
    with torch.no_grad():
        vae.encoder[-2].weight.mul_(sharpness)  # so that q vanishes for codes that the posterior needs
    expected, wanted = in_a_loop(vae, x, encoder)
    elbo = ExactWake(encoder, slice_size=slice_size)
    assert elbo.loss_and_grads(vae.model, vae.guide, x) == pytest.approx(expected.item(), rel=1e-10)
    found = {name: parameter.grad for name, parameter in vae.named_parameters()}
    torch.testing.assert_close(found, wanted, rtol=1e-8, atol=1e-8)
    differentiable = elbo.differentiable_loss(vae.model, vae.guide, x)
    torch.testing.assert_close(differentiable, expected)
    torch.testing.assert_close(problems.gradients(differentiable, vae), wanted, rtol=1e-8, atol=1e-8)


def test_the_model_follows_the_evidence_and_the_guide_the_elbo():
    """The negative control: neither loss has both gradients."""
    vae, x = PROBLEM.vae(), PROBLEM.x()
    found = problems.gradients(ExactWake().differentiable_loss(vae.model, vae.guide, x), vae)
    evidence = problems.gradients(ExactEvidence().differentiable_loss(vae.model, vae.guide, x), vae)
    bound = problems.gradients(ExactELBO().differentiable_loss(vae.model, vae.guide, x), vae)
    for name, gradient in found.items():
        own, other = (bound, evidence) if name.startswith("encoder") else (evidence, bound)
        torch.testing.assert_close(gradient, own[name], rtol=1e-8, atol=1e-8)
        assert (gradient - other[name]).abs().max() > 1e-3


@EACH_ENCODER
@pytest.mark.parametrize("name", ["global_code", "nested"])
def test_levels_are_the_same_in_slices(encoder, name):
    model, guide = getattr(pairs, f"{name}_model"), getattr(pairs, f"{name}_guide")
    expected = with_gradients(lambda: ExactWake(encoder).loss_and_grads(model, guide, DATA))
    found = with_gradients(lambda: ExactWake(encoder, slice_size=5).loss_and_grads(model, guide, DATA))
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("steps", [iter, pyro.markov], ids=["joint codes", "a chain"])
def test_codes_that_the_guide_never_draws_leave_the_inclusive_gradient_finite(steps):
    def model(x):
        with pyro.plate("data", len(x)):
            for step in steps(range(2)):
                z = pyro.sample(f"z{step}", pairs.one_hot(torch.zeros(3).double()))
                pyro.sample(f"x{step}", pyro.distributions.Normal(z @ pairs.weights(3), 1.0), obs=x[:, step])

    def guide(x):
        logits = torch.cat([pairs.weights(2), torch.tensor([-torch.inf]).double()])
        with pyro.plate("data", len(x)):
            for step in steps(range(2)):
                pyro.sample(f"z{step}", pairs.one_hot(logits))

    found = with_gradients(lambda: ExactWake(Inclusive()).loss_and_grads(model, guide, DATA))
    assert found["loss"].item() == pytest.approx(ExactEvidence().loss(model, guide, DATA))
    assert all(value.isfinite().all() and value.any() for value in found.values())


@EACH_ENCODER
def test_a_recording_has_the_same_gradients(encoder):
    vae, x = PROBLEM.vae(), PROBLEM.x()
    traced, wanted = TracedELBO(ExactWake(encoder)), in_a_loop(vae, x, encoder)
    for _ in range(2):  # recorded, and replayed
        vae.zero_grad()
        with pyro.get_param_store().scope():
            assert traced.loss_and_grads(vae.model, vae.guide, x) == pytest.approx(wanted[0].item())
        found = {name: parameter.grad for name, parameter in vae.named_parameters()}
        torch.testing.assert_close(found, wanted[1], rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("steps", [iter, pyro.markov], ids=["levels", "a chain"])
def test_the_model_s_parameter_that_is_a_prior_s_logits_follows_the_evidence_alone(steps):
    """Such a parameter is a leaf, which has a gradient also where the model runs without one."""

    def program(logits, x):
        for _ in steps(range(1)):
            style = pyro.sample("style", pyro.distributions.Bernoulli(logits=logits).to_event(1))
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", pairs.one_hot(pairs.linear(3, style)))
            yield y

    def model(x):
        for y in program(pairs.weights(2), x):
            pairs.observe(y, obs=x)

    def guide(x):
        for _ in program(torch.zeros(2).double(), x):
            pass

    found = with_gradients(lambda: ExactWake().loss_and_grads(model, guide, DATA))
    expected = with_gradients(lambda: ExactEvidence().loss_and_grads(model, guide, DATA))
    torch.testing.assert_close(found["w2"], expected["w2"], rtol=1e-9, atol=1e-9)


def test_unknown_encoders_and_free_bits_are_refused():
    with pytest.raises(ValueError, match="Expected encoder to be one of exclusive, inclusive, but found 'both'"):
        estimator("exact-wake", encoder="both")
    with pytest.raises(ValueError, match="Expected a loss with a KL to leave free, but found the log-evidence"):
        FreeBits(ExactWake(), 0.1)


@EACH_ENCODER
@pytest.mark.parametrize("slice_size", [3, None])
def test_a_mixture_has_the_gradients_of_a_loop_over_codes(encoder, slice_size):
    """The model has the gradient of w log p(x) + (1 - w) ELBO, and the guide that of both KLs."""
    vae, x, weight = PROBLEM.vae(), PROBLEM.x(), 0.7
    evidence, of_wake = in_a_loop(vae, x, encoder)
    joint, log_q = problems.joint_in_a_loop(PROBLEM, vae, x), problems.log_q_in_a_loop(vae, x)
    bound = -(log_q.exp() * (joint - log_q)).sum()
    of_bound = problems.gradients(bound, vae)
    name = {Exclusive: "exclusive", Inclusive: "inclusive"}[type(encoder)]
    chosen = estimator("exact-wake", encoder=name, evidence_weight=weight, slice_size=slice_size)
    elbo = chosen.elbo()
    expected = weight * evidence + (1 - weight) * bound
    vae.zero_grad()
    assert elbo.loss_and_grads(vae.model, vae.guide, x) == pytest.approx(expected.item(), rel=1e-10)
    found = {name: parameter.grad for name, parameter in vae.named_parameters()}
    wanted = {name: weight * of_wake[name] + (1 - weight) * of_bound[name] for name in found}
    torch.testing.assert_close(found, wanted, rtol=1e-8, atol=1e-8)
    assert "with weight 0.7" in chosen.approximates


def test_a_weight_is_between_0_and_1():
    with pytest.raises(ValueError, match=r"Expected an evidence_weight between 0 and 1, but found 1\.5"):
        estimator("exact-wake", evidence_weight=1.5)
