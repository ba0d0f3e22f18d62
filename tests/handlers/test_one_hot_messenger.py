"""Handlers for named sites: other sites are left to other handlers, and names without a site are refused."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pairs import DATA, PROGRAMS
from pyro.infer import TraceEnum_ELBO

from pyro_gvae import ExactELBO, estimator
from pyro_gvae.exact import Pair
from pyro_gvae.handlers import discretize, enumerated, relax, straight_through
from pyro_gvae.handlers.chosen import AllBut


def program(observed=True):
    y = pyro.sample("y", dist.OneHotCategorical(logits=torch.zeros(3)))
    z = pyro.sample("z", dist.OneHotCategorical(logits=torch.zeros(3)))
    loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
    if observed:
        pyro.sample("x", dist.Normal(loc, 1.0), obs=torch.tensor(0.0))
    return y, z


def is_soft(value):
    return bool((value.max() < 1).item())


def test_only_named_sites_are_handled():
    y, z = relax(program, temperature=0.5, sites=["z"])()
    assert not is_soft(y) and is_soft(z)
    y, z = relax(program, temperature=0.5, sites=AllBut(frozenset({"z"})))()
    assert is_soft(y) and not is_soft(z)


def test_the_outermost_handler_that_acts_on_a_site_decides():
    inner = relax(program, temperature=0.5)
    y, z = discretize(inner, sites=["y"])()
    assert not is_soft(y) and is_soft(z)
    assert not any(map(is_soft, discretize(relax(program, temperature=0.5, sites=["z"]))()))
    with pyro.poutine.trace() as trace:
        straight_through(inner, temperature=0.5, sites=["y"])()
    assert type(trace.trace.nodes["y"]["fn"]).__name__ == "StraightThroughOneHotCategorical"
    assert trace.trace.nodes["z_log"]["fn"].has_rsample


def test_stock_enumeration_of_some_sites_is_the_elbo_with_the_others_drawn():
    pyro.set_rng_seed(0)
    model, guide = (enumerated(discretize(program), sites=["top"]) for program in PROGRAMS["two layers, bottom-up"][:2])
    copies = DATA.repeat(100, 1)
    losses = torch.tensor([TraceEnum_ELBO(max_plate_nesting=1).loss(model, guide, copies) for _ in range(20)]) / 100
    expected = ExactELBO().loss(*PROGRAMS["two layers, bottom-up"][:2], DATA)
    error = losses.std() / 20**0.5
    assert 0 < error < 0.1 and abs(losses.mean() - expected) < 5 * error


def test_names_without_a_discrete_latent_are_refused():
    with pytest.raises(ValueError, match=r"Expected the program to have a site 'w', but found 'y', 'z', 'loc', 'x'"):
        relax(program, temperature=0.5, sites=["w"])()
    relax(program, temperature=0.5, sites=["w"])(observed=False)  # a guide may lack an observed site
    for handled in (
        discretize(program, sites=["loc"]),
        relax(program, temperature=0.5, sites=["loc"]),
        straight_through(program, temperature=0.5, sites=["loc"]),
        enumerated(program, sites=["loc"]),
    ):
        with pytest.raises(ValueError, match=r"at 'loc', but found a Normal"):
            handled()
    with pytest.raises(ValueError, match=r"found a string, 'z'\. Try sites=\['z'\]"):
        relax(program, sites="z")


def test_sites_without_a_temperature_take_the_one_for_them():
    def one(infer):
        return pyro.sample("z", dist.OneHotCategorical(logits=torch.zeros(3)), infer=infer)

    for infer, expected in (({}, 0.25), ({"temperature": 0.5}, 0.5)):
        with pyro.poutine.trace() as trace:
            relax(one, otherwise=0.25)(infer)
        assert float(trace.trace.nodes["z_log"]["fn"].temperature) == expected


@pytest.mark.parametrize("is_auxiliary", [False, True])
@pytest.mark.parametrize(
    "name", ["gumbel-softmax[kl=relaxed]", "straight-through[kl=sampled]", "reinforce", "reinforce-loo", "exact"]
)
def test_discrete_latents_that_only_the_guide_has_are_refused(name, is_auxiliary):
    """Their entropy would be added to the ELBO: with uniform ones, log K above the bound."""
    model, guide = PROGRAMS["two layers, bottom-up"][:2]

    def with_another(x):
        pyro.sample("a", dist.OneHotCategorical(torch.ones(3)), infer={"is_auxiliary": is_auxiliary})
        return guide(x)

    handled, own, elbo = estimator(name).bind(Pair(model, with_another))
    with pytest.raises(ValueError, match="but found 'a' in the guide alone"):
        elbo.loss(handled, own, DATA)
