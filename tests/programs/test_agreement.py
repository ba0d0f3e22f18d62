"""Programs that count dimensions from the left, where a size is the same by chance, so that no shape is wrong.

The right numbers are those of the same program that counts from the right.
"""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import Bernoulli, Normal, OneHotCategorical
from torch import nn

from pyro_gvae import ExactELBO, estimator, exact
from pyro_gvae.exact import Pair

X = torch.tensor([0.3, -1.0, 2.0]).double()
LOGITS = torch.tensor([0.5, -0.2, 1.0]).double()
SLOPES = torch.tensor([1.0, 2.0]).double()


def of_each(read, latent, size=3):
    """Return a pair with a latent of each datum, from what the likelihood's mean reads of it."""

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", latent())
            pyro.sample("x", Normal(2 * read(z), 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", latent())

    return Pair(model, guide), X[:size]


def of_all(read, event=False):
    """Return a pair with bits that all data share."""

    def bits():
        return Bernoulli(logits=LOGITS).to_event(1)

    def model(x):
        a = pyro.sample("a", bits())
        if event:
            pyro.sample("x", Normal(read(a), 1.0).to_event(1), obs=x)
        else:
            with pyro.plate("data", len(x)):
                pyro.sample("x", Normal(read(a), 1.0), obs=x)

    return Pair(model, lambda x: pyro.sample("a", bits())), X[:2] if event else X


def one_hot():
    return OneHotCategorical(logits=LOGITS)


def bits():
    return Bernoulli(logits=LOGITS).to_event(1)


#: Program -> as it counts from the left, and from the right.
TWINS = {
    "a category, as many data as categories": (
        of_each(lambda z: z[:, 0], one_hot),
        of_each(lambda z: z[..., 0], one_hot),
    ),
    "a bit, as many data as bits": (of_each(lambda z: z[:, 0], bits), of_each(lambda z: z[..., 0], bits)),
    "a mean, one datum": (of_each(lambda z: z.mean(0)[0], bits, 1), of_each(lambda z: z[..., 0], bits, 1)),
    "a sum of everything": (of_all(torch.sum), of_all(lambda a: a.sum(-1))),
    "as many events as trial codes": (
        of_all(lambda a: a[0] * SLOPES, event=True),
        of_all(lambda a: a[..., :1] * SLOPES, event=True),
    ),
}


def numbers(pair, x):
    """The ELBO and log p(x) of each datum, exact, and the ELBO of an estimator that sums over each digit's values."""
    model, guide, elbo = estimator("exact").bind(pair)
    return exact.elbo(pair, x), exact.log_evidence(pair, x), torch.tensor(-elbo.loss(model, guide, x))


@pytest.mark.parametrize("name", TWINS)
def test_counting_from_the_left_gives_the_right_numbers(name):
    left, right = TWINS[name]
    with pytest.warns(UserWarning, match="run for one joint code after another"):
        found = numbers(*left)
    for one, other in zip(found, numbers(*right), strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("name", ["local-expectation", "reinforce-loo", "top-c"])
def test_sampled_losses_agree_too(name):
    """With one one-hot, `local-expectation` is exact; the others have five standard errors."""
    (pair, x), (twin, _) = TWINS["a category, as many data as categories"]
    right = exact.elbo(twin, x).sum().item()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model, guide, elbo = estimator(name).bind(pair)
        with pytest.warns(UserWarning, match="one joint code after another"):
            found = torch.tensor([-elbo.loss(model, guide, x) for _ in range(60)]).double()
    error = found.std().item() / 60**0.5
    assert abs(found.mean().item() - right) < 5 * error + 1e-5
    assert error < 0.4


@pytest.mark.filterwarnings("ignore:Expected programs that accept codes")
def test_a_chain_that_counts_from_the_left():
    def chain(read):
        def model(x):
            probs = torch.full((len(x), 2), 0.5).double()
            with pyro.plate("data", len(x)):
                for t in pyro.markov(range(3)):
                    z = pyro.sample(f"z{t}", OneHotCategorical(probs=probs))
                    pyro.sample(f"x{t}", Normal(read(z), 1.0), obs=x[:, t])
                    probs = 0.1 + 0.8 * z

        return Pair(model, lambda x: None)

    x = torch.tensor([[0.3, -1.0, 2.0], [1.0, 0.0, -2.0]]).double()
    found, right = (exact.log_evidence(chain(read), x) for read in (lambda z: z[:, 0], lambda z: z[..., 0]))
    torch.testing.assert_close(found, right)


def gradient_of_weights(model, guide, x):
    """Return the gradient of a loss with respect to weights that begin at zero."""
    pyro.clear_param_store()
    ExactELBO().loss_and_grads(model, guide, x)
    return pyro.get_param_store()._params["weights"].grad


@pytest.mark.filterwarnings("ignore:Expected programs that accept codes")
def test_weights_that_are_all_zero_hide_nothing():
    """Then all codes have the same log-probability, but not the same gradient."""

    def pair(read):
        def model(x):
            weights = pyro.param("weights", lambda: torch.zeros(3).double())
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", one_hot())
                pyro.sample("x", Normal(read(z * weights), 1.0), obs=x)

        def guide(x):
            with pyro.plate("data", len(x)):
                pyro.sample("z", one_hot())

        return model, guide, X

    found, right = (gradient_of_weights(*pair(read)) for read in (lambda z: z[:, 0], lambda z: z[..., 0]))
    torch.testing.assert_close(found, right)
    assert right.abs().max() > 0.1


@pytest.mark.filterwarnings("ignore:Expected programs that accept codes")
def test_weights_that_are_all_zero_hide_nothing_in_a_chain():
    def pair(read):
        def model(x):
            weights = pyro.param("weights", lambda: torch.zeros(2).double())
            probs = torch.full((len(x), 2), 0.5).double()
            with pyro.plate("data", len(x)):
                for t in pyro.markov(range(2)):
                    z = pyro.sample(f"z{t}", OneHotCategorical(probs=probs))
                    pyro.sample(f"x{t}", Normal(read(z * weights), 1.0), obs=x[:, t])
                    probs = 0.1 + 0.8 * z

        return model, lambda x: None, torch.tensor([[0.3, -1.0], [1.0, 0.5]]).double()

    found, right = (gradient_of_weights(*pair(read)) for read in (lambda z: z[:, 0], lambda z: z[..., 0]))
    torch.testing.assert_close(found, right)
    assert right.abs().max() > 0.1


class Noisy(nn.Module):
    """A decoder with dropout in train mode: no two runs agree, which is no fault of its dimensions."""

    def __init__(self):
        super().__init__()
        self.dropout = nn.Dropout(0.5)
        self.linear = nn.Linear(3, 1).double()

    def forward(self, z):
        return self.linear(self.dropout(z))[..., 0]


def test_noise_of_a_program_is_no_disagreement():
    pair, x = of_each(Noisy(), one_hot)
    assert exact.elbo(pair, x).isfinite().all()


def test_continuous_latents_keep_their_values():
    """Their draws depend on the codes; a comparison with other draws would find a difference."""

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", one_hot())
            c = pyro.sample("c", dist.Normal(z @ LOGITS, 1.0))
            pyro.sample("x", dist.Normal(c + z[..., 0], 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", one_hot())
            pyro.sample("c", dist.Normal(z @ LOGITS - x, 0.5))

    assert exact.elbo(Pair(model, guide), X).isfinite().all()
