"""Relaxed programs whose observations are drawn."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import EnergyDistance, Trace_ELBO, TraceEnum_ELBO

from pyro_gvae.distributions.concrete import ExpConcrete
from pyro_gvae.handlers import relax

B, K = 4, 3
X = torch.tensor([0.3, -1.0, 0.5, 2.0])


def by_hand(logits, kind):
    return pyro.sample("z_log", ExpConcrete(0.5, logits=logits)).exp()


def written(logits, kind):
    return pyro.sample("z", kind(logits=logits))


def pair(site):
    def model():
        with pyro.plate("data", B):
            z = site(torch.zeros(K), dist.OneHotCategorical)
            pyro.sample("x", dist.Normal(z @ torch.tensor([-1.0, 0.0, 2.0]), 0.1), obs=X)
        return z

    def guide():
        q = pyro.param("q", torch.ones(B, K).cumsum(-1))
        with pyro.plate("data", B):
            site(q, dist.OneHotCategorical)

    return model, guide


def test_the_code_of_an_unconditioned_program_is_the_one_that_was_drawn():
    model, _ = pair(written)
    returned = []
    program = poutine.uncondition(lambda: returned.append(relax(model, temperature=0.5)()))
    trace = poutine.trace(program).get_trace()
    assert torch.equal(returned[0], trace.nodes["z_log"]["value"].exp())
    z = returned[0] @ torch.tensor([-1.0, 0.0, 2.0])
    assert not torch.equal(trace.nodes["x"]["value"], X) and (trace.nodes["x"]["value"] - z).abs().max() < 0.6


@pytest.mark.parametrize("prior_scale", [0.0, 0.1])
def test_the_energy_distance_is_that_of_observations_alone(prior_scale):
    """Compare with the program written in log space; the code is no datum, so its own distance does not count."""
    found = []
    for site, handle in ((written, relax(temperature=0.5)), (by_hand, lambda program: program)):
        pyro.clear_param_store()
        pyro.set_rng_seed(0)
        loss = EnergyDistance(num_particles=3, prior_scale=prior_scale)(*map(handle, pair(site)))
        [q] = pyro.get_param_store().values()
        found.append((loss.item(), torch.autograd.grad(loss, q)[0]))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-6)
    torch.testing.assert_close(found[0][1], found[1][1])
    assert found[0][1].any()


def test_stock_enumeration_takes_relaxed_chains():
    """`EnumMessenger` asks for the depth of each site that another one can reach in pyro.markov."""

    def model(observed=True):
        z = torch.eye(K)[0]
        with pyro.plate("data", B):
            for t in pyro.markov(range(3)):
                z = pyro.sample(f"z{t}", dist.OneHotCategorical(logits=z))
                if observed:
                    pyro.sample(f"x{t}", dist.Normal(z @ torch.tensor([-1.0, 0.0, 2.0]), 0.1), obs=X)

    losses = []
    for loss in (Trace_ELBO, TraceEnum_ELBO):
        pyro.set_rng_seed(0)
        programs = (relax(program, temperature=0.5) for program in (model, lambda: model(observed=False)))
        losses.append(loss(max_plate_nesting=1, strict_enumeration_warning=False).loss(*programs))
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
