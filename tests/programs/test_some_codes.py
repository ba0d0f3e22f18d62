"""Statements that a program makes only with some codes add nothing to the log-probability of the others."""

import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_gvae import ExactELBO, estimator, exact
from pyro_gvae.exact import Pair

X = torch.tensor(0.3).double()
PENALTY = torch.tensor(-1.0).double()

pytestmark = pytest.mark.filterwarnings("ignore:Expected programs that accept codes")


def bits(read, chain=False):
    """Return a pair of two bits with a penalty where `read` says so; in a chain, if they are in `pyro.markov`."""

    def draw(probs):
        steps = pyro.markov(range(2)) if chain else range(2)
        return [pyro.sample(f"z{t}", dist.Bernoulli(probs[t].double())) for t in steps]

    def model(x):
        z, w = draw(torch.tensor([0.3, 0.6]))
        if read(z, w):
            pyro.factor("penalty", PENALTY)
        pyro.sample("x", dist.Normal(z + w, 1.0), obs=x)

    return Pair(model, lambda x: draw(torch.tensor([0.4, 0.5])))


READ = {
    "both": lambda z, w: z > 0.5 and w > 0.5,
    "any": lambda z, w: bool((z > 0.5).any()),
    "none": lambda z, w: bool((z < 0.5).all() and (w < 0.5).all()),
}


def right(read):
    """Sum over the four codes."""
    total = torch.zeros(()).double()
    for z in torch.tensor([0.0, 1.0]).double():
        for w in torch.tensor([0.0, 1.0]).double():
            log_q = sum(dist.Bernoulli(p).log_prob(v) for p, v in ((torch.tensor(0.4), z), (torch.tensor(0.5), w)))
            log_p = sum(dist.Bernoulli(p).log_prob(v) for p, v in ((torch.tensor(0.3), z), (torch.tensor(0.6), w)))
            log_p = log_p + dist.Normal(z + w, 1.0).log_prob(X) + (PENALTY if read(z, w) else 0.0)
            total = total + log_q.exp() * (log_p - log_q)
    return total.item()


@pytest.mark.parametrize("chain", [False, True])
@pytest.mark.parametrize("read", READ.values(), ids=READ)
def test_exact_sums(read, chain):
    pair = bits(read, chain)
    assert exact.elbo(pair, X).item() == pytest.approx(right(read), abs=1e-5)
    assert -ExactELBO().loss(*pair, X) == pytest.approx(right(read), abs=1e-5)


@pytest.mark.parametrize("read", READ.values(), ids=READ)
def test_sums_over_the_most_probable_codes(read):
    model, guide, elbo = estimator("top-c").bind(bits(read))
    assert -elbo.loss(model, guide, X) == pytest.approx(right(read), abs=1e-4)


@pytest.mark.parametrize("name", ["reinforce-loo", "unordered-set", "disarm", "local-expectation", "vimco"])
def test_sampled_losses(name):
    """Means over draws; those of VIMCO are of a bound above the ELBO."""
    torch.manual_seed(0)
    model, guide, elbo = estimator(name).bind(bits(READ["both"]))
    found = torch.tensor([-elbo.loss(model, guide, X) for _ in range(150)]).double()
    error = found.std().item() / len(found) ** 0.5
    if name == "vimco":
        assert found.mean().item() > right(READ["both"]) - 5 * error
    else:
        assert abs(found.mean().item() - right(READ["both"])) < 5 * error + 1e-4


def digits(read):
    """Return a pair of two digits of three categories in one site, with a penalty where `read` says so."""

    def model(x):
        z = pyro.sample("z", dist.OneHotCategorical(probs=PROBS).to_event(1))
        if read(z.argmax(-1)):
            pyro.factor("penalty", PENALTY)
        pyro.sample("x", dist.Normal((z @ torch.arange(3.0).double()).sum(-1), 1.0), obs=x)

    return Pair(model, lambda x: pyro.sample("z", dist.OneHotCategorical(probs=PROBS).to_event(1)))


PROBS = torch.tensor([[0.2, 0.3, 0.5], [0.4, 0.5, 0.1]]).double()
OF_DIGITS = {
    "the last category": lambda z: bool((z[..., 1] == 2).any()),
    "of the first digit": lambda z: bool((z[..., 0] == 2).any()),
    "both": lambda z: bool((z == 2).all(-1).any()),
    "different ones": lambda z: bool((z[..., 0] != z[..., 1]).any()),
}


@pytest.mark.parametrize("read", OF_DIGITS.values(), ids=OF_DIGITS)
def test_digits_with_more_categories(read):
    total = torch.zeros(()).double()
    for z in torch.cartesian_prod(torch.arange(3), torch.arange(3)):
        q = PROBS[0, z[0]] * PROBS[1, z[1]]
        total = total + q * (dist.Normal(z.sum().double(), 1.0).log_prob(X) + (PENALTY if read(z) else 0.0))
    torch.testing.assert_close(exact.elbo(digits(read), X), total)
