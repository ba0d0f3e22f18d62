"""Plates of different sizes at the same dimension, side by side: stock Pyro is the oracle."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pairs import Program, in_copies, linear, one_hot, standard_errors, weights, with_gradients
from pyro import poutine
from pyro.infer import TraceEnum_ELBO, config_enumerate

from pyro_gvae import ESTIMATORS, estimator, exact
from pyro_gvae.evaluate.certified import certified_bounds
from pyro_gvae.evaluate.guides import read_guide
from pyro_gvae.evaluate.importance import importance_weighted
from pyro_gvae.exact import Pair
from pyro_gvae.programs.cells import Cells

A, B = torch.tensor([0.4, -1.2, 0.9]).double(), torch.tensor([1.5, -0.3]).double()
CALLS, COPIES, LIMIT = 16, 200, 8.3  # as in `test_table`
MASK = torch.tensor([True, False, True])


def first_model(a):
    with pyro.plate("a", 6, subsample=torch.arange(3)), poutine.mask(mask=MASK):
        z = pyro.sample("z", one_hot(weights(2)))
        on = pyro.sample("on", dist.Bernoulli(logits=linear(1, z).squeeze(-1)))
        pyro.sample("x", dist.Normal(linear(1, z).squeeze(-1) + on, 1.0), obs=a)


def first_guide(a):
    with pyro.plate("a", 6, subsample=torch.arange(3)), poutine.mask(mask=MASK):
        on = pyro.sample("on", dist.Bernoulli(logits=a))
        pyro.sample("z", one_hot(linear(2, a.unsqueeze(-1), on.unsqueeze(-1))))


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


def apart(name, **options):
    """Return loss and gradients of both programs, and the sum of those of the two plates, from the same draws."""

    def of(pair, *data):
        model, guide, elbo = estimator(name, **options).bind(pair)
        return with_gradients(lambda: elbo.loss_and_grads(model, guide, *data))

    both = of(Pair(*SIDE_BY_SIDE[:2]), A, B)
    first, second = of(Pair(first_model, first_guide), A), of(Pair(second_model, second_guide), B)
    parts = {key: first.get(key, 0.0) + second.get(key, 0.0) for key in both}
    return both, parts


@pytest.mark.parametrize("options", [{}, {"encoder": "inclusive"}], ids=["exclusive", "inclusive"])
def test_the_evidence_is_the_sum_of_both_plates(options):
    for name in ["exact-wake"] if options else ["exact-wake", "exact-evidence"]:
        both, parts = apart(name, **options)
        torch.testing.assert_close(both, parts, rtol=1e-9, atol=1e-9)


IMPORTANCE = ["vimco", "ovis", "tvo", "reweighted-wake-sleep", "daps"]
SAMPLED = [
    name
    for name in ESTIMATORS
    if name not in (*IMPORTANCE, "exact", "exact-evidence", "exact-wake") and estimator(name).is_unbiased
]


def repeated(name, program, *data, copies=COPIES):
    """Return losses and gradients of several calls, each for many independent copies of the programs."""
    pair = Pair(*(in_copies(part, copies, program.nesting) for part in program[:2]))
    model, guide, elbo = estimator(name).bind(pair)
    pyro.set_rng_seed(0)
    rows = [with_gradients(lambda: elbo.loss_and_grads(model, guide, *data)) for _ in range(CALLS)]
    return {key: torch.stack([row[key] for row in rows]) / copies for key in rows[0]}


@EACH_PROGRAM
@pytest.mark.parametrize("method", SAMPLED)
def test_gradients_are_unbiased(method, name):
    program = PROGRAMS[name]
    expected = stock(program)
    assert standard_errors(repeated(method, program, A, B), expected) < LIMIT


def test_the_comparison_finds_a_datum_that_is_counted_twice():
    """The negative control: the first datum of plate b has another weight."""
    expected = stock(SIDE_BY_SIDE._replace(guide=beside(first_guide, poutine.scale(second_guide, scale=1.5))))
    assert standard_errors(repeated("reinforce-loo", SIDE_BY_SIDE, A, B), expected) > LIMIT


def each_apart(function):
    """Return what a function says of the pair of both plates, and of each of them."""
    pyro.clear_param_store()
    both = function(Pair(*SIDE_BY_SIDE[:2]), (A, B))
    return both, function(Pair(first_model, first_guide), (A,)), function(Pair(second_model, second_guide), (B,))


def test_evaluations_are_those_of_each_plate():
    both, first, second = each_apart(lambda pair, data: read_guide(pair, data))
    for name, own in {**first.log_probs, **second.log_probs}.items():
        torch.testing.assert_close(both.log_probs[name], own)
    torch.manual_seed(0)
    sampled, *parts = each_apart(lambda pair, data: read_guide(pair, data, is_summed=False, num_particles=4000))
    for name, own in {**parts[0].log_probs, **parts[1].log_probs}.items():
        torch.testing.assert_close(sampled.log_probs[name].exp(), own.exp(), rtol=0, atol=0.05)
    both, *parts = each_apart(lambda pair, data: certified_bounds(pair, data, num_codes=8).lower)
    torch.testing.assert_close(both, torch.cat(parts))
    both, *parts = each_apart(lambda pair, data: importance_weighted(pair, data, num_particles=4000).bound)
    torch.testing.assert_close(both, torch.cat(parts), rtol=0, atol=0.1)
    both, *parts = each_apart(lambda pair, data: exact.log_evidence(pair, *data).sum())
    torch.testing.assert_close(both, sum(parts))
    both, *parts = each_apart(lambda pair, data: exact.mean_field(pair, *data).elbo.sum())
    torch.testing.assert_close(both, sum(parts))
    both, *parts = each_apart(lambda pair, data: exact.posterior(pair, *data).marginals)
    torch.testing.assert_close(both["y"], parts[1])


def test_where_cells_lie():
    cells = Cells.of([(2, 3), (1, 5), (), (2, 1), (3,)])
    assert cells.shape == (2, 8) and cells.are_side_by_side and not Cells.of([(2, 3), (1,), (3,)]).are_side_by_side
    values = torch.arange(10.0).reshape(2, 5)
    placed = cells.placed(values, -1.0)
    assert (placed[:, :3] == -1).all()
    torch.testing.assert_close(cells.taken(placed, (2, 5)), values)
