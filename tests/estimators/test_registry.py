"""The registry: every entry works with our VAE and with a user's pair, and does what its row says."""

import dataclasses
import pickle
from typing import get_args

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI

from pyro_gvae import exact
from pyro_gvae.config.names import DatasetName, EstimatorName, ObservationName
from pyro_gvae.data.datasets import DATASETS, TABLES
from pyro_gvae.elbos.exact import ExactEvidence
from pyro_gvae.estimators import ESTIMATORS, estimator
from pyro_gvae.exact import Pair
from pyro_gvae.handlers import discretize
from pyro_gvae.models.categorical_vae import CategoricalVAE
from pyro_gvae.models.observations import OBSERVATIONS

OPTIONS = [*((name, {}) for name in ESTIMATORS), ("gumbel-softmax", {"kl": "categorical"})]
X = torch.rand(8, 6, generator=torch.Generator().manual_seed(0)).round()


def user_pair(num_categories):
    logits = torch.zeros(8, 2, num_categories, requires_grad=True)

    def model(x):
        means = pyro.param("means", torch.randn(2 * num_categories, 6))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.OneHotCategorical(logits=torch.zeros(2, num_categories)).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=z.flatten(-2) @ means).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.OneHotCategorical(logits=pyro.param("logits", logits)).to_event(1))

    return Pair(model, guide)


@pytest.mark.parametrize(("name", "options"), OPTIONS)
def test_every_estimator_trains_our_pair_in_stock_svi(name, options):
    chosen = estimator(name, **options)
    vae = CategoricalVAE(6, 2, chosen.num_categories or 3, (16,))
    before = exact.log_evidence(vae, X).mean().item()
    model, guide, elbo = chosen.bind(vae)
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 6e-2}), loss=elbo)
    for _ in range(10):
        svi.step(X)
    assert exact.log_evidence(vae, X).mean().item() > before + 0.2


@pytest.mark.parametrize(("name", "options"), OPTIONS)
def test_every_estimator_trains_a_users_pair_in_stock_svi(name, options):
    """The pair's parameters are in the param store, not in a module."""
    chosen = estimator(name, **options)
    pair = user_pair(chosen.num_categories or 3)
    before = ExactEvidence().loss(*pair, X)
    model, guide, elbo = chosen.bind(pair)
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.1}), loss=elbo)
    for _ in range(15):
        svi.step(X)
    assert ExactEvidence().loss(*pair, X) < before - 0.2 * len(X)


@pytest.mark.parametrize("name", ESTIMATORS)
def test_rows_say_what_they_are(name):
    row = estimator(name)
    assert row.name == name and row.reference


def outcome(chosen, pair):
    """Return the loss of a step, or the sentence that refuses it."""
    torch.manual_seed(0)
    model, guide, elbo = chosen.bind(pair)
    with pyro.get_param_store().scope():
        try:
            return elbo.loss_and_grads(model, guide, X)
        except (ValueError, NotImplementedError) as refusal:
            return str(refusal)


def is_inert(chosen):
    """Return whether an estimator's handler changes neither relaxed nor discrete programs."""
    num_categories = chosen.num_categories or 3
    pairs = CategoricalVAE(6, 2, num_categories, (16,)), user_pair(num_categories)
    without = dataclasses.replace(chosen, handler=None)
    return all(outcome(chosen, pair) == outcome(without, pair) for pair in pairs)


@pytest.mark.parametrize(("name", "options"), OPTIONS)
def test_a_handler_is_declared_where_it_acts(name, options):
    """Losses that read programs declare no handler, since it would not act: they are the negative control."""
    chosen = estimator(name, **options)
    declared = chosen.handler or discretize
    assert is_inert(dataclasses.replace(chosen, handler=declared)) == (chosen.handler is None)


#: Options with which estimators still sample something of a small pair.
FEW_CODES = {"top-c": {"num_codes": 4}}


@pytest.mark.parametrize("name", ESTIMATORS)
def test_only_exact_estimators_repeat_their_loss(name):
    row = estimator(name, **FEW_CODES.get(name, {}))
    model, guide, elbo = row.bind(CategoricalVAE(6, 2, row.num_categories or 3, (16,)))
    repeats = len({round(elbo.loss(model, guide, X), 3) for _ in range(4)}) == 1
    assert repeats == row.is_exact


def test_unknown_names_and_options_are_refused():
    with pytest.raises(ValueError, match=r"Expected an estimator among gumbel-softmax, .*, but found 'gumble'"):
        estimator("gumble")
    with pytest.raises(ValueError, match=r"Expected options that 'exact' has .*, but .*'temperature'"):
        estimator("exact", temperature=1.0)
    with pytest.raises(ValueError, match=r"at least one particle"):
        estimator("gumbel-softmax", num_particles=0)
    with pytest.raises(ValueError, match=r"positive temperature, but found -1.0"):
        estimator("gumbel-softmax", temperature=-1.0)
    with pytest.raises(ValueError, match=r"Expected kl to be one of relaxed, categorical, but found 'kl'"):
        estimator("gumbel-softmax", kl="kl")


@pytest.mark.parametrize("own", [None, 0.4])
def test_a_relaxation_takes_two_thirds_where_a_program_has_no_temperature(own):
    infer = {} if own is None else {"temperature": own}

    def program():
        pyro.sample("z", dist.OneHotCategorical(logits=torch.zeros(3)), infer=infer)

    model, guide, _ = estimator("gumbel-softmax").bind(Pair(program, program))
    for handled in (model, guide):
        found = pyro.poutine.trace(handled).get_trace().nodes["z_log"]["fn"].temperature
        assert float(found) == pytest.approx(own or 2 / 3)


def test_names_may_have_options_in_brackets():
    assert estimator("gumbel-softmax[kl=categorical]").approximates == "the ELBO of the discrete model, at soft samples"
    assert estimator("per-site[z=exact,default=reinforce-loo]").name == "per-site[z=exact,default=reinforce-loo]"


def test_the_command_line_knows_the_same_names():
    assert set(get_args(EstimatorName)) == set(ESTIMATORS)
    assert set(get_args(DatasetName)) == {*DATASETS, *TABLES}
    assert set(get_args(ObservationName)) == set(OBSERVATIONS)


USED = [*OPTIONS, ("reinforce-baseline", {"baseline": "neural", "data_dim": 6, "hidden": (5,)})]


@pytest.mark.parametrize(("name", "options"), USED)
def test_a_loss_that_was_used_can_be_pickled(name, options):
    model, guide, elbo = estimator(name, **options).bind(user_pair(2))
    elbo.loss_and_grads(model, guide, X)
    copied = pickle.loads(pickle.dumps(elbo))
    losses = []
    for each in (elbo, copied):
        pyro.set_rng_seed(0)
        losses.append(each.loss(model, guide, X))
    assert losses[0] == losses[1]
