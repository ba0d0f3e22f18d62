"""Analytic KL terms: correct where the guide's dependences allow them, else refused. The exact sum is the oracle."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pairs import DATA, PROGRAMS
from pyro import poutine
from pyro.infer import TraceMeanField_ELBO

from pyro_gvae import CategoricalVAE, ExactELBO, make_step
from pyro_gvae.elbos.mean_field import MeanFieldELBO
from pyro_gvae.estimators import estimator
from pyro_gvae.exact import Pair
from pyro_gvae.handlers import straight_through

OPTIONS = {"st-gumbel-softmax": {"num_particles": 200}, "reinmax": {"num_particles": 200}}


def scores(elbo, model, guide, expected):
    """Return how many standard errors a mean loss is off."""
    losses = torch.tensor([elbo.loss(model, guide, DATA) for _ in range(30)])
    return abs(losses.mean() - expected) / (losses.std() / 30**0.5)


@pytest.mark.parametrize("kind", ["gumbel-softmax[kl=categorical]", *OPTIONS])
def test_an_analytic_kl_that_is_no_term_of_the_elbo_is_refused(kind):
    pair = Pair(*PROGRAMS["two layers, bottom-up"][:2])
    if kind == "gumbel-softmax[kl=categorical]":
        bound = estimator("gumbel-softmax", kl="categorical", temperature=0.5).bind(pair)
    else:
        bound = estimator(kind).bind(pair)
    for method in (bound.elbo.loss, bound.elbo.loss_and_grads, bound.elbo.differentiable_loss):
        with pytest.raises(ValueError, match=r"prior of 'below' .*, which depends on 'below' .*kl=\"sampled\""):
            method(bound.model, bound.guide, DATA)


def test_a_value_that_the_guide_computes_hides_no_dependence():
    def model(x):
        above = pyro.sample("above", dist.OneHotCategorical(logits=torch.zeros(2)))
        pyro.sample("value", dist.Normal(0.0, 1.0))
        pyro.sample("below", dist.OneHotCategorical(logits=above))

    def guide(x):
        below = pyro.sample("below", dist.OneHotCategorical(logits=torch.zeros(2)))
        value = pyro.sample("value", dist.Delta(below[..., 0]))
        pyro.sample("above", dist.OneHotCategorical(logits=torch.stack([value, -value], -1)))

    bound = estimator("reinmax").bind(Pair(model, guide))
    with pytest.raises(ValueError, match=r"prior of 'below' .*, which depends on 'below'"):
        bound.elbo.loss(bound.model, bound.guide, DATA)


@pytest.mark.filterwarnings("ignore:Failed to verify mean field restriction:UserWarning")
def test_the_stock_loss_of_the_refused_program_is_no_elbo():
    """The negative control."""
    pyro.set_rng_seed(0)
    pair = Pair(*PROGRAMS["two layers, bottom-up"][:2])
    model, guide = (straight_through(program, temperature=1.0) for program in pair)
    stock = TraceMeanField_ELBO(num_particles=3000, vectorize_particles=True)
    assert scores(stock, model, guide, ExactELBO().loss(*pair, DATA)) > 5


def test_random_numbers_are_those_of_the_stock_loss():
    pair = Pair(*PROGRAMS["two layers, top-down"][:2])
    model, guide = (straight_through(program, temperature=1.0) for program in pair)
    losses = []
    for elbo in (TraceMeanField_ELBO(), MeanFieldELBO()):
        pyro.set_rng_seed(0)
        losses.append(elbo.loss(model, guide, DATA))
    assert losses[0] == losses[1]


@pytest.mark.usefixtures("recorded")
def test_it_is_recorded_for_batches_of_any_size():
    """An unrecorded step would warn, and warnings are errors."""
    vae = CategoricalVAE(data_dim=6, num_latents=2, num_categories=3, hidden=(5,))
    step = make_step(vae, estimator("gumbel-softmax", kl="categorical"))
    for batch_size in (8, 8, 5, 5, 3, 8):
        assert step(torch.ones(batch_size, 6)).isfinite()


def test_a_latent_without_rsample_is_refused_or_scored():
    def model(x):
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", dist.OneHotCategorical(logits=torch.zeros(2).double()))
            n = pyro.sample("n", dist.Poisson(1 + y[..., 0]))
            pyro.sample("x", dist.Normal(n, 1.0), obs=x[:, 0])

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.OneHotCategorical(logits=x[:, :2]))
            pyro.sample("n", dist.Poisson(pyro.param("rate", torch.ones(len(x)).double())))

    model_and_guide = Pair(model, guide)
    bound = estimator("st-gumbel-softmax").bind(model_and_guide)
    with pytest.raises(ValueError, match=r"found 'n', a Poisson without rsample: .*Try the sampled KL \(kl=\"sampled"):
        bound.elbo.loss_and_grads(bound.model, bound.guide, DATA)
    bound = estimator("st-gumbel-softmax", kl="sampled").bind(model_and_guide)
    bound.elbo.loss_and_grads(bound.model, bound.guide, DATA)
    assert pyro.param("rate").grad.abs().max() > 0


@pytest.mark.parametrize("event_dim", [0, 1])
@pytest.mark.parametrize("kind", ["gumbel-softmax[temperature=0.5]", "reinmax", "z"])
def test_the_density_of_a_value_that_an_autoguide_computes_counts(kind, event_dim):
    """Data do not depend on the code, so the exact loss is that of any soft code."""
    logs = torch.tensor([0.3, -0.2])[: event_dim + 1].squeeze().double().requires_grad_()

    def model(x):
        widths = pyro.sample("widths", dist.Gamma(torch.full_like(logs, 2.0), 1.0).to_event(event_dim))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.OneHotCategorical(logits=torch.tensor([0.1, 0.4]).double()))
            pyro.sample("x", dist.Normal(0.0, 1 + widths.sum()), obs=x[:, 0])

    def guide(x):
        pyro.sample("widths", dist.Delta(logs.exp(), log_density=-logs.sum(), event_dim=event_dim))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.OneHotCategorical(logits=torch.zeros(2).double()))

    found = []
    for name in ("exact", kind if kind != "z" else {"z": "reinmax"}):
        bound = estimator(name).bind(Pair(model, guide))
        loss = bound.elbo.differentiable_loss(bound.model, bound.guide, DATA)
        found.append((loss.detach(), *torch.autograd.grad(loss, [logs])))
    torch.testing.assert_close(found[1], found[0])


@pytest.mark.parametrize("half", ["model", "guide"])
@pytest.mark.parametrize("what", ["scale", "mask"])
@pytest.mark.parametrize("kind", ["st-gumbel-softmax", "z"])
def test_latents_that_model_and_guide_weigh_differently_are_refused(kind, what, half):
    def weighed(program):
        weight = torch.arange(len(DATA)) > 0 if what == "mask" else 0.5
        return getattr(poutine, what)(program, **{what: weight})

    model, guide, _ = PROGRAMS["a normal given a code"]
    pair = Pair(weighed(model), guide) if half == "model" else Pair(model, weighed(guide))
    bound = estimator(kind if kind != "z" else {"y": "st-gumbel-softmax"}).bind(pair)
    with pytest.raises(ValueError, match=rf"model and guide to {what} 'y' alike"):
        bound.elbo.loss(bound.model, bound.guide, DATA)
    both = Pair(weighed(model), weighed(guide))
    bound = estimator("st-gumbel-softmax").bind(both)
    assert torch.tensor(bound.elbo.loss(bound.model, bound.guide, DATA)).isfinite()
