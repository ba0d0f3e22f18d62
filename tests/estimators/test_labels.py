"""Batches whose discrete sites are all observed: there is one joint code. Stock Pyro is the oracle."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pairs import DATA, B, L, linear, normal, observe, one_hot, weights, with_gradients
from pyro import poutine
from pyro.infer import Trace_ELBO, TraceEnum_ELBO, TraceMeanField_ELBO
from table import COLUMNS

from pyro_gvae import enumerated, exact
from pyro_gvae.elbos.free_bits import FreeBits
from pyro_gvae.elbos.mean_field import MeanFieldELBO
from pyro_gvae.exact import Pair

LABELS = torch.eye(2).double()[torch.arange(B) % 2]  # of two categories, as DisARM takes them
INTEGERS = torch.arange(B) % 4


def style_model(x, y=None):
    """M2 as in Pyro's tutorial, with all labels or none."""
    with pyro.plate("data", len(x)):
        y = pyro.sample("y", one_hot(weights(2)), obs=y)
        z = pyro.sample("z", normal(torch.zeros(L).double()))
        observe(y, z, obs=x)


def style_guide(x, y=None):
    with pyro.plate("data", len(x)):
        if y is None:
            y = pyro.sample("y", one_hot(linear(2, x)))
        pyro.sample("z", normal(linear(L, x, y)))


def nothing_latent_model(x, y=None, k=None):
    with pyro.plate("data", len(x)):
        y = pyro.sample("y", one_hot(weights(2)), obs=y)
        k = pyro.sample("k", dist.Categorical(logits=linear(4, y)), obs=k)
        observe(y, weights(4, 2)[k], obs=x)


def nothing_latent_guide(x, y=None, k=None):
    with pyro.plate("data", len(x)):
        if y is None:
            pyro.sample("y", one_hot(linear(2, x)))
        if k is None:
            pyro.sample("k", dist.Categorical(logits=linear(4, x)))


STYLE = Pair(style_model, style_guide)
NOTHING = Pair(nothing_latent_model, nothing_latent_guide)


def with_loss(elbo, pair, *batch):
    return with_gradients(lambda: elbo.loss_and_grads(*pair, *batch))


def stock_of_labels(made):
    """Compute the loss of stock Pyro on the labelled batch, with the normal's KL in closed form if the loss has it."""
    stock = TraceMeanField_ELBO() if isinstance(made.elbo(), MeanFieldELBO) else Trace_ELBO()
    return with_loss(stock, STYLE, DATA, LABELS)


#: Estimators whose guide has another gradient than that of the ELBO.
OTHER_GUIDES = ("reweighted-wake-sleep", "tvo", "daps")


@pytest.mark.parametrize("name", [name for name in COLUMNS if not name.startswith(("exact-evidence", "exact-wake"))])
def test_a_fully_labelled_batch_is_that_of_stock_pyro_between_others(name):
    made = COLUMNS[name].make("y")
    model, guide, elbo = made.bind(STYLE)
    pyro.set_rng_seed(0)
    for batch in ((DATA,), (DATA, LABELS), (DATA,), (DATA, LABELS)):
        found, expected = with_loss(elbo, (model, guide), *batch), stock_of_labels(made)
        if name in OTHER_GUIDES:
            found, expected = ({key: own[key] for key in ("loss", "w2")} for own in (found, expected))
        if len(batch) == 2:
            torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
        else:
            assert (found["loss"] - expected["loss"]).abs() > 1e-3


@pytest.mark.parametrize("name", COLUMNS)
def test_without_any_latent_a_loss_is_the_log_likelihood(name):
    model, guide, elbo = COLUMNS[name].make("y").bind(NOTHING)
    expected = with_loss(Trace_ELBO(), NOTHING, DATA, LABELS, INTEGERS)
    found = with_loss(elbo, (model, guide), DATA, LABELS, INTEGERS)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


def test_sums_over_labelled_data_have_a_value_for_each_datum():
    found = exact.elbo(NOTHING, DATA, LABELS, INTEGERS)
    trace = poutine.trace(nothing_latent_model).get_trace(DATA, LABELS, INTEGERS)
    trace.compute_log_prob()
    expected = sum(trace.nodes[name]["log_prob"] for name in ("y", "k", "x"))
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(exact.log_evidence(NOTHING, DATA, LABELS, INTEGERS), expected)
    bounds = exact.bounds(NOTHING, DATA, LABELS, INTEGERS)
    torch.testing.assert_close(bounds.elbo, bounds.log_evidence)
    assert exact.elbo(STYLE, DATA, LABELS).shape == (B,)
    assert exact.cost(NOTHING, DATA, LABELS, INTEGERS).num_codes == 1


@pytest.mark.filterwarnings("ignore:TraceEnum_ELBO found no sample sites:UserWarning")  # stock Pyro warns, too
def test_stock_sums_take_labelled_batches_of_enumerated_programs():
    pair = [enumerated(program) for program in STYLE]
    found, expected = (with_loss(TraceEnum_ELBO(max_plate_nesting=1), one, DATA, LABELS) for one in (pair, STYLE))
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("by_name", [False, True])
def test_free_bits_leave_out_labels(by_name):
    threshold = 9.0
    loss = FreeBits(COLUMNS["exact"].make().elbo(), {"y": threshold, "z": threshold} if by_name else threshold)
    labelled, plain = with_loss(loss, STYLE, DATA, LABELS)["loss"], with_loss(loss.elbo, STYLE, DATA, LABELS)["loss"]
    drawn, own = (poutine.trace(run).get_trace(DATA, LABELS) for run in (style_guide, style_model))
    z, q, p = drawn.nodes["z"]["value"], drawn.nodes["z"]["fn"], own.nodes["z"]["fn"]
    kl = (q.log_prob(z) - p.log_prob(z)).mean()
    expected = B * (threshold - kl).clamp_min(0)
    assert expected > 0.1
    torch.testing.assert_close(labelled, (plain + expected).detach())
    with pytest.raises(ValueError, match="but found 'w'"):
        FreeBits(loss.elbo, {"w": threshold}).loss(*STYLE, DATA, LABELS)


@pytest.mark.parametrize("function", [exact.posterior, exact.sample_posterior, exact.mean_field])
def test_posteriors_of_labels_are_refused(function):
    with pytest.raises(ValueError, match=r"to compute its posterior, but found \['k', 'y'\] observed"):
        function(NOTHING, DATA, LABELS, INTEGERS)


def test_a_guide_that_draws_what_the_model_observes_is_refused():
    for name in ("exact", "reinforce-loo"):
        model, guide, elbo = COLUMNS[name].make().bind(Pair(lambda x: style_model(x, LABELS), style_guide))
        with pytest.raises(ValueError, match=r"guide to draw only latents of the model, but found 'y'"):
            elbo.loss(model, guide, DATA)


def no_discrete_model(x):
    with pyro.plate("data", len(x)):
        observe(pyro.sample("z", normal(torch.zeros(L).double())), obs=x)


def no_discrete_guide(x):
    with pyro.plate("data", len(x)):
        pyro.sample("z", normal(linear(L, x)))


@pytest.mark.parametrize("name", [name for name in COLUMNS if not name.startswith("per-site")])  # which name a site
def test_programs_without_any_discrete_site_are_refused(name):
    """An estimator that does nothing must say so."""
    model, guide, elbo = COLUMNS[name].make("y").bind(Pair(no_discrete_model, no_discrete_guide))
    with pytest.raises(ValueError, match="to have a discrete site, latent or observed, but found none"):
        elbo.loss_and_grads(model, guide, DATA)
