"""Sums over the codes of any program: stock Pyro is the oracle."""

from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pairs import (
    DATA,
    PROGRAMS,
    B,
    D,
    L,
    bottom_up_guide,
    concatenated,
    linear,
    m2_guide,
    m2_model,
    observe,
    one_hot,
    stock,
    top_down_guide,
    two_layers_model,
    weights,
    with_gradients,
)
from pyro import poutine
from pyro.infer import TraceEnum_ELBO, config_enumerate
from torch import Tensor

from pyro_gvae import ExactELBO, exact
from pyro_gvae.exact import Pair

EACH_PROGRAM = pytest.mark.parametrize("name", PROGRAMS)
#: Programs with discrete latents only, each of one datum.
SUMMED = ["two layers, independent", "bits and an integer"]


@EACH_PROGRAM
@pytest.mark.parametrize("slice_size", [None, 1])
def test_loss_and_gradients_are_those_of_stock_pyro(name, slice_size):
    model, guide, _ = PROGRAMS[name]
    found = with_gradients(lambda: ExactELBO(slice_size=slice_size).loss_and_grads(model, guide, DATA))
    torch.testing.assert_close(found, stock(PROGRAMS[name]), rtol=1e-9, atol=1e-9)


def test_the_comparison_notices_what_is_counted_twice():
    """The negative control: a global latent inside of the plate differs for each datum."""
    model, guide, _ = PROGRAMS["a mixture with Dirichlet weights"]
    found = ExactELBO().loss(poutine.scale(model, scale=1.001), guide, DATA)
    assert abs(found - stock(PROGRAMS["a mixture with Dirichlet weights"])["loss"].item()) > 1e-3


@EACH_PROGRAM
def test_each_datum_has_its_share(name):
    model, guide, _ = PROGRAMS[name]
    found = exact.elbo(Pair(model, guide), DATA, slice_size=4)
    assert found.shape == ((B, D) if name == "nested plates" else (B,))
    assert -found.sum().item() == pytest.approx(stock(PROGRAMS[name])["loss"].item(), abs=1e-9)


@pytest.mark.parametrize("name", SUMMED)
def test_the_evidence_is_that_of_stock_pyro(name):
    program = PROGRAMS[name]
    elbo = TraceEnum_ELBO(max_plate_nesting=1)
    expected = -elbo.loss(config_enumerate(program.model), lambda x: None, DATA)
    for slice_size in (None, 5):
        found = exact.log_evidence(Pair(program.model, program.guide), DATA, slice_size=slice_size)
        assert found.sum().item() == pytest.approx(expected, abs=1e-9)
    found = exact.bounds(Pair(program.model, program.guide), DATA)
    assert found.log_evidence.sum().item() == pytest.approx(expected, abs=1e-9)
    assert (found.elbo < found.log_evidence).all()


CONCATENATED = {
    "two layers, bottom-up": (two_layers_model, bottom_up_guide),
    "two layers, top-down": (two_layers_model, top_down_guide),
    "a normal given a code": (m2_model, m2_guide),
}


@pytest.mark.parametrize("name", CONCATENATED)
def test_programs_need_not_broadcast(name):
    """Codes that are concatenated with the data have the shape of a sample, in one run per code."""
    model, guide = CONCATENATED[name]

    def dense(program: Callable[..., Any]) -> Callable[..., Any]:
        takes = "dense" in (program.__kwdefaults__ or {})
        return lambda x: program(x, dense=concatenated) if takes else program(x)

    with pytest.warns(UserWarning, match="run for one joint code after another"):
        found = with_gradients(lambda: ExactELBO(slice_size=5).loss_and_grads(dense(model), dense(guide), DATA))
    torch.testing.assert_close(found, stock(PROGRAMS[name]), rtol=1e-9, atol=1e-9)


def test_continuous_latents_are_drawn_anew_for_each_call():
    def draws(loc: Tensor) -> Any:
        return dist.Normal(loc, 0.8).to_event(1)

    def model(x):
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", one_hot(weights(3)))
            observe(y, pyro.sample("z", draws(torch.zeros(L).double())), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", one_hot(linear(3, x)))
            pyro.sample("z", draws(linear(L, x, y)))

    pyro.set_rng_seed(0)
    elbo, stock_elbo = ExactELBO(), TraceEnum_ELBO(max_plate_nesting=1)
    ours = torch.tensor([elbo.loss(model, guide, DATA) for _ in range(400)])
    theirs = torch.tensor([stock_elbo.loss(model, config_enumerate(guide), DATA) for _ in range(400)])
    error = (ours.var() / 400 + theirs.var() / 400).sqrt()
    assert ours.std() > 0.1 * theirs.std()
    assert abs(ours.mean() - theirs.mean()) < 5 * error  # fails once in 1.7 million seeds
    assert abs(ours.mean() - theirs.mean() - 10 * error) > 5 * error


def test_a_continuous_latent_without_a_pathwise_derivative_is_refused():
    def program(x):
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", one_hot(weights(3)))
            count = pyro.sample("count", dist.Poisson(2.0))
            observe(y, count.unsqueeze(-1).double(), obs=x)

    guide = poutine.block(program, hide=["x"])
    with pytest.raises(ValueError, match=r"found 'count', a Poisson without rsample\. Try"):
        exact.elbo(Pair(program, guide), DATA)


def test_the_evidence_of_continuous_latents_is_refused():
    with pytest.raises(ValueError, match="latents are all discrete, but found 'z', over which no sum can be taken"):
        exact.log_evidence(Pair(m2_model, m2_guide), DATA)
    with pytest.raises(ValueError, match="latents are all discrete, but found 'z', over which no sum can be taken"):
        exact.bounds(Pair(m2_model, m2_guide), DATA)


def test_latents_of_one_program_alone_are_refused():
    with pytest.raises(ValueError, match="'z' in the model alone"):
        exact.elbo(Pair(m2_model, lambda x: pyro.sample("y", one_hot(linear(3, x)))), DATA)
    with pytest.raises(ValueError, match="'y' in the guide alone"):
        exact.elbo(Pair(two_layers_model, m2_guide), DATA)


def test_a_program_of_no_plates_and_no_event_dimensions():
    def hidden_markov_model(x):
        state = torch.tensor(0)
        for step in pyro.markov(range(len(x))):
            state = pyro.sample(f"state {step}", dist.Categorical(logits=2 * torch.eye(2).double()[state]))
            pyro.sample(f"x {step}", dist.Normal(state.double(), 1.0), obs=x[step])

    found = exact.log_evidence(Pair(hidden_markov_model, lambda x: None), DATA[0])
    stock_loss = TraceEnum_ELBO(max_plate_nesting=0).loss(
        config_enumerate(hidden_markov_model), lambda x: None, DATA[0]
    )
    assert found.item() == pytest.approx(-stock_loss, abs=1e-9)


@pytest.mark.parametrize("intervened", ["top", "below"])
def test_an_intervention_cuts_a_latent_off(intervened):
    """The value of the intervention has no density, and the latent itself no longer affects the data."""
    code = torch.eye(3 if intervened == "top" else 4).double()[1]
    model = poutine.do(two_layers_model, data={intervened: code})
    other = "below" if intervened == "top" else "top"
    found = exact.log_evidence(Pair(model, lambda x: None), DATA)

    def by_hand(x):
        with pyro.plate("data", len(x)):
            top = code if intervened == "top" else pyro.sample("top", one_hot(weights(3)))
            below = code if intervened == "below" else pyro.sample("below", one_hot(linear(4, top)))
            observe(top, below, obs=x)

    torch.testing.assert_close(found, exact.log_evidence(Pair(by_hand, lambda x: None), DATA))
    assert other in poutine.trace(by_hand).get_trace(DATA).nodes
