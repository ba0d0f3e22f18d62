"""Refusals of programs whose latents have one axis each, before anything is summed."""

from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from pairs import (
    DATA,
    PARALLEL,
    B,
    chain_guide,
    chain_model,
    linear,
    no_guide,
    one_hot,
    weights,
    with_gradients,
    without_markov,
)

from pyro_gvae import ExactELBO, exact
from pyro_gvae.elbos.exact import ExactEvidence
from pyro_gvae.elbos.score import VIMCO, ReinforceLOO
from pyro_gvae.estimators import estimator
from pyro_gvae.exact import Pair
from pyro_gvae.programs.provenance import Provenance
from pyro_gvae.runtime.distributed import Share


def chain(state, obs=None, steps=range, markov=pyro.markov):
    """Build a model of three-valued states; `state` gives logits from the previous states."""

    def model(x):
        z = []
        with pyro.plate("data", len(x)):
            for t in markov(steps(x.shape[1])):
                z.append(pyro.sample(f"z{t}", one_hot(state(z) if z else weights(3))))
                if obs is None:
                    pyro.sample(f"x{t}", dist.Normal(z[-1][..., 0], 1.0), obs=x[:, t])
        if obs is not None:
            obs(x, z)

    return model


def refused(match, model, guide=no_guide, loss=ExactELBO):
    with pytest.raises(ValueError, match=match):
        loss().loss(model, guide, DATA)


def test_a_latent_out_of_reach():
    """Its dimension has already been given to the latent itself."""
    model = chain(lambda z: linear(3, z[max(0, len(z) - 2)]))
    refused(r"'z2', which depends on 'z0'\. Try pyro\.markov\(\.\., history=2\)", model)


def test_a_latent_that_a_statement_after_the_loop_reads():
    def observe(x, z):
        with pyro.plate("again", len(x)):
            pyro.sample("x", dist.Normal(z[-1][..., 0], 1.0), obs=x[:, 0])

    refused("to be inside of its plate", chain(lambda z: linear(3, z[-1]), observe))


def read_behind_model(x, *, lag, history, again):
    z = [torch.zeros(3).double()] * 2
    with pyro.plate("data", len(x)):
        for t in pyro.markov(range(4), history=history):
            z.append(pyro.sample(f"z{t}", one_hot(linear(3, z[-1], z[-history])), infer=PARALLEL))
            pyro.sample(f"x{t}", dist.Normal(linear(1, z[-1]).squeeze(-1), 1.0), obs=x[:, t])
        w, u = pyro.sample("w", one_hot(linear(2, z[-lag]))), z[-1]
        for t in pyro.markov(range(3)) if again else ():  # a second chain, which reads the end of the first one
            u = pyro.sample(f"u{t}", one_hot(linear(3, u, z[-1])))
            pyro.sample(f"y{t}", dist.Normal(linear(1, u).squeeze(-1), 1.0), obs=x[:, t] + 1)
        pyro.sample("end", dist.Normal(linear(1, w, u, z[-lag]).squeeze(-1), 1.0), obs=x[:, 1])


def read_behind_guide(x, *, lag, history, again):
    z = u = torch.zeros(3).double()
    with pyro.plate("data", len(x)):
        for t in pyro.markov(range(4), history=history):
            u = z = pyro.sample(f"z{t}", one_hot(linear(3, x[:, t:], z)))
        pyro.sample("w", one_hot(linear(2, z)))
        for t in pyro.markov(range(3)) if again else ():
            u = pyro.sample(f"u{t}", one_hot(linear(3, x, u)))


@pytest.mark.parametrize("again", [False, True])
@pytest.mark.parametrize(("lag", "history"), [(1, 1), (2, 2)])
def test_statements_behind_a_loop_read_what_its_last_one_could_reach(lag, history, again):
    """The oracle is a plain loop, whose joint codes are summed."""
    options = {"lag": lag, "history": history, "again": again}
    model, guide = partial(read_behind_model, **options), partial(read_behind_guide, **options)
    for programs, loss in (((model, guide), ExactELBO()), ((model, no_guide), ExactEvidence())):
        found = with_gradients(partial(loss.loss_and_grads, *programs, DATA))
        plain = [without_markov(program) for program in programs]
        expected = with_gradients(partial(loss.loss_and_grads, *plain, DATA))
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


def test_statements_behind_a_loop_that_read_further_back():
    model = partial(read_behind_model, lag=3, history=1, again=False)
    refused(r"'w', which depends on 'z1'\. Try pyro\.markov\(\.\., history=2\)", model, loss=ExactEvidence)


def test_a_statement_outside_of_the_plate():
    refused(
        "'x' outside of them",
        chain(
            lambda z: linear(3, z[-1]),
            lambda x, z: pyro.sample("x", dist.Normal(z[-1].sum((-2, -1)), 1.0), obs=x.sum()),
        ),
    )


def test_a_program_that_takes_no_more_dimensions_runs_once_for_each_code():
    ones = torch.ones(6, 3).double()
    model = chain(lambda z: torch.cat([z[-1], torch.zeros(B, 3).double()], -1) @ ones)
    with pytest.warns(UserWarning, match="but found: Tensors must have same number of dim"):
        found = ExactELBO().loss(model, no_guide, DATA)
    assert found == pytest.approx(ExactELBO().loss(chain(lambda z: z[-1] @ ones[:3]), no_guide, DATA), rel=1e-9)


def test_codes_that_are_paired_with_data():
    """There are as many values as data, so that the shapes match."""

    def model(x, read=lambda z: z.reshape(3, 3)[:, 0]):
        with pyro.plate("data", 3):
            z = pyro.sample("z", one_hot(weights(3)))
            pyro.sample("x", dist.Normal(read(z), 1.0), obs=x[:3, 0])

    with pytest.warns(UserWarning, match="'x' pairs the 3 values of 'z' with data"):
        found = ExactELBO().loss(model, no_guide, DATA)
    right = partial(model, read=lambda z: z[..., 0])
    assert found == pytest.approx(ExactELBO().loss(right, no_guide, DATA), rel=1e-9)


def test_a_batch_dimension_of_no_plate():
    def model(x):
        pyro.sample("means", dist.Normal(torch.zeros(3).double(), 1.0), obs=torch.zeros(3).double())
        chain_model(x)

    refused(r"every batch dimension of 'means' .* Try \.to_event", model)


def test_a_long_loop_without_markov_is_told_of_it():
    x = torch.zeros(2, 70).double()
    model = chain(lambda z: linear(3, z[-1]), markov=list)
    guide = chain(lambda z: linear(3, z[-1]), markov=list, obs=lambda x, z: None)
    for run in (
        lambda: ExactELBO().loss(model, no_guide, x),
        lambda: ExactELBO().loss(model, guide, x),
        lambda: exact.log_evidence(Pair(model, no_guide), x),
    ):
        with pytest.raises(ValueError, match=r"for t in pyro\.markov\(range\(T\)\)"):
            run()


def test_too_many_values():
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.OneHotCategorical(logits=torch.zeros(20, 4).double()).to_event(1))
            pyro.sample("x", dist.Normal(z.sum((-2, -1)), 1.0), obs=x[:, 0])

    refused(r"log-probabilities of 'z' to fit into .* 1,099,511,627,776 values", model)


def test_a_chain_of_normals_that_each_depend_on_all_codes_before():
    """The last normal has 3^T values."""

    def program(x, observed):
        y, z = torch.zeros(3).double(), torch.zeros(len(x)).double()
        with pyro.plate("data", len(x)):
            for t in pyro.markov(range(40)):
                y = pyro.sample(f"y{t}", one_hot(y))
                z = pyro.sample(f"z{t}", dist.Normal(z + y[..., 0], 1.0))
            if observed:
                pyro.sample("x", dist.Normal(z, 1.0), obs=x[:, 0])

    refused(
        r"'z\d+', which takes .* a chain of continuous",
        partial(program, observed=True),
        partial(program, observed=False),
    )


def test_latents_of_one_value_and_chains_of_one_step():
    def program(x, observed):
        with pyro.plate("data", len(x)):
            z = None
            for t in pyro.markov(range(x.shape[1])):
                z = pyro.sample(f"z{t}", one_hot(weights(1) if z is None else z @ weights(1, 1)))
                if observed:
                    pyro.sample(f"x{t}", dist.Normal(z[..., 0], 1.0), obs=x[:, t])

    model, guide = partial(program, observed=True), partial(program, observed=False)
    for x in (DATA, DATA[:1], DATA[:, :1], DATA[:1, :1]):
        expected = dist.Normal(1.0, 1.0).log_prob(x).sum(-1)
        for latents in (guide, no_guide):
            torch.testing.assert_close(exact.elbo(Pair(model, latents), x).detach(), expected)


@pytest.mark.parametrize("loss", [ReinforceLOO, VIMCO])
def test_losses_that_draw_name_those_that_sum(loss):
    refused("'z0' in the model alone.*Try ExactELBO", chain_model, no_guide, lambda: loss(num_particles=2))


def test_several_processes_divide_no_chain():
    refused("which need no table", chain_model, chain_guide, lambda: ExactELBO(share=Share(0, 2)))


def test_the_origin_of_tensors_is_followed():
    """The origin is followed through functions of lists, in-place writes and modules; constants have none."""
    provenance, found = Provenance(), {}

    def program():
        a, b = (pyro.sample(name, dist.Normal(torch.zeros(3), 1.0).to_event(1)) for name in "ab")
        written = torch.zeros(3)
        written[0] = b[0]
        found["both"] = torch.nn.Linear(6, 2)(torch.cat([a, b]))
        found["a"], found["b"], found[""] = a.exp().sum(), written, torch.ones(3) * 2
        found["c"] = pyro.sample("c", dist.Normal(a, 1.0).to_event(1))

    with provenance:
        program()
    sources = {key: set(provenance.of(value)) for key, value in found.items()}
    assert sources == {"both": {"a", "b"}, "a": {"a"}, "b": {"b"}, "": set(), "c": {"c"}}


@pytest.mark.parametrize(
    ("name", "options"),
    [("reinforce", {}), ("reinforce-baseline", {}), ("gumbel-softmax", {"temperature": 0.5}), ("reinmax", {})],
)
def test_estimators_that_draw_name_one_that_sums(name, options):
    """Stock losses draw such a latent from the prior, with only a warning, and their values are no bound."""
    model, guide, elbo = estimator(name, **options).bind(Pair(chain_model, no_guide))
    with pytest.raises(ValueError, match=r"in the model alone.*Try ExactELBO"):
        elbo.loss(model, guide, DATA)
    model, guide, elbo = estimator(name, **options).bind(Pair(chain_model, chain_guide))
    assert elbo.loss(model, guide, DATA) > 0  # with a guide it is drawn
