"""Programs that branch on the values of latents, which therefore take no axis of values, in chains or without a guide.

The right numbers are those of the same program that looks up a table.
"""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine

from pyro_gvae import ExactELBO, estimator, exact
from pyro_gvae.elbos.free_bits import FreeBits
from pyro_gvae.evaluate.generate import encode
from pyro_gvae.evaluate.importance import log_importance_weights
from pyro_gvae.exact import Pair
from pyro_gvae.programs.latents import TooManyCodesError

X = torch.tensor([0.3, -1.0, 2.0]).double()
MEANS = torch.tensor([-1.0, 0.5, 2.0]).double()
RATES = torch.tensor([[0.5, 0.3, 0.2], [0.1, 0.2, 0.7], [0.3, 0.3, 0.4]]).double()

pytestmark = pytest.mark.filterwarnings("ignore:Expected programs that accept codes")


def from_table(table, z):
    return table[z]


def by_branches(table, z):
    """Return the same, but only for a number, or a number for each datum."""
    return torch.stack([table[int(value)] for value in z]) if z.dim() else table[int(z)]


def parameter(name, value):
    return pyro.param(name, lambda: torch.tensor(value).double())


def lacking(read):
    """Return a pair whose guide has neither of two latents."""

    def model(x):
        means = MEANS * parameter("slope", 0.7)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Categorical(RATES[0]))
            y = pyro.sample("y", dist.Categorical(read(RATES, z)))
            pyro.sample("x", dist.Normal(read(means, z) + 2 * read(means, y), 1.0), obs=x)

    return Pair(model, lambda x: None)


def partly(read):
    """Return a pair whose guide has one of two latents."""

    def guide(x):
        slope = parameter("slope of the guide", 0.4)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Categorical(logits=slope * x.unsqueeze(-1) * torch.arange(3.0).double()))

    return Pair(lacking(read).model, guide)


def shared(read):
    """Return a pair with a latent that all data share, and one of each datum that the guide lacks."""

    def model(x):
        means = MEANS * parameter("slope", 0.7)
        g = pyro.sample("g", dist.Categorical(RATES[1]))
        with pyro.plate("data", len(x)), poutine.mask(mask=x > -0.5):
            y = pyro.sample("y", dist.Categorical(read(RATES, g)))
            pyro.sample("x", dist.Normal(read(means, g) + read(means, y), 1.0), obs=x)

    def guide(x):
        pyro.sample("g", dist.Categorical(logits=parameter("slope of the guide", 0.4) * torch.arange(3.0).double()))

    return Pair(poutine.scale(model, 0.5), poutine.scale(guide, 0.5))


def drawn(read):
    """Return a pair whose guide draws a continuous latent, then a code from it, and lacks another one."""

    def model(x):
        means = MEANS * parameter("slope", 0.7)
        with pyro.plate("data", len(x)):
            c = pyro.sample("c", dist.Normal(torch.zeros_like(x), 1.0))
            z = pyro.sample("z", dist.Categorical(RATES[2]))
            y = pyro.sample("y", dist.Categorical(read(RATES, z)))
            pyro.sample("x", dist.Normal(read(means, z) + read(means, y) + c, 1.0), obs=x)

    def guide(x):
        slope = parameter("slope of the guide", 0.4)
        with pyro.plate("data", len(x)):
            c = pyro.sample("c", dist.Normal(slope * x, 0.8))
            pyro.sample("z", dist.Categorical(logits=c.unsqueeze(-1) * torch.arange(3.0).double()))

    return Pair(model, guide)


def chain(read):
    """Return a hidden Markov model of two sequences, and a guide that follows it."""

    def run(x, has_data):
        means = MEANS * parameter("slope" if has_data else "slope of the guide", 0.7 if has_data else 0.4)
        with pyro.plate("sequences", 2):
            z = torch.zeros(2, dtype=torch.long)
            for t in pyro.markov(range(3)):
                z = pyro.sample(f"z{t}", dist.Categorical(logits=read(RATES * means.sum(), z)))
                if has_data:
                    pyro.sample(f"x{t}", dist.Normal(read(means, z), 1.0), obs=x[t])

    return Pair(lambda x: run(x, True), lambda x: run(x, False))


PAIRS = {"lacking": lacking, "partly": partly, "shared": shared, "drawn": drawn, "chain": chain}
SUMMED = {name: pair for name, pair in PAIRS.items() if pair is not drawn}


def both(make, function):
    """Return what a function says of a pair with branches, and of one with a table."""
    found = []
    for read in (by_branches, from_table):
        pyro.clear_param_store()
        pyro.set_rng_seed(0)
        found.append(function(make(read)))
    return found


def gradients(total):
    """Return a number and its gradient with respect to all parameters."""
    total.backward()
    leaves = [leaf for _, leaf in sorted(pyro.get_param_store().named_parameters())]
    return [total.detach(), *(torch.zeros(()) if leaf.grad is None else leaf.grad for leaf in leaves)]


def data(make):
    return torch.stack([X[:2], X[1:], X[:2] - 0.4]) if make is chain else X


@pytest.mark.parametrize("make", PAIRS.values(), ids=PAIRS)
def test_the_elbo_and_its_gradient(make):
    found, right = both(make, lambda pair: gradients(exact.elbo(pair, data(make)).sum()))
    torch.testing.assert_close(found, right)
    assert any(own.abs() > 0.01 for own in right[1:])


@pytest.mark.parametrize("make", SUMMED.values(), ids=SUMMED)
def test_the_evidence_and_its_gradient(make):
    found, right = both(make, lambda pair: gradients(exact.log_evidence(pair, data(make)).sum()))
    torch.testing.assert_close(found, right)


@pytest.mark.parametrize(
    "function",
    [
        lambda pair, x: exact.posterior(pair, x).marginals,
        lambda pair, x: exact.bounds(pair, x),
        lambda pair, x: exact.mean_field(pair, x).elbo,
        encode,
        lambda pair, x: encode(pair, x, "exact"),
    ],
    ids=["posterior", "bounds", "mean_field", "encode", "best code"],
)
@pytest.mark.parametrize("make", [lacking, partly, chain])
def test_what_follows_from_the_posterior(make, function):
    found, right = both(make, lambda pair: function(pair, data(make)))
    torch.testing.assert_close(found, right)


def test_free_bits_and_wake_gradients():
    for loss in (FreeBits(ExactELBO(), 0.1), estimator("exact-wake").bind(partly(from_table)).elbo):
        found, right = both(partly, lambda pair, loss=loss: gradients(loss.differentiable_loss(*pair, X)))
        torch.testing.assert_close(found, right)


@pytest.mark.filterwarnings("ignore:Expected programs that take particles")
@pytest.mark.parametrize("make", [partly, drawn])
def test_importance_weights_sum_the_latents_that_the_guide_lacks(make):
    """Programs with branches draw one particle at a time, so only means are comparable."""
    found, right = both(make, lambda pair: log_importance_weights(pair, X, 150))
    error = ((found.var(0) + right.var(0)) / len(found)).sqrt()
    assert ((found.mean(0) - right.mean(0)).abs() < 5 * error).all()
    assert error.max() < 0.2


@pytest.mark.parametrize("has_guide", [False, True])
def test_scales_and_masks_may_depend_on_codes(has_guide):
    """Without a guide a scale could not: log p(x) has one scale for all statements of a datum."""
    weights = torch.tensor([1.0, 3.0, 2.0]).double()

    def pair(read):
        def model(x):
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Categorical(RATES[0]))
                scaled = (
                    poutine.scale(scale=read(weights, z)) if has_guide else poutine.mask(mask=read(weights, z) > 1.5)
                )
                with scaled:
                    pyro.sample("y", dist.Categorical(read(RATES, z)), obs=torch.zeros(len(x), dtype=torch.long))
                    pyro.sample("x", dist.Normal(read(MEANS, z), 1.0), obs=x)

        return Pair(model, partly(read).guide if has_guide else lambda x: None)

    found, right = both(pair, lambda pair: exact.elbo(pair, X))
    torch.testing.assert_close(found, right)


def test_they_run_with_a_warning():
    with pytest.warns(UserWarning, match="They are run for one joint code after another"):
        exact.elbo(partly(by_branches), X)


def test_a_statement_outside_of_the_plate_is_refused_although_nothing_shows_what_it_depends_on():
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Categorical(RATES[0]))
        pyro.sample("x", dist.Normal(by_branches(MEANS, z).sum(), 1.0), obs=x[0])

    with pytest.raises(ValueError, match=r"'x' outside of them"):
        exact.elbo(Pair(model, lambda x: None), X)


def test_codes_that_do_not_fit_into_memory():
    with pytest.raises(TooManyCodesError, match="27 codes, which take"):
        exact.elbo(chain(by_branches), data(chain), max_memory=300)


def test_a_loss_of_svi():
    pair = partly(by_branches)
    torch.testing.assert_close(
        torch.tensor(ExactELBO().loss(*pair, X)).double(), -exact.elbo(pair, X).sum().detach(), rtol=1e-5, atol=1e-5
    )
