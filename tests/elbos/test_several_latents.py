"""Local expectation, DisARM, REBAR and RELAX with several latents: their mean gradient is the exact one."""

import functools
import warnings

import pyro
import pyro.distributions as dist
import pytest
import torch
from pairs import (
    DATA,
    PROGRAMS,
    D,
    L,
    Program,
    bottom_up_guide,
    concatenated,
    linear,
    m2_guide,
    m2_model,
    observe,
    one_hot,
    two_layers_model,
    validated_once,
    weights,
    with_gradients,
)

from pyro_gvae import ExactELBO
from pyro_gvae.elbos import control_variates
from pyro_gvae.estimators import estimator
from pyro_gvae.exact import Pair
from pyro_gvae.jit.traced_elbo import TracedELBO
from pyro_gvae.programs import samples

# `tests/estimators/test_table.py` compares means with the exact ones on many programs. Here are a negative control and
# what those programs lack.

#: Numbers of particles for about equal standard errors. RELAX is REBAR plus a network, and is tested less.
LOSSES = {"local-expectation": 10, "disarm-iw": 60, "rebar": 60}
ALL_LOSSES = LOSSES | {"relax": 60}


def strong(out, *inputs):
    """Multiply each input with a matrix of large entries of both signs."""
    return sum(value @ (3 * torch.sin(50 * weights(value.shape[-1], out))) for value in inputs)


PAIRS = PROGRAMS | {"strong layers": Program(two_layers_model, functools.partial(bottom_up_guide, dense=strong))}
NUM_CALLS = 25


def estimates(name, pair, **options):
    """Return loss and gradients of several calls, (calls, ...) each, after one call from which a loss may learn."""
    model, guide, elbo = estimator(name, **options).bind(Pair(*pair[:2]))
    pyro.set_rng_seed(0)
    rows = validated_once(lambda: with_gradients(lambda: elbo.loss_and_grads(model, guide, DATA)), 1 + NUM_CALLS)[1:]
    return {key: torch.stack([row[key] for row in rows]) for key in rows[0]}


def distance(found, expected):
    """Return the largest deviation of a mean in standard errors; 0 where both are rounding errors."""
    largest = 0.0
    for key, values in found.items():
        error = values.std(0) / NUM_CALLS**0.5
        largest = max(largest, ((values.mean(0) - expected[key]).abs() / (error + 1e-9)).max().item())
    return largest


@functools.cache
def exact(name):
    return with_gradients(lambda: ExactELBO().loss_and_grads(*PAIRS[name][:2], DATA))


@pytest.mark.parametrize("name", ALL_LOSSES)
def test_the_mean_is_the_exact_loss_and_gradient(name):
    program = "strong layers"
    found = estimates(name, PAIRS[program], num_particles=ALL_LOSSES[name])
    assert distance(found, exact(program)) < 5


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("program", ["strong layers", "a normal given a code"])
def test_the_check_finds_later_latents_that_are_not_drawn_again(name, program, monkeypatch):
    """The negative control."""
    monkeypatch.setattr(samples.Sample, "later", lambda self, name: [])
    found = estimates(name, PAIRS[program], num_particles=4 * LOSSES[name])
    assert distance(found, exact(program)) > 8


def test_disarm_names_the_latent_of_more_categories():
    with pytest.raises(ValueError, match=r"K=2 categories, but found K=3 at 'k': .* Try disarm-iw"):
        estimates("disarm", PROGRAMS["bits and an integer"])


# Continuous latents of every family that depend on a code.


def families_model(x, *, count):
    with pyro.plate("data", len(x)):
        y = pyro.sample("y", one_hot(weights(3)))
        a = pyro.sample("a", dist.Normal(torch.zeros(L).double(), 1.0).to_event(1))
        b = pyro.sample("b", dist.LogNormal(torch.zeros(()).double(), 1.0))
        c = pyro.sample("c", dist.MultivariateNormal(torch.zeros(L).double(), torch.eye(L).double()))
        d = pyro.sample("d", dist.Gamma(torch.ones(()).double(), 1.0))
        n = pyro.sample("n", dist.Poisson(torch.ones(()).double())) if count else torch.zeros(()).double()
        observe(y, a, 0.3 * b.unsqueeze(-1), c, 0.3 * (d + n).unsqueeze(-1), obs=x)


def families_guide(x, *, count):
    with pyro.plate("data", len(x)):
        y = pyro.sample("y", one_hot(linear(3, x)))
        pyro.sample("a", dist.Normal(linear(L, x, y), 0.5).to_event(1))
        pyro.sample("b", dist.LogNormal(0.3 * linear(1, y).squeeze(-1), 0.5))
        pyro.sample(
            "c", dist.MultivariateNormal(linear(L, y), scale_tril=torch.tensor([[0.5, 0], [0.2, 0.4]]).double())
        )
        pyro.sample("d", dist.Gamma(2 + y[..., 0], 1.0))
        if count:
            pyro.sample("n", dist.Poisson(1 + y[..., 1]))


def families(*, count):
    return [functools.partial(program, count=count) for program in (families_model, families_guide)]


def two_sample(found, other):
    """Return the largest difference of two means in standard errors."""
    largest = 0.0
    for key, values in found.items():
        error = ((values.var(0) + other[key].var(0)) / NUM_CALLS).sqrt()
        largest = max(largest, ((values.mean(0) - other[key].mean(0)).abs() / (error + 1e-9)).max().item())
    return largest


@functools.cache
def reference(count):
    return estimates("reinforce-loo", families(count=count), num_particles=1500)


@pytest.mark.parametrize("count", [False, True])
@pytest.mark.parametrize("name", LOSSES)
def test_continuous_latents_below_a_code(name, count):
    """Test location-scale families, other families with a pathwise derivative, and one without."""
    found = estimates(name, families(count=count), num_particles=LOSSES[name])
    assert two_sample(found, reference(count)) < 5


# Variances.


def spread_model(x):
    with pyro.plate("data", len(x)):
        pyro.sample("top", one_hot(torch.zeros(2).double()))
        pyro.sample("below", one_hot(torch.zeros(8, 4).double()).to_event(1))
        pyro.sample("x", dist.Normal(torch.zeros(D).double(), 1.0).to_event(1), obs=x)


def spread_guide(x):
    """The lower codes are uniform for one value of the upper code, and not for the other."""
    with pyro.plate("data", len(x)):
        top = pyro.sample("top", one_hot(linear(2, x)))
        sharpness = top[..., :1, None] * torch.arange(4.0).double()
        pyro.sample("below", one_hot(sharpness.expand(*sharpness.shape[:-2], 8, 4)).to_event(1))


def test_the_control_of_rebar_has_the_entropies_of_later_latents(monkeypatch):
    """Here, costs differ by these entropies alone."""
    pair, later_terms = (spread_model, spread_guide), control_variates.later_terms
    found = estimates("rebar", pair)["w4x2"].var(0).sum()

    def of_codes(drawn, name):
        is_soft = any(((codes > 0) & (codes < 1)).any() for codes in drawn.codes.values())
        return torch.zeros(1, 1) if is_soft else later_terms(drawn, name)

    monkeypatch.setattr(control_variates, "later_terms", of_codes)
    assert estimates("rebar", pair)["w4x2"].var(0).sum() > 5 * found


# Exact properties.


def layers(dense):
    return Pair(*(functools.partial(program, dense=dense) for program in (two_layers_model, bottom_up_guide)))


def m2(dense):
    return Pair(m2_model, functools.partial(m2_guide, dense=dense))


@pytest.mark.parametrize(
    ("name", "options", "pair"),
    [
        *((name, {}, layers) for name in [*ALL_LOSSES, "unordered-set", "reinforce-wor"]),
        *((name, {"num_particles": 3}, m2) for name in ("disarm-iw", "rebar")),
    ],
)
def test_programs_that_do_not_broadcast_give_the_same_numbers_row_by_row(name, options, pair):
    found = []
    for dense in (linear, concatenated):
        model, guide, elbo = estimator(name, **options).bind(pair(dense))
        pyro.set_rng_seed(0)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            found.append(with_gradients(lambda: elbo.loss_and_grads(model, guide, DATA)))  # noqa: B023
        assert len(caught) == (dense is concatenated)
    torch.testing.assert_close(found[1], found[0], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ["local-expectation", "double-cv"])
def test_rows_of_programs_that_do_not_broadcast_are_samples(name):
    """They are drawn in another order than those of a program that broadcasts, so their numbers differ."""
    with pytest.warns(UserWarning, match="one joint code after another"):
        found = estimates(name, m2(concatenated), num_particles=4)
    assert distance(found, exact("a normal given a code")) < 5


@pytest.mark.parametrize("name", ["rebar", "relax"])
def test_integers_are_not_relaxed(name):
    with pytest.raises(ValueError, match=r"to relax, but found integers at 'k': .* Try OneHotCategorical"):
        estimates(name, PROGRAMS["bits and an integer"])


@pytest.mark.parametrize("name", ["rebar", "relax"])
def test_control_variates_of_several_latents_learn(name):
    """The variance of the gradients falls below that of the score function."""
    model, guide, elbo = estimator(name, num_particles=20).bind(Pair(*PAIRS["strong layers"][:2]))
    own = elbo.own.parameters()

    def gradients():
        for parameter in elbo.own.parameters():
            parameter.grad = None
        found = with_gradients(lambda: elbo.loss_and_grads(model, guide, DATA))
        return torch.cat([value.flatten() for value in found.values()])

    def variance():
        pyro.set_rng_seed(1)
        return torch.stack([gradients() for _ in range(15)]).var(0).sum()

    pyro.set_rng_seed(0)
    gradients()  # sets the width of the network
    optimizer = torch.optim.Adam(own, lr=0.1)
    for _ in range(15):
        gradients()
        optimizer.step()
    learned = variance()
    with torch.no_grad():
        elbo.own.eta.zero_()
    assert learned < 0.5 * variance()


@pytest.mark.parametrize("name", LOSSES)
def test_a_recording_gives_the_same(name):
    found = []
    model, guide, plain = estimator(name, num_particles=2).bind(Pair(m2_model, m2_guide))
    plain.loss(model, guide, DATA)  # draws the weights of the network
    for elbo in (plain, TracedELBO(plain)):
        pyro.set_rng_seed(0)
        for _ in range(2):
            found.append(with_gradients(lambda: elbo.loss_and_grads(model, guide, DATA)))  # noqa: B023
            if plain.own is not None:
                found[-1] |= {key: parameter.grad for key, parameter in plain.own.named_parameters()}
                plain.own.zero_grad()
    torch.testing.assert_close(found[2:], found[:2], rtol=1e-9, atol=1e-9)
