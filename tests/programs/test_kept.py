"""Findings about a program are kept for arguments of the same kind, and for no others."""

import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_gvae.estimators import estimator
from pyro_gvae.estimators.objectives import with_free_bits, with_usage_entropy
from pyro_gvae.programs.kept import Kept


def test_what_was_found_out_is_kept_for_the_same_kind_of_arguments():
    kept, made = Kept(), []

    def find(*args, program=torch.neg, **kwargs):
        return kept.find(program, args, kwargs, lambda: made.append(1) or len(made))

    x = torch.ones(2, 3)
    assert find(x) == find(torch.zeros(2, 3)) == 1
    others = [((x.T,), {}), ((x.double(),), {}), ((x, 1), {}), ((x, True), {}), ((), {"x": x}), ((x,), {"y": None})]
    assert [find(*args, **kwargs) for args, kwargs in others] == [2, 3, 4, 5, 6, 7]
    assert [find(*args, **kwargs) for args, kwargs in others] == [2, 3, 4, 5, 6, 7]
    assert find(x, program=torch.abs) == 8
    assert find([x]) == 9 and find([x]) == 10  # the contents of a list are unknown


#: Losses that are exact for a program of four joint codes.
EXACT = {
    "exact": estimator("exact"),
    "top-c": estimator("top-c", num_codes=4),
    "unordered-set": estimator("unordered-set", num_particles=4),
    "reinforce-wor": estimator("reinforce-wor", num_particles=4),
    "free bits": with_free_bits(estimator("exact"), 0.7),
    "usage entropy": with_usage_entropy(estimator("exact"), 0.7),
}


@pytest.mark.parametrize("name", EXACT)
def test_a_guide_whose_latents_begin_to_depend_on_each_other(name):
    """A flag is no argument of the programs, so that what was found without it is still kept."""
    flag = {"depends": False}
    x = torch.tensor([0.3, -0.5, 1.2]).double()

    def model(x):
        with pyro.plate("data", len(x)):
            a = pyro.sample("a", dist.Bernoulli(torch.tensor(0.4).double()))
            b = pyro.sample("b", dist.Bernoulli(torch.tensor(0.7).double()))
            pyro.sample("x", dist.Normal(a + b, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            a = pyro.sample("a", dist.Bernoulli(logits=x))
            pyro.sample("b", dist.Bernoulli(logits=x - 3 + 6 * a if flag["depends"] else x))

    elbo = EXACT[name].elbo()
    before = elbo.loss(model, guide, x)
    flag["depends"] = True
    after = elbo.loss(model, guide, x)
    assert abs(after - before) > 0.01
    assert after == pytest.approx(EXACT[name].elbo().loss(model, guide, x), abs=1e-9)
    flag["depends"] = False
    assert elbo.loss(model, guide, x) == pytest.approx(before, abs=1e-9)
