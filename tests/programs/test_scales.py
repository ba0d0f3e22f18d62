"""A weight for each datum: sum_i w_i log p(x_i), and bounds of it. Single data without weights are the oracle."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pairs import linear, one_hot, weights, with_gradients
from pyro import poutine

from pyro_gvae import estimator, exact
from pyro_gvae.evaluate.certified import certified_bounds
from pyro_gvae.evaluate.collapsed import collapsed_importance_weighted
from pyro_gvae.evaluate.importance import importance_weighted
from pyro_gvae.exact import Pair

X = torch.tensor([0.3, -1.0, 2.0]).double()
W = torch.tensor([0.5, 2.0, 3.0]).double()


def datum(x, y=None):
    z = pyro.sample("z", one_hot(weights(3)))
    y = pyro.sample("y", dist.Bernoulli(logits=linear(1, z).squeeze(-1)))
    pyro.sample("x", dist.Normal(linear(1, z).squeeze(-1) + y, 1.0), obs=x)


def codes(x):
    z = pyro.sample("z", one_hot(linear(3, x.unsqueeze(-1))))
    pyro.sample("y", dist.Bernoulli(logits=linear(1, z).squeeze(-1) + x))


def weighted(program, scale=W, factor=1):
    """Weigh each datum of a plate, of which it may be a subsample."""

    def run(x):
        with pyro.plate("data", factor * len(x), subsample=torch.arange(len(x))), poutine.scale(scale=scale):
            program(x)

    return run


def plain(program):
    return weighted(program, torch.ones(()).double())


PLAIN = Pair(plain(datum), plain(codes))


@pytest.mark.parametrize("name", ["exact-evidence", "exact-wake"])
@pytest.mark.parametrize("slice_size", [None, 4])
@pytest.mark.parametrize("factor", [1, 2])
def test_loss_and_gradients_are_sums_over_weighted_data(name, slice_size, factor):
    model, guide, elbo = estimator(name, slice_size=slice_size).bind(PLAIN)

    def by_hand():
        losses = [w * factor * elbo.differentiable_loss(model, guide, X[i : i + 1]) for i, w in enumerate(W)]
        loss = torch.stack(losses).sum()
        loss.backward()
        return loss.item()

    expected = with_gradients(by_hand)
    pair = Pair(weighted(datum, factor=factor), weighted(codes, factor=factor))
    model, guide, elbo = estimator(name, slice_size=slice_size).bind(pair)
    found = with_gradients(lambda: elbo.loss_and_grads(model, guide, X))
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    assert not torch.allclose(found["loss"], expected["loss"] + 1e-3)


@pytest.mark.parametrize("name", ["vimco", "ovis", "tvo", "reweighted-wake-sleep", "daps"])
def test_bounds_by_weights_of_codes_are_sums_over_weighted_data(name):
    """The same seed draws the same codes, whatever the weights are: data of weight 1 and k copies of them agree."""

    def gradients(scale):
        model, guide, elbo = estimator(name, num_particles=3).bind(Pair(weighted(datum, scale), weighted(codes, scale)))
        pyro.set_rng_seed(3)
        return with_gradients(lambda: elbo.loss_and_grads(model, guide, X))

    found, parts = gradients(W), []
    for i, w in enumerate(W):
        with pyro.validation_enabled(False):  # Pyro refuses weights of 0
            parts.append(gradients(torch.eye(3).double()[i] * w))
    expected = {key: torch.stack([part[key] for part in parts]).sum(0) for key in found if "TrustRegion" not in key}
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value, rtol=1e-9, atol=1e-9)
    assert all(value.isfinite().all() for value in found.values())


def test_evaluations_weigh_each_datum():
    pair = Pair(weighted(datum), weighted(codes))
    pyro.clear_param_store()
    expected = W * exact.log_evidence(PLAIN, X)
    torch.testing.assert_close(exact.log_evidence(pair, X), expected)
    torch.testing.assert_close(exact.bounds(pair, X).log_evidence, expected)
    certain = certified_bounds(pair, X, num_codes=6)
    torch.testing.assert_close(certain.lower, expected)
    sampled = importance_weighted(pair, X, num_particles=4000)
    assert ((sampled.bound - expected).abs() < 5 * sampled.sampling_error + 0.01).all()
    plain = importance_weighted(PLAIN, X, num_particles=4000)
    assert ((sampled.sampling_error / (W * plain.sampling_error)).log().abs() < 0.2).all()
    assert (sampled.neighbourhood <= expected + 1e-9).all()
    torch.testing.assert_close(collapsed_importance_weighted(pair, X, 2).bound, expected)


def test_posteriors_have_no_weight():
    pair = Pair(weighted(datum, torch.tensor([0.0, 2.0, 3.0]).double()), weighted(codes))
    with pyro.validation_enabled(False):
        torch.testing.assert_close(exact.posterior(pair, X).marginals, exact.posterior(PLAIN, X).marginals)
        found = exact.log_evidence(pair, X)
    assert found[0] == 0 and found.isfinite().all()


def parts(scale, scale_of_parts, *, is_global=False):
    """Return a model of data that have a code and two parts, each with a code of its own."""

    def run(x):
        style = pyro.sample("style", dist.Bernoulli(torch.tensor(0.3).double())) if is_global else 0.0
        with pyro.plate("data", len(x), dim=-2), poutine.scale(scale=scale.unsqueeze(-1)):
            top = pyro.sample("top", one_hot(weights(2)))
            with pyro.plate("parts", 2, dim=-1), poutine.scale(scale=scale_of_parts):
                z = pyro.sample("z", dist.Bernoulli(logits=linear(1, top).squeeze(-1)))
                pyro.sample("x", dist.Normal(z + style + top[..., 0], 1.0), obs=torch.stack([x, -x], -1))

    return Pair(run, poutine.block(run, hide=["x"]))


def test_parts_of_a_datum_share_its_weight():
    ones = torch.ones(3).double()
    for function in (exact.log_evidence, lambda *of: exact.mean_field(*of).elbo):
        expected = W * function(parts(ones, ones[:1]), X)
        torch.testing.assert_close(function(parts(W, ones[:1]), X), expected)
    for options in ({}, {"encoder": "inclusive"}):
        model, guide, elbo = estimator("exact-wake", **options).bind(parts(W, ones[:1]))
        assert elbo.loss_and_grads(model, guide, X) == pytest.approx(
            -exact.log_evidence(parts(W, ones[:1]), X).sum().item()
        )


@pytest.mark.parametrize(
    "pair",
    [parts(torch.ones(3), torch.tensor([1.0, 2.0])), parts(W, torch.ones(1), is_global=True)],
    ids=["parts of a datum", "data with a global latent"],
)
def test_data_that_share_a_latent_need_one_weight(pair):
    """p(x_1 | z) p(x_2 | z) with two weights is no density of z, whose sum is 1."""
    with pytest.raises(ValueError, match="or if data that share a latent are"):
        exact.log_evidence(pair, X)
    assert exact.elbo(pair, X).isfinite().all()


def test_statements_of_one_datum_need_one_weight():
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", one_hot(weights(3)))
            with poutine.scale(scale=W):
                pyro.sample("x", dist.Normal(linear(1, z).squeeze(-1), 1.0), obs=x)

    for name in ("exact-evidence", "vimco"):
        bound = estimator(name).bind(Pair(model, plain(lambda x: pyro.sample("z", one_hot(weights(3))))))
        with pytest.raises(ValueError, match="share one scale"):
            bound[2].loss(*bound[:2], X)
