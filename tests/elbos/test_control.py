"""The network of RELAX, where some batches observe a site that is latent in others."""

import math

import pyro
import pytest
import torch
from pairs import DATA, linear, observe, one_hot, weights

from pyro_gvae.estimators import estimator


def model(x, y=None):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", one_hot(weights(2)))
        observe(z, pyro.sample("y", one_hot(linear(3, z)), obs=y), obs=x)


def guide(x, y=None):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", one_hot(linear(2, x)))
        if y is None:
            pyro.sample("y", one_hot(linear(3, x, z)))


LABELS = torch.eye(3).double()[:1].expand(len(DATA), -1)


def test_a_latent_that_a_batch_observes_is_left_out_of_the_network():
    elbo = estimator("relax").elbo()
    for batch in ((DATA,), (DATA, LABELS), (DATA,)):
        assert math.isfinite(elbo.loss_and_grads(model, guide, *batch))
    network = elbo.own.network
    torch.nn.init.ones_(network.output)
    code = torch.rand(1, len(DATA), 1, 2).double()
    expected = torch.tanh(code.flatten(-2) @ network.weight[:, :2].T + network.bias).sum(-1)
    torch.testing.assert_close(network({"z": code}), expected)
    assert network.weight.shape[1] == 2 + 3


def test_a_latent_that_the_first_batch_observes_is_refused_later():
    elbo = estimator("relax").elbo()
    elbo.loss(model, guide, DATA, LABELS)
    with pytest.raises(ValueError, match=r"found 5 for z, y. Try .* start with one that observes none"):
        elbo.loss(model, guide, DATA)
