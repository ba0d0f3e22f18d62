"""One estimator per latent, next to latents that are summed or drawn in other ways: stock Pyro is the oracle."""

from functools import partial
from typing import NamedTuple

import pyro
import pyro.distributions as dist
import pytest
import torch
from pairs import (
    DATA,
    concatenated,
    in_copies,
    linear,
    observe,
    one_hot,
    standard_errors,
    stock,
    validated_once,
    with_gradients,
)
from pairs import Program as Pair

from pyro_gvae import ExactELBO
from pyro_gvae.elbos import rows
from pyro_gvae.elbos.baselines import NeuralBaseline
from pyro_gvae.estimators import Bias, Objective, estimator
from pyro_gvae.handlers.sites import Kind
from pyro_gvae.programs.crossed import Crossed
from pyro_gvae.programs.latents import Latent, Space

CALLS, WARM_UP, COPIES = 16, 1, 40
#: Student's t with 15 degrees of freedom exceeds this as rarely as a normal variable exceeds 5.
LIMIT = 8.3


def own(name, *shape):
    """Return parameters that only one statement uses."""
    start = torch.linspace(-1, 1, torch.Size(shape).numel(), dtype=torch.float64) + len(name)
    return pyro.param(name, (7 * start).sin().reshape(shape))


def bits(logits):
    return dist.Bernoulli(logits=logits)


def model(x, *, dense=linear):
    with pyro.plate("data", len(x)):
        a = pyro.sample("a", bits(own("p(a)", 1)[0])).unsqueeze(-1)
        y = pyro.sample("y", one_hot(own("p(y)", 3) + a))
        c = pyro.sample("c", bits(y[..., 0] - 2 * a[..., 0])).unsqueeze(-1)
        observe(dense(4, a, y, c), 2 * a * y[..., :1] - c, obs=x)


def guide(x, *, dense=linear):
    """Each latent depends on all earlier ones."""
    with pyro.plate("data", len(x)):
        a = pyro.sample("a", bits((x @ own("q(a)", 4, 1)).squeeze(-1))).unsqueeze(-1)
        y = pyro.sample("y", one_hot(x @ own("q(y)", 4, 3) + a * own("q(y|a)", 3)))
        c = (y * own("q(c|y)", 3)).sum(-1) + (a * own("q(c|a)", 1)).squeeze(-1)
        pyro.sample("c", bits((x @ own("q(c)", 4, 1)).squeeze(-1) + c))


class _Layout(NamedTuple):
    space: Space
    device: torch.device


X = DATA[:2]
CHAIN = Pair(model, guide)


@pytest.fixture(scope="module")
def exact():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pairs.DATA", X)
        return stock(CHAIN)


def estimates(chosen, program=CHAIN, calls=CALLS, copies=COPIES):
    pyro.set_rng_seed(0)
    copied = Pair(*(in_copies(run, copies, 1) for run in program[:2]))
    handled_model, handled_guide, elbo = chosen.bind(copied)
    found = validated_once(
        lambda: with_gradients(lambda: elbo.loss_and_grads(handled_model, handled_guide, X)), WARM_UP + calls
    )
    return {name: torch.stack([row[name] for row in found[WARM_UP:]]) / copies for name in found[0]}


#: Estimators of one or two latents, and the default for the others.
MIXED = [
    ({"a": "disarm"}, "exact"),  # before all summed latents
    ({"y": "disarm-iw"}, "exact"),  # between
    ({"c": "arms[num_particles=3]"}, "exact"),  # after
    ({"y": "top-c[num_codes=1]"}, "exact"),
    ({"y": "double-cv[num_particles=2]"}, "exact"),
    ({"a": "arms[num_particles=3]", "y": "rebar"}, "reinforce-loo[num_particles=2]"),
    ({"y": "exact", "c": "local-expectation"}, "double-cv[num_particles=2]"),
    ({"a": "disarm"}, "relax"),
]


@pytest.mark.parametrize(("sites", "default"), MIXED)
def test_the_mean_is_the_exact_elbo_and_its_gradient(sites, default, exact):
    chosen = estimator(sites, default=default)
    assert chosen.is_unbiased and chosen.objective is Objective.ELBO
    found = estimates(chosen)
    assert standard_errors(found, exact) < LIMIT
    drawn = f"q({next(iter(sites), 'y')})"
    assert standard_errors(found, exact | {drawn: 0.5 * exact[drawn]}) > LIMIT  # the negative control


@pytest.mark.parametrize("name", ["rebar", "local-expectation"])
def test_the_guide_has_the_gradient_of_the_whole_program_if_every_site_has_the_same(name):
    found = []
    for chosen in (estimator({}, default=name), estimator(name)):
        elbo = chosen.elbo()
        pyro.set_rng_seed(0)
        gradients = with_gradients(partial(elbo.loss_and_grads, model, guide, X))
        found.append({key: value for key, value in gradients.items() if key.startswith("q")})
    torch.testing.assert_close(*found, rtol=1e-9, atol=1e-9)


def two_bits_model(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", bits(own("p(z)", 2)).to_event(1))
        y = pyro.sample("y", one_hot(own("p(y)", 3) + z[..., :1] * z[..., 1:]))
        observe(z, y, z[..., :1] * y, obs=x)


def two_bits_guide(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", bits(x @ own("q(z)", 4, 2)).to_event(1))
        pyro.sample("y", one_hot(x @ own("q(y)", 4, 3) + z @ own("q(y|z)", 2, 3)))


@pytest.mark.parametrize("name", ["local-expectation", "top-c[num_codes=4]", "reinforce-baseline"])
def test_the_average_over_all_codes_is_exact(name, monkeypatch):
    """The estimate is a function of the drawn code alone, and is averaged over codes with their probabilities."""
    x = DATA[1:2]
    pyro.clear_param_store()
    with torch.no_grad():
        on = torch.sigmoid(x @ own("q(z)", 4, 2))[0]  # (2,)
    expected = with_gradients(lambda: ExactELBO().loss_and_grads(two_bits_model, two_bits_guide, x))
    chosen = estimator({"z": name})
    total = {}
    for code in torch.cartesian_prod(torch.arange(2), torch.arange(2)):
        probability = (code * on + (1 - code) * (1 - on)).prod()
        digits = torch.nn.functional.one_hot(code, 2).double().expand(1, 1, 2, 2)
        monkeypatch.setattr(rows, "by_gumbel_noise", lambda *_, digits=digits: (digits, torch.zeros_like(digits)))
        elbo = chosen.elbo()  # a new one, whose baseline is 0
        found = with_gradients(partial(elbo.loss_and_grads, two_bits_model, two_bits_guide, x))
        total = {key: total.get(key, 0) + probability * value for key, value in found.items()}
    torch.testing.assert_close(total, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("dense", [linear, concatenated])
@pytest.mark.parametrize(("site", "summed"), [("y", "local-expectation"), ("y", "top-c[num_codes=3]")])
def test_a_sum_over_the_first_digit_beside_sums_is_exact(site, summed, dense, exact):
    """This includes programs that do not take codes in one more dimension: rows that share a draw get the same one."""

    def reordered(x):
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", one_hot(x @ own("q(y)", 4, 3)))
            a = pyro.sample("a", bits((y * own("q(a|y)", 3)).sum(-1)))
            pyro.sample("c", bits((x @ own("q(c)", 4, 1)).squeeze(-1) + a))

    pair = Pair(partial(model, dense=dense), reordered)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pairs.DATA", X)
        expected = stock(Pair(model, reordered))
    handled_model, handled_guide, elbo = estimator({site: summed}).bind(pair)
    pyro.set_rng_seed(0)
    if dense is concatenated:
        with pytest.warns(UserWarning, match="Expected programs that accept codes"):
            found = with_gradients(lambda: elbo.loss_and_grads(handled_model, handled_guide, X))
    else:
        found = with_gradients(lambda: elbo.loss_and_grads(handled_model, handled_guide, X))
    torch.testing.assert_close(found["q(y)"], expected["q(y)"], rtol=1e-9, atol=1e-9)
    assert not torch.allclose(found["q(c)"], expected["q(c)"])  # the negative control: y is drawn


def surrogate_model(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", one_hot(own("p(z)", 3)))
        observe(z, pyro.sample("y", one_hot(own("p(y)", 3) + z)), obs=x)


def surrogate_guide(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", one_hot(x @ own("q(z)", 4, 3)))
        pyro.sample("y", one_hot(x @ own("q(y)", 4, 3) + z * own("q(y|z)", 3)))


@pytest.mark.parametrize("kl", ["categorical", "sampled"])
def test_beside_a_surrogate_the_value_is_exact_and_so_is_the_gradient_of_what_comes_later(kl):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pairs.DATA", X)
        expected = stock(Pair(surrogate_model, surrogate_guide))
    chosen = estimator({"y": "local-expectation", "z": f"st-gumbel-softmax[kl={kl}]"})
    assert chosen.bias is Bias.SURROGATE
    found = estimates(chosen, Pair(surrogate_model, surrogate_guide))
    right = {name: expected[name] for name in ("loss", "q(y)", "q(y|z)", "p(y)")}
    assert standard_errors(found, right) < LIMIT
    assert standard_errors(found, {"q(y)": 0.5 * expected["q(y)"]}) > LIMIT  # the negative control


def test_a_baseline_may_be_a_network_of_the_data():
    elbo = estimator({"y": "reinforce-baseline[baseline=neural,data_dim=4]"}).elbo()
    [network] = elbo.own
    assert isinstance(network.baseline, NeuralBaseline)
    pyro.set_rng_seed(0)
    for _ in range(2):  # the last layer is initially 0
        elbo.loss_and_grads(model, guide, X)
    assert all(parameter.grad is not None for parameter in network.parameters())
    before = network.baseline.running.total.clone()
    assert before != 0
    elbo.loss(model, guide, X)
    assert network.baseline.running.total == before


def test_what_an_estimator_is_not_for_is_refused():
    def refused(sites, pattern, **options):
        handled_model, handled_guide, elbo = estimator(sites, **options).bind(CHAIN)
        with pytest.raises(ValueError, match=pattern):
            elbo.loss(handled_model, handled_guide, X)

    refused({"y": "disarm"}, r"K=2 categories, but found K=3 at 'y'")
    refused({"y": "arms"}, r"K=2 categories, but found K=3 at 'y'")
    refused({"w": "rebar"}, r"Expected the program to have a site 'w'")
    many = "rebar[num_particles=1000]"
    refused({"a": many}, r"the 6 joint codes of y, c to fit into .* at once", default="exact[max_memory=50000]")


def test_rows_that_agree_in_the_codes_so_far_share_what_is_drawn_next():
    a = Latent("a", Kind.BIT, torch.Size([2]), 2, torch.double)
    space = Space((a, Latent("y", Kind.ONE_HOT, torch.Size(), 3, torch.double)))
    crossed = Crossed(_Layout(space, torch.device("cpu")), frozenset({"a", "y"}), 2)
    codes = space.codes(torch.arange(12).repeat_interleave(2), torch.double)
    for declared in ([], ["a"], ["y"], ["a", "y"]):
        keys = [(row % 2, *(tuple(codes[name][row].flatten().tolist()) for name in declared)) for row in range(24)]
        assert crossed.sources(declared).tolist() == [keys.index(key) for key in keys]
