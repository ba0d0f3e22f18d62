"""Plates of different sizes at the same dimension, side by side: stock Pyro is the oracle."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pairs import Program, in_copies, linear, normal, one_hot, standard_errors, weights, with_gradients
from pyro import poutine
from pyro.infer import TraceEnum_ELBO, config_enumerate

from pyro_gvae import ESTIMATORS, estimator, exact
from pyro_gvae.estimators.claims import Bias
from pyro_gvae.evaluate.certified import certified_bounds
from pyro_gvae.evaluate.importance import importance_weighted
from pyro_gvae.exact import Pair
from pyro_gvae.programs.cells import Cells

A, B = torch.tensor([0.4, -1.2, 0.9]).double(), torch.tensor([1.5, -0.3]).double()
CALLS, PARTICLES, LIMIT = 16, 400, 8.3  # as in `test_table`
MASK = torch.tensor([True, False, True])


def plate_a(scale=1.0):
    return pyro.plate("a", 6, subsample=torch.arange(3)), poutine.mask(mask=MASK), poutine.scale(scale=scale)


def first_model(a):
    with pyro.plate("a", 6, subsample=torch.arange(3)), poutine.mask(mask=MASK):
        z = pyro.sample("z", one_hot(weights(2, 2)).to_event(1))
        on = pyro.sample("on", dist.Bernoulli(logits=linear(1, z.flatten(-2)).squeeze(-1)))
        pyro.sample("x", dist.Normal(linear(1, z.flatten(-2)).squeeze(-1) + on, 1.0), obs=a)


def first_guide(a):
    with pyro.plate("a", 6, subsample=torch.arange(3)), poutine.mask(mask=MASK):
        on = pyro.sample("on", dist.Bernoulli(logits=a))
        logits = linear(4, a.unsqueeze(-1), on.unsqueeze(-1))
        pyro.sample("z", one_hot(logits.unflatten(-1, (2, 2))).to_event(1))


def second_model(b):
    with pyro.plate("b", 2), poutine.scale(scale=torch.tensor([0.5, 1.5]).double()):
        y = pyro.sample("y", one_hot(weights(2)))
        pyro.sample("w", dist.Normal(linear(1, y).squeeze(-1), 1.0), obs=b)


def second_guide(b):
    with pyro.plate("b", 2), poutine.scale(scale=torch.tensor([0.5, 1.5]).double()):
        pyro.sample("y", one_hot(linear(2, b.unsqueeze(-1))))


def beside(first, second):
    def run(a, b):
        first(a)
        second(b)

    return run


SIDE_BY_SIDE = Program(beside(first_model, second_model), beside(first_guide, second_guide))


def nested_model(a, b):
    """Plates (2, 3) and (2, 2), with a code of the outer plate, and a global code."""
    top = pyro.sample("top", one_hot(weights(2)))
    with pyro.plate("outer", 2, dim=-2):
        middle = pyro.sample("middle", dist.Bernoulli(logits=linear(1, top).squeeze(-1)))
        with pyro.plate("a", 3, dim=-1):
            z = pyro.sample("z", dist.Bernoulli(logits=middle))
            pyro.sample("x", dist.Normal(z + top[..., 0], 1.0), obs=torch.stack([a, -a]))
        with pyro.plate("b", 2, dim=-1):
            y = pyro.sample("y", dist.Bernoulli(logits=weights(2)))
            pyro.sample("w", dist.Normal(y - middle, 1.0), obs=torch.stack([b, 2 * b]))


def nested_guide(a, b):
    top = pyro.sample("top", one_hot(weights(2)))
    with pyro.plate("outer", 2, dim=-2):
        middle = pyro.sample("middle", dist.Bernoulli(logits=weights(2)[:, None] + top[..., 0]))
        with pyro.plate("b", 2, dim=-1):
            pyro.sample("y", dist.Bernoulli(logits=linear(1, middle.unsqueeze(-1)).squeeze(-1) + b))
        with pyro.plate("a", 3, dim=-1):
            pyro.sample("z", dist.Bernoulli(logits=middle + a))


PROGRAMS = {"side by side": SIDE_BY_SIDE, "in one outer plate": Program(nested_model, nested_guide, 2)}
EACH_PROGRAM = pytest.mark.parametrize("name", PROGRAMS)


def stock(program):
    elbo = TraceEnum_ELBO(max_plate_nesting=program.nesting)
    return with_gradients(lambda: elbo.loss_and_grads(program.model, config_enumerate(program.guide), A, B))


@EACH_PROGRAM
def test_sums_are_those_of_stock_pyro(name):
    program = PROGRAMS[name]
    model, guide, elbo = estimator("exact").bind(Pair(program.model, program.guide))
    found = with_gradients(lambda: elbo.loss_and_grads(model, guide, A, B))
    torch.testing.assert_close(found, stock(program), rtol=1e-9, atol=1e-9)
    total = exact.elbo(Pair(program.model, program.guide), A, B).sum()
    torch.testing.assert_close(-total, found["loss"], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ["exact-evidence", "exact-wake", "exact-wake inclusive"])
def test_the_evidence_is_the_sum_of_both_plates(name):
    options = {"encoder": "inclusive"} if name.endswith("inclusive") else {}
    pairs = Pair(*SIDE_BY_SIDE[:2]), Pair(first_model, first_guide), Pair(second_model, second_guide)
    found, *parts = [estimator(name.split()[0], **options).bind(pair) for pair in pairs]
    both = with_gradients(lambda: found[2].loss_and_grads(*found[:2], A, B))
    with pyro.get_param_store().scope():
        first = with_gradients(lambda: parts[0][2].loss_and_grads(*parts[0][:2], A))
        second = with_gradients(lambda: parts[1][2].loss_and_grads(*parts[1][:2], B))
    torch.testing.assert_close(both["loss"], first["loss"] + second["loss"], rtol=1e-9, atol=1e-9)
