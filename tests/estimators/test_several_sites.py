"""Estimators whose losses are stock Pyro's, on programs with several discrete latents, bits among them."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pairs import CHAINS, DATA, PROGRAMS, linear, observe, weights, with_gradients
from pyro import poutine

from pyro_gvae import ExactELBO
from pyro_gvae.distributions.surrogates import KINDS
from pyro_gvae.estimators import ESTIMATORS, estimator
from pyro_gvae.exact import Pair


def bits_model(x):
    with pyro.plate("data", len(x)):
        a = pyro.sample("a", dist.Bernoulli(logits=weights(1)[0]))
        b = pyro.sample("b", dist.Bernoulli(logits=linear(2, a.unsqueeze(-1))).to_event(1))
        observe(a.unsqueeze(-1), b, a.unsqueeze(-1) * b, obs=x)


def bits_guide(x):
    with pyro.plate("data", len(x)):
        b = pyro.sample("b", dist.Bernoulli(logits=linear(2, x)).to_event(1))
        pyro.sample("a", dist.Bernoulli(logits=x[:, 1] * b[..., 0]))


PAIRS = {"bits": (bits_model, bits_guide)}
PAIRS |= {
    name: PROGRAMS[name][:2]
    for name in ("two layers, bottom-up", "a subsampled plate with scale and mask", "nested plates")
}
PAIRS["a chain"] = CHAINS["a chain"][:2]
SCORED = {"reinforce": {}, "reinforce-baseline": {}}
OPTIONS = {kind: {"kl": "sampled"} for kind in KINDS} | SCORED
LOSSES = ["st-gumbel-softmax", *SCORED]
OPTIONS["gumbel-rao"] |= {"num_draws": 2}
OPTIONS["reinmax-rao"] |= {"num_draws": 2}
NUM_PARTICLES, NUM_CALLS, WARM_UP = 50, 25, 3
#: Each surrogate on bits, and each loss on every program.
CASES = [(name, program) for program in PAIRS for name in OPTIONS if program == "bits" or name in LOSSES]


def estimates(name, pair, num_calls):
    """Rows of the loss and all gradients, one for each call."""
    chosen = estimator(name, **OPTIONS[name], num_particles=NUM_PARTICLES)
    model, guide, elbo = chosen.bind(Pair(*pair))
    rows = [with_gradients(lambda: elbo.loss_and_grads(model, guide, DATA)) for _ in range(WARM_UP + num_calls)]
    return {key: torch.stack([row[key] for row in rows[WARM_UP:]]) for key in rows[0]}


def scores(found, expected):
    """How many standard errors a mean is off, the largest of all coordinates."""
    error = found.std(0) / len(found) ** 0.5
    return ((found.mean(0) - expected).abs() / (error + 1e-9)).max()


@pytest.mark.parametrize(("name", "program"), CASES)
def test_the_mean_loss_is_the_exact_one(name, program):
    pyro.set_rng_seed(0)
    found = estimates(name, PAIRS[program], NUM_CALLS)["loss"]
    expected = ExactELBO().loss(*PAIRS[program], DATA)
    assert scores(found, expected) < 5
    assert found.std() < 0.1 * abs(expected)
    another = ExactELBO().loss(poutine.scale(PAIRS[program][0], scale=1.3), PAIRS[program][1], DATA)
    assert scores(found, another) > 5  # the negative control


@pytest.mark.parametrize("program", PAIRS)
@pytest.mark.parametrize("name", SCORED)
def test_the_mean_gradient_of_scores_is_the_exact_one(name, program):
    expected = with_gradients(lambda: ExactELBO().loss_and_grads(*PAIRS[program], DATA))
    pyro.set_rng_seed(1)
    found = estimates(name, PAIRS[program], 2 * NUM_CALLS)
    for key, values in found.items():
        assert scores(values, expected[key]) < 5


def test_the_mean_gradient_of_surrogates_is_not():
    """The negative control."""
    expected = with_gradients(lambda: ExactELBO().loss_and_grads(*PAIRS["bits"], DATA))
    pyro.set_rng_seed(1)
    found = estimates("straight-through", PAIRS["bits"], 2 * NUM_CALLS)
    assert max(scores(values, expected[key]) for key, values in found.items()) > 5


@pytest.mark.parametrize("program", PAIRS)
def test_a_relaxation_runs(program):
    model, guide, elbo = estimator("gumbel-softmax", temperature=0.5).bind(Pair(*PAIRS[program]))
    found = with_gradients(lambda: elbo.loss_and_grads(model, guide, DATA))
    assert all(value.isfinite().all() for value in found.values())


def test_integers_are_scored_but_not_relaxed():
    pair = Pair(*PROGRAMS["bits and an integer"][:2])
    for name, kl in (("gumbel-softmax", "relaxed"), ("straight-through", "sampled")):
        model, guide, elbo = estimator(name, temperature=0.5, kl=kl).bind(pair)
        with pytest.raises(ValueError, match=r"found 'k', a Categorical: an integer has no relaxation\. Try OneHotCat"):
            elbo.loss(model, guide, DATA)
    for name in SCORED:
        found = estimates(name, pair, NUM_CALLS)["loss"]
        assert scores(found, ExactELBO().loss(*pair, DATA)) < 5


def one_latent(site):
    """Three digits of each datum, written by `site` from log-odds (..., 3)."""

    def model(x):
        with pyro.plate("data", len(x)):
            observe(site(weights(3)), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            site(linear(3, x))

    return Pair(model, guide)


def as_bits(log_odds):
    return pyro.sample("z", dist.Bernoulli(logits=log_odds).to_event(1))


def as_one_hots(log_odds):
    logits = torch.stack([torch.zeros_like(log_odds), log_odds], -1)
    return pyro.sample("z", dist.OneHotCategorical(logits=logits).to_event(1))[..., 1]


#: Those that read a program, and draw its digits themselves.
READING = [name for name in ESTIMATORS if estimator(name).handler is None]


@pytest.mark.parametrize("name", READING)
def test_losses_that_read_programs_take_bits_for_one_hots(name):
    """Same noise, same loss, same gradients."""
    found = []
    for site in (as_bits, as_one_hots):
        model, guide, elbo = estimator(name).bind(one_latent(site))
        pyro.set_rng_seed(0)
        found.append(with_gradients(lambda: elbo.loss_and_grads(model, guide, DATA)))  # noqa: B023
    torch.testing.assert_close(found[0], found[1], rtol=1e-9, atol=1e-9)
