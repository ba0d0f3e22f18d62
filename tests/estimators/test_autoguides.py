"""Pyro's autoguides for the continuous latents of a program, next to a hand-written guide for the discrete ones."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pairs import DATA, linear, one_hot, standard_errors, weights
from pyro import poutine
from pyro.infer import TraceEnum_ELBO, config_enumerate
from pyro.infer.autoguide import AutoDelta, AutoDiagonalNormal, AutoGuideList, AutoNormal

from pyro_gvae.estimators import estimator

D = DATA.shape[-1]


def model(x):
    """A positive global latent, and a code and a normal for each datum."""
    width = pyro.sample("width", dist.Gamma(torch.tensor(3.0).double(), 2.0))
    with pyro.plate("data", len(x)):
        y = pyro.sample("y", one_hot(weights(3)))
        z = pyro.sample("z", dist.Normal(linear(2, y), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(linear(D, y, z), width.unsqueeze(-1)).to_event(1), obs=x)


def guide_of(family, parts, wrap=lambda program: program):
    """Return an autoguide for each part of the continuous latents, and a written guide for the code, in one plate."""
    guide = AutoGuideList(model)

    def written(x):
        with guide.plates["data"]:
            pyro.sample("y", one_hot(linear(3, x)))

    for part in parts:
        guide.append(family(poutine.block(model, expose=part)))
    guide.append(wrap(written))
    return guide


PARTS = {"one for all": [["width", "z"]], "one for each": [["width"], ["z"]]}


def losses_of(elbo, family, parts, wrap=lambda program: program, calls=1):
    """Return rows of the loss and all gradients, with the same noise for each loss."""
    pyro.set_rng_seed(0)
    pyro.clear_param_store()
    guide = guide_of(family, PARTS[parts], wrap=wrap)
    guide(DATA)  # builds the autoguides, which draw initial values
    guide.double()
    pyro.set_rng_seed(1)
    rows = []
    for _ in range(calls):
        guide.zero_grad()
        for parameter in pyro.get_param_store().values():
            parameter.unconstrained().grad = None
        loss = elbo.loss_and_grads(model, guide, DATA)
        gradients = {name: value.unconstrained().grad.clone() for name, value in pyro.get_param_store().items()}
        rows.append({"loss": torch.tensor(loss).double()} | gradients)
    return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}


def stock(family, parts):
    return losses_of(TraceEnum_ELBO(max_plate_nesting=1), family, parts, wrap=config_enumerate)


@pytest.mark.parametrize("parts", PARTS)
@pytest.mark.parametrize("family", [AutoNormal, AutoDelta, AutoDiagonalNormal])
def test_sums_beside_an_autoguide_are_those_of_stock_pyro(family, parts):
    found = losses_of(estimator("exact").elbo(), family, parts)
    torch.testing.assert_close(found, stock(family, parts), rtol=1e-9, atol=1e-9)


def test_scores_beside_an_autoguide_have_the_mean_of_stock_pyro():
    expected = {name: rows[0] for name, rows in stock(AutoDelta, "one for all").items()}
    found = losses_of(estimator("reinforce-loo", num_particles=100).elbo(), AutoDelta, "one for all", calls=20)
    assert standard_errors(found, expected) < 7.4  # as rare as 5 of a normal variable
    assert standard_errors(found, {name: 1.1 * value for name, value in expected.items()}) > 7.4
