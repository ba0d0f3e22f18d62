"""fit on pairs of plain functions, with parameters in Pyro's store and in a network of a closure."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import constraints
from torch import nn

from pyro_gvae import TrainConfig, exact, fit
from pyro_gvae.exact import Pair
from pyro_gvae.train.pairs import TrainablePair, trainable

X = torch.randn(12, 2, generator=torch.Generator().manual_seed(1)).exp()
CONFIG = TrainConfig(stages="exact:20steps", batch_size=12, learning_rate=0.05)


def mixture():
    network = nn.Sequential(nn.Linear(2, 3), nn.Dropout(0.5))

    def model(x):
        means = pyro.param("at.means", lambda: torch.randn(3, 2))
        scale = pyro.param("scale", torch.tensor(2.0), constraint=constraints.positive)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.OneHotCategorical(logits=torch.zeros(3)))
            pyro.sample("x", dist.Normal(z @ means, scale).to_event(1), obs=x)

    def guide(x):
        pyro.module("network", network)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.OneHotCategorical(logits=network(x)))

    return Pair(model, guide), network


@pytest.mark.usefixtures("recorded")
def test_a_pair_of_functions_is_trained_where_its_parameters_are(tmp_path):
    pair, network = mixture()
    done = fit(pair, X, CONFIG, output=tmp_path, progress=False)
    store = pyro.get_param_store()
    assert sorted(store.keys()) == ["at.means", "network$$$0.bias", "network$$$0.weight", "scale"]
    assert store["scale"] > 0 and abs(store["scale"] - 2) > 0.1
    network.eval()
    assert exact.elbo(pair, X).mean().item() == pytest.approx(done.history[-1]["train_elbo"], abs=1e-5)
    assert done.history[-1]["train_elbo"] > done.history[0]["train_elbo"] + 0.1
    # A later call continues the same run, even if the store has other values.
    before = {name: value.detach().clone() for name, value in store.items()}
    with torch.no_grad():
        for _, leaf in store.named_parameters():
            leaf.add_(1.0)
    fit(pair, X, CONFIG, output=tmp_path, resume=True, progress=False)
    assert all(torch.equal(value, before[name]) for name, value in store.items())


def test_networks_that_pyro_does_not_see_are_not_trained():
    frozen = nn.Linear(2, 2)
    pair, network = mixture()
    found = TrainablePair(Pair(pair.model, lambda x: pair.guide(frozen(x))), X)
    assert list(found.networks) == [network]
    assert sorted(name for name, _ in found.values.items()) == ["at/means", "scale"]


def test_a_module_is_its_own_program():
    class Program(nn.Module):
        model = guide = None

    program = Program()
    assert trainable(program, X) is program
