"""A tuple and a dictionary of all arguments are the same batch, for every function that takes one."""

import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_gvae import estimator, exact
from pyro_gvae.diagnostics.advise import advise_on
from pyro_gvae.diagnostics.gradient_report import gradient_report
from pyro_gvae.evaluate.certified import certified_bounds
from pyro_gvae.evaluate.code_statistics import guide_log_probs
from pyro_gvae.evaluate.collapsed import collapsed_importance_weighted
from pyro_gvae.evaluate.gaps import gaps
from pyro_gvae.evaluate.generate import encode
from pyro_gvae.evaluate.guides import read_guide
from pyro_gvae.evaluate.importance import importance_weighted, log_importance_weights
from pyro_gvae.evaluate.metrics import code_usage, discrete_scores, own_objective
from pyro_gvae.exact import Pair
from pyro_gvae.programs.batches import num_data
from pyro_gvae.programs.rows import in_parts, row_arguments

X, Y = torch.tensor([-1.0, 0.5, 2.0]), torch.tensor([0.3, -0.2, 1.0])
SCALE = torch.tensor(1.5)


def model(scale, x, *, y):
    weight = pyro.param("weight", torch.tensor(0.7))
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.OneHotCategorical(logits=weight * y.unsqueeze(-1) * torch.arange(3.0)))
        pyro.sample("x", dist.Normal(z @ torch.tensor([-1.0, 0.0, 2.0]), scale), obs=x)


def guide(scale, x, *, y):
    slope = pyro.param("slope", torch.tensor(0.4))
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.RelaxedOneHotCategorical(scale, logits=slope * (x + y).unsqueeze(-1) * torch.arange(3.0)))


PAIR = Pair(model, guide)
BATCH = {"scale": SCALE, "x": X, "y": Y}


def positional(scale, x, y):
    return model(scale, x, y=y)


def positional_guide(scale, x, y):
    return guide(scale, x, y=y)


POSITIONAL = Pair(positional, positional_guide)


def numbers(found):
    """Flatten what a function returns to a list of tensors."""
    if isinstance(found, torch.Tensor):
        return [found]
    if isinstance(found, dict):
        return [number for value in found.values() for number in numbers(value)]
    if isinstance(found, tuple | list):
        return [number for value in found for number in numbers(value)]
    return [torch.as_tensor(found)] if isinstance(found, float | int) else []


FUNCTIONS = {
    "exact.elbo": exact.elbo,
    "exact.log_evidence": exact.log_evidence,
    "exact.posterior": lambda pair, x: exact.posterior(pair, x).marginals,
    "exact.mean_field": lambda pair, x: exact.mean_field(pair, x).elbo,
    "discrete_scores": discrete_scores,
    "own_objective": lambda pair, x: own_objective(pair, estimator("reinforce-loo"), x),
    "code_usage": code_usage,
    "importance_weighted": lambda pair, x: importance_weighted(pair, x, 20),
    "log_importance_weights": lambda pair, x: log_importance_weights(pair, x, 20),
    "in chunks": lambda pair, x: importance_weighted(pair, x, 20, max_memory=4000),
    "collapsed_importance_weighted": lambda pair, x: collapsed_importance_weighted(pair, x, 20),
    "certified_bounds": lambda pair, x: certified_bounds(pair, x, 2),
    "gaps": lambda pair, x: gaps(pair, x, num_particles=3, temperature=1.0),
    "encode": encode,
    "read_guide": lambda pair, x: read_guide(pair, x).log_probs,
    "guide_log_probs": guide_log_probs,
    "gradient_report": lambda pair, x: gradient_report(
        pair, x, ["reinforce-loo"], num_samples=64, num_parameter_samples=32
    )["relative_std"].tolist(),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_dictionary_gives_the_numbers_of_a_tuple(name):
    found = []
    for pair, batch in ((PAIR, BATCH), (POSITIONAL, tuple(BATCH.values()))):
        pyro.set_rng_seed(0)
        found.append(numbers(FUNCTIONS[name](pair, batch)))
    assert found[0]
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, equal_nan=True)


def test_advice_takes_a_dictionary():
    table, _ = advise_on(PAIR, BATCH, estimators=["exact", "reinforce-loo"], seconds=1.0)
    assert table["refused"].isna().all()


def test_the_number_of_data_is_that_of_the_first_tensor_with_rows():
    assert num_data(BATCH) == num_data((SCALE, X)) == 3
    assert num_data(SCALE) == num_data(()) == 1


def test_parts_cut_all_tensors_with_a_row_for_each_datum():
    parts = list(in_parts(PAIR, BATCH, 2))
    assert [part["x"].tolist() for part in parts] == [[-1.0, 0.5], [2.0]]
    assert [len(part["y"]) for part in parts] == [2, 1]
    assert all(part["scale"] is SCALE for part in parts)


@pytest.mark.parametrize("size", [1, 2, 4])
def test_an_argument_that_is_as_long_as_the_data_by_chance_is_not_cut(size):
    """As many standard deviations as data; a row of them alone would broadcast."""
    torch.manual_seed(0)
    weight, x, y, sigma = torch.randn(3, size), torch.randn(size, size), torch.randn(size), 0.3 + torch.rand(size)

    def wide_model(x, y, sigma):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.OneHotCategorical(logits=y.unsqueeze(-1) * torch.arange(3.0)))
            pyro.sample("x", dist.Normal(z @ weight, sigma).to_event(1), obs=x)

    def wide_guide(x, y, sigma):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.OneHotCategorical(torch.ones(3)))

    wide, batch = Pair(wide_model, wide_guide), (x, y, sigma)
    assert row_arguments(wide, batch) == ({0, 1} if size > 1 else {0, 1, 2})
    lower = certified_bounds(wide, batch, 3, max_memory=1e3).lower
    torch.testing.assert_close(lower, exact.log_evidence(wide, *batch))


def test_programs_may_take_no_arguments():
    """Their data are those of the functions, and there is one number for the whole."""
    closed = Pair(lambda: positional(SCALE, X, Y), lambda: positional_guide(SCALE, X, Y))
    with torch.no_grad():
        torch.testing.assert_close(certified_bounds(closed, (), 3).lower, exact.log_evidence(closed))
    assert importance_weighted(closed, (), 20).bound.shape == (3,)
    report = gradient_report(closed, (), ["reinforce-loo"], num_samples=64, wrt=["logits"])
    assert report["relative_std"].notna().all()
