"""Pairs bound to their data: one minibatch for all runs of a loss, further arguments, batches of a DataLoader."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from pyro_gvae import ExactELBO, ExactEvidence, estimator, exact, make_step
from pyro_gvae.elbos.score import ReinforceLOO
from pyro_gvae.evaluate.importance import importance_weighted
from pyro_gvae.exact import Pair

# Two symmetric clusters: every datum has the same ELBO and, with its own posterior, the same log p(x).
CENTERS = torch.tensor([-5.0, 5.0])
X = CENTERS.repeat(20)


def subsampled(seen):
    def model(x):
        with pyro.plate("data", 40, subsample_size=10) as rows:
            seen.append(rows)
            z = pyro.sample("z", dist.OneHotCategorical(logits=torch.zeros(2)))
            pyro.sample("x", dist.Normal(z @ CENTERS, 1.0), obs=x[rows])

    def guide(x):
        with pyro.plate("data", 40, subsample_size=10) as rows:
            seen.append(rows)
            pyro.sample("z", dist.OneHotCategorical(logits=torch.stack([-x[rows], x[rows]], -1)))

    return Pair(model, guide)


def right_elbo():
    q = torch.tensor([-5.0, 5.0]).softmax(0)
    joint = dist.Normal(CENTERS, 1.0).log_prob(torch.tensor(5.0)) - torch.tensor(2.0).log()
    return 40 * (q * (joint - q.log())).sum().item(), 40 * joint.logsumexp(0).item()


@pytest.mark.parametrize(
    "name", ["exact", "reinforce-loo", "local-expectation", "disarm-iw", "vimco", "rebar", "reinmax"]
)
def test_model_and_guide_see_the_same_rows(name):
    """Compare with the closed form; if each program drew its own rows, the loss would be over ten times as large."""
    model, guide, elbo = estimator(name).bind(subsampled([]))
    assert -elbo.loss(model, guide, X) == pytest.approx(right_elbo()[0], abs=0.5)


def test_every_slice_of_codes_sees_the_same_rows():
    seen = []
    pair = subsampled(seen)
    assert -ExactEvidence(slice_size=1).loss(pair.model, pair.guide, X) == pytest.approx(right_elbo()[1], abs=1e-3)
    assert exact.bounds(pair, X, slice_size=1).elbo.sum().item() == pytest.approx(right_elbo()[0], abs=1e-3)


LOSSES = {
    "elbo": lambda pair: exact.elbo(pair, X),
    "evidence": lambda pair: exact.log_evidence(pair, X),
    "a new loss": lambda pair: ExactELBO().loss(pair.model, pair.guide, X),
    "a new sampled loss": lambda pair: estimator("reinforce-loo").bind(pair).elbo.loss(pair.model, pair.guide, X),
}


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_each_loss_draws_new_rows(loss):
    """The first runs only analyse the programs, and restore the random states."""
    seen = []
    pair = subsampled(seen)
    drawn = []
    for _ in range(3):
        loss(pair)
        drawn.append(frozenset(seen[-1].tolist()))
    assert len(set(drawn)) == 3


def test_rows_follow_from_the_seed_whether_or_not_a_loss_knows_the_programs():
    seen = []
    pair, elbo = subsampled(seen), ExactELBO()
    for _ in range(2):
        pyro.set_rng_seed(1)
        elbo.loss(pair.model, pair.guide, X)
        seen.append(None)
    first, second = seen[: seen.index(None)], seen[seen.index(None) + 1 : -1]
    assert torch.equal(first[-1], second[-1]) and all(torch.equal(rows, second[0]) for rows in second)


class Conditional(nn.Module):
    """A conditional VAE: both programs take a label c, too."""

    def __init__(self):
        super().__init__()
        self.prior, self.encoder = nn.Linear(3, 6), nn.Linear(7, 6)
        self.register_buffer("means", torch.randn(2, 3, 4))

    def model(self, x, c):
        pyro.module("cvae", self)
        with pyro.plate("data", len(x)):
            prior = dist.OneHotCategorical(logits=self.prior(c).unflatten(-1, (2, 3)))
            z = pyro.sample("z", prior.to_event(1))
            pyro.sample("x", dist.Normal(torch.einsum("...nk,nkd->...d", z, self.means), 1.0).to_event(1), obs=x)

    def guide(self, x, c):
        pyro.module("cvae", self)
        with pyro.plate("data", len(x)):
            logits = self.encoder(torch.cat([x, c], -1)).unflatten(-1, (2, 3))
            pyro.sample("z", dist.OneHotCategorical(logits=logits).to_event(1))


@pytest.mark.usefixtures("recorded")
def test_further_arguments_reach_both_programs():
    vae, x, c = Conditional(), torch.randn(6, 4), torch.eye(3)[[0, 1, 2, 0, 1, 2]]
    right = -ExactELBO().loss(vae.model, vae.guide, x, c)
    assert exact.elbo(vae, x, c).sum().item() == pytest.approx(right, rel=1e-5)
    assert exact.elbo(vae, x, c=c).sum().item() == pytest.approx(right, rel=1e-5)
    [batch] = DataLoader(TensorDataset(x, c), batch_size=6)
    assert exact.elbo(vae, batch).sum().item() == pytest.approx(right, rel=1e-5)
    for arguments in ((x, c), ([x, c],)):
        step = make_step(like(vae), estimator("exact"))
        assert step(*arguments).item() == pytest.approx(-right / 6, rel=1e-5)


def like(vae):
    copy = Conditional()
    copy.load_state_dict(vae.state_dict())
    return copy


def test_importance_weights_take_each_datum_with_its_label():
    vae, x, c = Conditional(), torch.randn(6, 4), torch.eye(3)[[0, 1, 2, 0, 1, 2]]
    found = importance_weighted(vae, (x, c), 2000, max_memory=1e5)
    assert ((found.bound - exact.log_evidence(vae, x, c)).abs() < 5 * found.sampling_error + 1e-4).all()


def test_a_step_without_data_says_so():
    with pytest.raises(ValueError, match=r"Expected a batch with a tensor of data"):
        make_step(Conditional(), estimator("exact"))(3)


@pytest.mark.parametrize("drawn", [True, False])
@pytest.mark.parametrize("loss", [ExactELBO(), ReinforceLOO(num_particles=2)])
def test_plates_of_one_name_have_one_size(loss, drawn):
    """Otherwise the second plate would get the rows of the first."""

    def plate(size):
        return pyro.plate("data", size) if drawn else pyro.plate("data", 20, subsample=torch.arange(size))

    def model(x):
        with plate(5):
            z = pyro.sample("z", dist.OneHotCategorical(torch.ones(3)))
            pyro.sample("x", dist.Normal(z[..., 0], 1.0), obs=x)
        with plate(2):
            pyro.sample("other", dist.Normal(0.0, 1.0), obs=x[:2])

    def guide(x):
        with plate(5):
            pyro.sample("z", dist.OneHotCategorical(torch.ones(3)))

    with pytest.raises(ValueError, match=r"to have the same size, .* but found 'data' with 5 and with 2 data"):
        loss.loss(model, guide, torch.zeros(5))


@pytest.mark.parametrize(
    "call",
    [
        lambda pair: exact.elbo((pair.model, pair.guide), X),
        lambda pair: exact.log_evidence(pair.model, X),
        lambda pair: estimator("exact").bind((pair.model, pair.guide)),
        lambda pair: importance_weighted((pair.model, pair.guide), X),
    ],
)
def test_what_is_no_pair_is_refused(call):
    with pytest.raises(ValueError, match=r"Expected a model and its guide, but found a .* Try exact\.Pair"):
        call(subsampled([]))


@pytest.mark.parametrize("name", ["elbo", "log_evidence", "posterior", "cost"])
def test_no_data_are_refused(name):
    with pytest.raises(ValueError, match="Expected one datum or more, but found none"):
        getattr(exact, name)(subsampled([]), X[:0])


def test_numbers_of_particles_are_whole():
    with pytest.raises(ValueError, match=r"Expected a whole number of particles, but found num_particles=2\.5"):
        importance_weighted(subsampled([]), X, 2.5)
    with pytest.raises(ValueError, match="Expected a whole number of particles"):
        estimator("reinforce-loo", num_particles=2.5)
