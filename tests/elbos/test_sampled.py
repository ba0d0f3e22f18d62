"""Findings about a program that sampled losses keep: for arguments of the same shapes only."""

from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_gvae.elbos.score import ReinforceLOO
from pyro_gvae.estimators import estimator
from pyro_gvae.exact import Pair
from pyro_gvae.jit.traced_elbo import TracedELBO

LOCS = torch.tensor([-2.0, 0.0, 1.0], dtype=torch.float64)
ONCE = torch.tensor([-2.1, 0.3, 1.2, 0.5], dtype=torch.float64)
REPEATED = torch.stack([ONCE, ONCE + 0.1, ONCE - 0.2])
#: As many particles as repetitions, so that tensors of a wrong nesting still have matching shapes.
THREE = {"num_particles": 3}
ESTIMATORS = {"reinforce-loo": THREE, "vimco": THREE, "local-expectation": {}, "rebar": {}}


def model(x, missing=None):
    """Observe one measurement x (B,) of each datum, or repeated ones (R, B)."""
    with pyro.plate("data", x.shape[-1], dim=-1):
        z = pyro.sample("z", dist.OneHotCategorical(logits=torch.zeros(3, dtype=torch.float64)))
        if x.dim() == 1:
            pyro.sample("x", dist.Normal(z @ LOCS, 1.0), obs=x)
        else:
            with pyro.plate("repeats", len(x), dim=-2):
                pyro.sample("x", dist.Normal(z @ LOCS, 1.0), obs=x)


def guide(x, missing=None):
    mean = x if x.dim() == 1 else x.mean(0)
    with pyro.plate("data", x.shape[-1], dim=-1):
        pyro.sample("z", dist.OneHotCategorical(logits=-0.5 * (mean[:, None] - LOCS) ** 2))


@pytest.mark.parametrize("name", ESTIMATORS)
def test_a_loss_that_has_seen_another_nesting_is_as_a_new_one(name):
    def loss(*batches):
        bound, elbo_guide, elbo = estimator(name, **ESTIMATORS[name]).bind(Pair(model, guide))
        for x in batches:
            torch.manual_seed(3)
            found = elbo.loss(bound, elbo_guide, x)
        return found

    for x, other in ((REPEATED, ONCE), (ONCE, REPEATED)):
        assert loss(other, x) == loss(x)


def test_one_latent_that_is_summed_gives_the_exact_elbo_of_both_nestings():
    losses = [estimator(name).bind(Pair(model, guide)) for name in ("local-expectation", "exact")]
    for x in (ONCE, REPEATED, ONCE):
        sampled, exact = (elbo.loss(elbo_model, elbo_guide, x) for elbo_model, elbo_guide, elbo in losses)
        assert sampled == pytest.approx(exact, rel=1e-12)


def test_recordings_of_both_shapes_are_kept():
    bound, elbo_guide, elbo = estimator("local-expectation").bind(Pair(model, guide))
    traced = TracedELBO(elbo)
    for x in (ONCE, REPEATED, ONCE, REPEATED):
        traced.loss(bound, elbo_guide, x)
    assert traced.num_recordings == 2


@pytest.mark.parametrize(
    ("name", "shape", "found"),
    [("y", (2, 3), "found 'y' in the guide alone"), ("z", (3, 3), r"3 one-hots of 3 with \(4,\) in the guide at 'z'")],
)
def test_another_site_in_the_guide_is_refused(name, shape, found):
    def program(x, name="z", shape=(2, 3)):
        with pyro.plate("data", len(x)):
            pyro.sample(name, dist.OneHotCategorical(logits=torch.zeros(len(x), *shape)).to_event(1))

    def model(x):
        program(x)
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(0.0, 1.0), obs=x)

    with pytest.raises(ValueError, match=found):
        ReinforceLOO(num_particles=2).loss(model, partial(program, name=name, shape=shape), torch.ones(4))
