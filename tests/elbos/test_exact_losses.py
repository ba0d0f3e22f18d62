"""Exact losses for SVI: the same steps as stock Pyro, in slices, and a clean state after an interrupt."""

from dataclasses import replace
from typing import Any

import problems
import pyro
import pyro.distributions as dist
import pytest
import torch
from problems import NUM_CODES, PROBLEMS
from pyro.infer import SVI, TraceEnum_ELBO
from torch import Tensor

from pyro_gvae.elbos.exact import ExactELBO, ExactEvidence
from pyro_gvae.handlers import discretize, enumerated, relax
from pyro_gvae.models.categorical_vae import CategoricalVAE
from pyro_gvae.runtime import tuning

LOSSES = {"elbo": (ExactELBO, problems.elbo_in_a_loop), "evidence": (ExactEvidence, problems.evidence_in_a_loop)}
EACH_LOSS = pytest.mark.parametrize("loss", LOSSES)
EACH_PROBLEM = pytest.mark.parametrize("problem", PROBLEMS, ids=lambda problem: problem.name)
EACH_SLICE_SIZE = pytest.mark.parametrize("slice_size", [1, 3, NUM_CODES, None])
BERNOULLI = PROBLEMS[0]


@pytest.fixture(autouse=True)
def negligible_codes_are_looked_for(monkeypatch):
    """Look for negligible codes even among as few codes as here."""
    monkeypatch.setattr(tuning, "CPU", replace(tuning.CPU, few_codes=0, searched_bytes=0))


def no_guide(x: Tensor) -> None:
    """The guide of the evidence, which needs none."""


def collected(vae: CategoricalVAE) -> dict[str, Tensor]:
    """Return the parameters' `.grad`, or zeros where there is none."""
    named = vae.named_parameters()
    return {name: torch.zeros_like(p) if p.grad is None else p.grad.clone() for name, p in named}


@EACH_PROBLEM
@EACH_LOSS
@EACH_SLICE_SIZE
def test_loss_and_gradients_are_those_of_a_loop_over_codes(problem, loss, slice_size):
    make, in_a_loop = LOSSES[loss]
    vae, x = problem.vae(), problem.x()
    expected = -in_a_loop(problem, vae, x).sum()
    found = make(slice_size=slice_size).loss_and_grads(vae.model, vae.guide, x)
    assert found == pytest.approx(expected.item(), rel=1e-10)
    torch.testing.assert_close(collected(vae), problems.gradients(expected, vae), rtol=1e-8, atol=1e-8)


@EACH_PROBLEM
@EACH_LOSS
@EACH_SLICE_SIZE
def test_float32_is_within_its_rounding(problem, loss, slice_size):
    make, in_a_loop = LOSSES[loss]
    vae, x = problem.vae(), problem.x()
    expected = -in_a_loop(problem, vae, x).sum()
    reference = problems.gradients(expected, vae)
    vae.float()
    found = make(slice_size=slice_size).loss_and_grads(vae.model, vae.guide, x.float())
    assert found == pytest.approx(expected.item(), rel=1e-4)
    for name, grad in collected(vae).items():
        scale = reference[name].abs().max().clamp_min(1.0).item()
        torch.testing.assert_close(grad.double(), reference[name].double(), rtol=0, atol=1e-4 * scale)


@EACH_LOSS
@EACH_SLICE_SIZE
def test_the_three_forms_of_the_loss_agree(loss, slice_size):
    make, _ = LOSSES[loss]
    vae, x = BERNOULLI.vae(), BERNOULLI.x()
    elbo = make(slice_size=slice_size)
    differentiable = elbo.differentiable_loss(vae.model, vae.guide, x)
    with_gradients = elbo.loss_and_grads(vae.model, vae.guide, x)
    assert elbo.loss(vae.model, vae.guide, x) == pytest.approx(with_gradients)
    assert differentiable.item() == pytest.approx(with_gradients)
    torch.testing.assert_close(collected(vae), problems.gradients(differentiable, vae))


@pytest.mark.parametrize("loss", ["elbo", "evidence"])
@pytest.mark.parametrize("slice_size", [3, None])
def test_training_takes_the_steps_of_stock_pyro(loss, slice_size):
    x = BERNOULLI.x()

    def trained(elbo: Any, handler: Any) -> tuple[list[float], dict[str, Tensor]]:
        vae = BERNOULLI.vae()
        guide = handler(vae.guide) if loss == "elbo" else no_guide
        with pyro.get_param_store().scope():
            svi = SVI(handler(vae.model), guide, pyro.optim.Adam({"lr": 0.03}), elbo)
            losses = [svi.step(x) for _ in range(8)]
            return losses, {name: parameter.detach().clone() for name, parameter in vae.named_parameters()}

    losses, parameters = trained(LOSSES[loss][0](slice_size=slice_size), discretize)
    stock_losses, stock_parameters = trained(TraceEnum_ELBO(max_plate_nesting=1), enumerated)
    assert losses == pytest.approx(stock_losses, rel=1e-10)
    assert losses[-1] < losses[0]
    torch.testing.assert_close(parameters, stock_parameters, rtol=1e-8, atol=1e-8)


@EACH_LOSS
@pytest.mark.parametrize("handler", [discretize, relax(temperature=0.2), lambda program: program])
def test_relaxed_pairs_are_taken_as_discrete(loss, handler):
    make, in_a_loop = LOSSES[loss]
    vae, x = BERNOULLI.vae(), BERNOULLI.x()
    expected = -in_a_loop(BERNOULLI, vae, x).sum().item()
    assert make().loss(handler(vae.model), handler(vae.guide), x) == pytest.approx(expected)


def test_the_evidence_uses_no_guide():
    vae, x = BERNOULLI.vae(), BERNOULLI.x()
    with_guide = ExactEvidence().loss_and_grads(vae.model, vae.guide, x)
    assert all(parameter.grad is None for parameter in vae.encoder.parameters())
    assert ExactEvidence().loss(vae.model, no_guide, x) == pytest.approx(with_guide)


@EACH_LOSS
def test_programs_may_take_other_arguments(loss):
    logits = torch.tensor([[0.0, 1.0], [0.5, 0.0]], dtype=torch.float64, requires_grad=True)

    def model(size, *, data):
        with pyro.plate("data", size):
            z = pyro.sample("z", dist.OneHotCategorical(logits=logits).to_event(1))
            pyro.sample("x", dist.Normal(z[..., 0].sum(-1), 1.0), obs=data)

    def guide(size, *, data):
        with pyro.plate("data", size):
            pyro.sample("z", dist.OneHotCategorical(logits=torch.zeros(2, 2).double()).to_event(1))

    data = torch.tensor([0.1, -0.5, 2.0]).double()
    stock = TraceEnum_ELBO(max_plate_nesting=1)
    expected = stock.loss(
        enumerated(model), enumerated(guide) if loss == "elbo" else lambda *_, data: None, 3, data=data
    )
    assert LOSSES[loss][0](slice_size=2).loss_and_grads(model, guide, 3, data=data) == pytest.approx(expected)


@EACH_LOSS
@pytest.mark.parametrize("slice_size", [3, None])
def test_gradients_are_added_to_what_is_there(loss, slice_size):
    vae, x = BERNOULLI.vae(), BERNOULLI.x()
    elbo = LOSSES[loss][0](slice_size=slice_size)
    elbo.loss_and_grads(vae.model, vae.guide, x)
    once = collected(vae)
    elbo.loss_and_grads(vae.model, vae.guide, x)
    torch.testing.assert_close(collected(vae), {name: 2 * grad for name, grad in once.items()})


@pytest.mark.parametrize("slice_size", [3, None])
@pytest.mark.parametrize("frozen", ["encoder", "decoder", "both"])
def test_frozen_parts_get_no_gradient(slice_size, frozen):
    vae, x = BERNOULLI.vae(), BERNOULLI.x()
    expected = problems.gradients(-problems.elbo_in_a_loop(BERNOULLI, vae, x).sum(), vae)
    for part in ("encoder", "decoder"):
        getattr(vae, part).requires_grad_(frozen not in (part, "both"))
    ExactELBO(slice_size=slice_size).loss_and_grads(vae.model, vae.guide, x)
    for name, parameter in vae.named_parameters():
        if parameter.requires_grad:
            torch.testing.assert_close(parameter.grad, expected[name])
        else:
            assert parameter.grad is None


@EACH_LOSS
@pytest.mark.parametrize("slice_size", [2, None])
@pytest.mark.parametrize("before", [True, False], ids=["after a step", "at the first step"])
@pytest.mark.parametrize("stop", [KeyboardInterrupt, RuntimeError])
def test_an_interrupt_leaves_nothing_broken(loss, slice_size, before, stop):
    vae, x = BERNOULLI.vae(), BERNOULLI.x()
    elbo = LOSSES[loss][0](slice_size=slice_size)
    undisturbed = elbo.loss_and_grads(vae.model, vae.guide, x)
    expected = collected(vae)
    if not before:
        vae.zero_grad()
    grads = {name: parameter.grad for name, parameter in vae.named_parameters()}
    values = {name: None if grad is None else grad.clone() for name, grad in grads.items()}

    calls: list[int] = []

    def interrupt(*_: Any) -> None:
        calls.append(1)
        if len(calls) == (3 if slice_size else 1):
            raise stop

    hook = vae.decoder.register_forward_hook(interrupt)
    with pytest.raises(stop):
        elbo.loss_and_grads(vae.model, vae.guide, x)
    hook.remove()
    for name, parameter in vae.named_parameters():
        assert parameter.grad is grads[name]
        if grads[name] is not None:
            torch.testing.assert_close(parameter.grad, values[name], rtol=0, atol=0)
    vae.zero_grad()
    assert elbo.loss_and_grads(vae.model, vae.guide, x) == undisturbed
    torch.testing.assert_close(collected(vae), expected, rtol=0, atol=0)


@EACH_LOSS
def test_the_plan_is_kept_while_shapes_stay(loss):
    vae, x = BERNOULLI.vae(), BERNOULLI.x()
    elbo = LOSSES[loss][0]()
    calls: list[int] = []
    vae.decoder.register_forward_hook(lambda *_: calls.append(1))

    def runs(data: Tensor) -> int:
        calls.clear()
        elbo.loss(vae.model, vae.guide, data)
        return len(calls)

    assert runs(x) > 1
    assert runs(x) == 1
    assert runs(x[:2]) > 1  # the last batch of an epoch
    assert runs(x[:2]) == 1


@EACH_LOSS
def test_sharp_posteriors_have_the_gradients_of_a_loop(loss):
    make, in_a_loop = LOSSES[loss]
    vae, x = BERNOULLI.vae(), BERNOULLI.x()
    with torch.no_grad():
        for parameter in (*vae.encoder[-2].parameters(), *vae.decoder[-1].parameters()):
            parameter.mul_(30)
    expected = -in_a_loop(BERNOULLI, vae, x).sum()
    assert make(slice_size=3).loss_and_grads(vae.model, vae.guide, x) == pytest.approx(expected.item(), rel=1e-10)
    torch.testing.assert_close(collected(vae), problems.gradients(expected, vae), rtol=1e-8, atol=1e-8)


@EACH_LOSS
def test_a_nan_is_reported(loss):
    vae, x = BERNOULLI.vae(), BERNOULLI.x()
    with torch.no_grad():
        vae.decoder[1].bias.fill_(torch.nan)
    with pyro.validation_enabled(False), pytest.warns(UserWarning, match="NaN: loss"):
        LOSSES[loss][0]().loss(vae.model, vae.guide, x)


@EACH_LOSS
def test_what_cannot_be_summed_is_refused_as_by_the_functions(loss):
    vae, x = BERNOULLI.vae(), BERNOULLI.x()
    with pytest.raises(ValueError, match="one code to fit into 100 bytes"):
        LOSSES[loss][0](max_memory=100).loss(vae.model, vae.guide, x)


def test_there_is_no_trace():
    vae, x = BERNOULLI.vae(), BERNOULLI.x()
    with pytest.raises(TypeError, match="Expected a call of ExactELBO for its loss"):
        ExactELBO()._get_trace(vae.model, vae.guide, (x,), {})


def test_a_loss_with_another_slice_size_makes_another_plan():
    vae, x, loss = PROBLEMS[0].vae(), PROBLEMS[0].x(), ExactELBO()
    assert loss.num_slices(vae.model, vae.guide, x) == 1
    loss.slice_size = 3
    assert loss.num_slices(vae.model, vae.guide, x) == 3


@pytest.mark.parametrize("few_codes", [NUM_CODES - 1, NUM_CODES])
def test_a_sum_that_leaves_codes_out_is_not_recorded(few_codes, monkeypatch):
    monkeypatch.setattr(tuning, "CPU", replace(tuning.CPU, few_codes=few_codes, searched_bytes=0))
    vae, x = BERNOULLI.vae(), BERNOULLI.x()
    found = ExactELBO().why_not_recordable(vae.model, vae.guide, x)
    assert found is None if few_codes == NUM_CODES else f"found {NUM_CODES}" in found
    assert ExactEvidence().why_not_recordable(vae.model, vae.guide, x) is None
