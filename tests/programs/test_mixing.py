"""Statements inside of a plate that read the codes of other data: sums over the codes of each would be wrong."""

import warnings

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch import nn

from pyro_gvae import estimator, exact
from pyro_gvae.exact import Pair
from pyro_gvae.programs.mixing import MOST_CELLS

X = torch.tensor([0.3, -1.0, 2.0, 0.5])
RATES = torch.tensor([[0.9, 0.2], [0.3, 0.6]])
EDGES = torch.tensor([[0.0, 1.0, 1.0], [0.0, 0.0, 1.0], [1.0, 0.0, 0.0]])


def block_model(edges):
    """A stochastic block model: an edge depends on the blocks of both of its nodes."""
    nodes = pyro.plate("nodes", len(edges), dim=-1)
    with nodes:
        z = pyro.sample("z", dist.Categorical(torch.tensor([0.3, 0.7])))
    with pyro.plate("from", len(edges), dim=-2), nodes:
        pyro.sample("edge", dist.Bernoulli(RATES[z.unsqueeze(-1), z.unsqueeze(-2)]), obs=edges)


def block_guide(edges):
    with pyro.plate("nodes", len(edges), dim=-1):
        pyro.sample("z", dist.Categorical(torch.ones(2)))


def reading(read):
    """Return a pair whose statement for each datum reads what `read` takes from all codes."""

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Bernoulli(0.3))
            pyro.sample("x", dist.Normal(read(z), 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Bernoulli(0.4))

    return Pair(model, guide)


READ = {
    "the neighbour": lambda z: z.roll(1, -1),
    "the next but one": lambda z: z.roll(2, -1),
    "the first": lambda z: z[..., :1].expand_as(z),
    "the last": lambda z: z[..., -1:].expand_as(z),
    "the mean": lambda z: z.mean(-1, keepdim=True).expand_as(z),
    "the previous ones": lambda z: z.cumsum(-1),
}


#: Of two data, the next but one is the datum itself.
CASES = [(name, size) for name in READ for size in (2, 3, 4) if (name, size) != ("the next but one", 2)]


@pytest.mark.parametrize(("name", "size"), CASES)
def test_codes_of_others_are_refused(name, size):
    with pytest.raises(ValueError, match=r"own datum only, but found 'x', .* plate 'data'\. Try one site"):
        exact.elbo(reading(READ[name]), X[:size])


@pytest.mark.parametrize("call", [exact.elbo, exact.log_evidence, exact.posterior])
def test_a_graph_is_refused(call):
    with pytest.raises(ValueError, match=r"own datum only, but found 'edge'"):
        call(Pair(block_model, block_guide), EDGES)


def test_so_it_is_by_losses_and_without_a_guide():
    pair = reading(READ["the neighbour"])
    model, guide, elbo = estimator("reinforce-loo").bind(pair)
    for call in (lambda: elbo.loss(model, guide, X), lambda: exact.elbo(Pair(pair.model, lambda x: None), X)):
        with pytest.raises(ValueError, match="own datum only"):
            call()


def test_they_are_found_in_a_minibatch():
    def model(x):
        with pyro.plate("data", len(x), subsample_size=5) as rows:
            z = pyro.sample("z", dist.Bernoulli(0.3))
            pyro.sample("x", dist.Normal(z.roll(1, -1), 1.0), obs=x[rows])

    def guide(x):
        with pyro.plate("data", len(x), subsample_size=5):
            pyro.sample("z", dist.Bernoulli(0.4))

    with pytest.raises(ValueError, match="own datum only"):
        exact.elbo(Pair(model, guide), torch.zeros(20))


def test_noise_and_masked_statements_are_none():
    """A program that differs from run to run, and a statement that counts nowhere."""
    generator = torch.Generator().manual_seed(0)

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Bernoulli(0.3))
            pyro.sample("x", dist.Normal(z + torch.randn(len(x), generator=generator), 1.0), obs=x)
            with poutine.mask(mask=torch.zeros(len(x), dtype=torch.bool)):
                pyro.sample("masked", dist.Normal(z.roll(1, -1), 1.0), obs=x)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that codes run one after another
        assert exact.elbo(Pair(model, reading(lambda z: z).guide), X).isfinite().all()


def test_codes_that_the_data_share_are_no_codes_of_others():
    def model(x):
        g = pyro.sample("g", dist.Bernoulli(0.5))
        with pyro.plate("rows", 2, dim=-2):
            h = pyro.sample("h", dist.Bernoulli(0.2 + 0.5 * g))
            with pyro.plate("columns", 3, dim=-1):
                z = pyro.sample("z", dist.Bernoulli(0.2 + 0.5 * h))
                pyro.sample("x", dist.Normal(g + h + z, 1.0), obs=x)

    assert exact.log_evidence(Pair(model, model), torch.zeros(2, 3)).isfinite()


class Normalized(nn.Module):
    """A decoder that normalizes a batch: in train mode its numbers depend on all data, which nothing can mend."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(1)

    def forward(self, z):
        return self.norm(z.reshape(-1, 1)).reshape(z.shape)


def test_batch_normalization_in_train_mode_is_not_refused():
    assert exact.elbo(reading(Normalized()), X).isfinite().all()


def test_large_plates_are_not_checked():
    """Programs would have to decode a code for each cell."""
    assert exact.elbo(reading(READ["the neighbour"]), torch.zeros(MOST_CELLS + 1)).isfinite().all()
