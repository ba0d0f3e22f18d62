"""`CategoricalVAE` in stock Pyro: relaxed, mean-field, enumerated; its parameters, temperatures and data checks."""

import copy
import inspect
import itertools
import math
import pickle
import warnings
from concurrent.futures import ThreadPoolExecutor

import pyro
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO, TraceEnum_ELBO, TraceMeanField_ELBO
from torch import nn
from torch.nn.functional import one_hot

from pyro_gvae.elbos.exact import ExactELBO
from pyro_gvae.handlers import discretize, enumerated, relax, straight_through, weigh_kl
from pyro_gvae.handlers.sites import discrete
from pyro_gvae.models.categorical_vae import CategoricalVAE

OBSERVATIONS = {
    "bernoulli": {},
    "continuous-bernoulli": {},
    "gaussian": {},
    "gaussian, fixed scale": {"scale": 0.3},
    "categorical": {"num_levels": 3},
}
B, N, K, D = 5, 2, 3, 6


def make(observation="bernoulli", **options):
    options = OBSERVATIONS.get(observation, {}) | options
    return CategoricalVAE(D, N, K, (7,), observation.split(",")[0], **options)


def data(observation="bernoulli", seed=0):
    x = torch.rand(B, D, generator=torch.Generator().manual_seed(seed))
    if observation == "bernoulli":
        return x.round()
    return (x * 3).floor() if observation == "categorical" else x


def brute_force(vae, x):
    """Compute (elbo, log_evidence), summed over data, by a loop over all codes."""
    log_joint, log_q = [], []
    posterior, prior = vae.encoder(x).log_softmax(-1), vae.prior_logits.log_softmax(-1)
    for code in itertools.product(range(K), repeat=N):
        z = one_hot(torch.tensor(code), K).to(x)
        log_joint.append((prior * z).sum() + vae.observation(vae.decoder(z).expand(B, -1)).log_prob(x))
        log_q.append((posterior * z).sum((-2, -1)))
    log_joint, log_q = torch.stack(log_joint), torch.stack(log_q)
    return (log_q.exp() * (log_joint - log_q)).sum(), log_joint.logsumexp(0).sum()


@pytest.mark.parametrize("learn_prior", [False, True])
@pytest.mark.parametrize("observation", OBSERVATIONS)
def test_stock_enumeration_equals_brute_force(observation, learn_prior):
    vae = make(observation, learn_prior=learn_prior).double()
    with torch.no_grad():
        vae.prior_logits.copy_(torch.randn(N, K))
    x = data(observation).double()
    elbo, log_evidence = brute_force(vae, x)
    stock = TraceEnum_ELBO(max_plate_nesting=1)
    for guide, expected in [(enumerated(vae.guide), elbo), (lambda x: None, log_evidence)]:
        loss = stock.differentiable_loss(enumerated(vae.model), guide, x)
        assert loss.item() == pytest.approx(-expected.item(), rel=1e-8)
        parameters = [p for p in vae.parameters() if p.requires_grad]
        found = torch.autograd.grad(loss, parameters, allow_unused=True, materialize_grads=True)
        reference = torch.autograd.grad(
            -expected, parameters, retain_graph=True, allow_unused=True, materialize_grads=True
        )
        for gradient, other in zip(found, reference, strict=True):
            torch.testing.assert_close(gradient, other, rtol=1e-6, atol=1e-10)


@pytest.mark.parametrize("local", [False, True])
@pytest.mark.parametrize("observation", OBSERVATIONS)
@pytest.mark.parametrize("loss", [Trace_ELBO, TraceMeanField_ELBO])
def test_the_relaxed_pair_trains_in_stock_svi(observation, local, loss):
    with pyro.settings.context(module_local_params=local):
        vae, x = make(observation, learn_prior=True), data(observation)
        before = {name: value.clone() for name, value in vae.named_parameters()}
        svi = SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": 1e-2}), loss())
        losses = [svi.step(x) for _ in range(3)]
        assert all(map(math.isfinite, losses))
        for name, value in vae.named_parameters():
            assert not torch.equal(value, before[name]), f"{name} was not trained"
        assert local == (len(pyro.get_param_store()) == 0)


@pytest.mark.parametrize("local", [False, True])
@pytest.mark.parametrize("stock", [TraceEnum_ELBO, Trace_ELBO])
def test_the_discrete_pair_trains_in_stock_svi(local, stock):
    handler = enumerated if stock is TraceEnum_ELBO else discretize
    with pyro.settings.context(module_local_params=local):
        vae, x = make(), data()
        svi = SVI(handler(vae.model), handler(vae.guide), pyro.optim.Adam({"lr": 1e-2}), stock(max_plate_nesting=1))
        before = brute_force(vae, x)[0].item()
        for _ in range(30):
            svi.step(x)
        assert brute_force(vae, x)[0].item() > before


def test_the_sites_are_the_promised_ones():
    vae, x = make(), data()
    trace = pyro.poutine.trace(vae.model).get_trace(x)
    site = trace.nodes["z"]
    assert isinstance(site["fn"].base_dist.base_dist, pyro.distributions.RelaxedOneHotCategorical)
    assert site["value"].shape == (B, N, K)
    torch.testing.assert_close(site["value"].sum(-1), torch.ones(B, N))
    assert [frame.name for frame in site["cond_indep_stack"]] == ["data"]
    assert trace.nodes["x"]["is_observed"] and torch.equal(trace.nodes["x"]["value"], x)
    assert vae.encoder(x).shape == (B, N, K)
    assert vae.decoder(torch.zeros(4, 2, N, K)).shape == (4, 2, D)


def test_the_programs_are_written_with_the_discrete_site():
    vae, x = make(), data()
    for program in (vae.model, vae.guide):
        written = pyro.poutine.trace(inspect.unwrap(program)).get_trace(vae, x)
        assert "z_log" not in written.nodes and written.nodes["z"]["value"].max(-1).values.eq(1).all()


def test_a_discrete_pair_may_exclude_categories():
    """Relaxed samples cannot exclude categories, so `relax` refuses them."""
    vae, x = make(), data()
    with torch.no_grad():
        vae.prior_logits[:, 0] = -math.inf
    assert pyro.poutine.trace(discretize(vae.model)).get_trace(x).nodes["z"]["value"][..., 0].eq(0).all()
    with pytest.raises(ValueError, match=r"a relaxed sample cannot exclude a category\. Try .* discretize"):
        vae.model(x)


@pytest.mark.parametrize("temperature", [0.01, 0.05, 0.1, 0.5, 1.0])
def test_the_pair_is_finite_at_every_temperature(temperature):
    vae, x = CategoricalVAE(D, 10, 10, (7,), temperature=temperature, prior_temperature=0.6 * temperature), data()
    with torch.no_grad():
        for parameter in vae.encoder.parameters():
            parameter.mul_(20)
    loss = Trace_ELBO().differentiable_loss(vae.model, vae.guide, x)
    loss.backward()
    assert loss.isfinite() and all(p.grad.isfinite().all() for p in vae.parameters())


def test_temperatures_may_be_annealed_and_differ():
    vae, x = make(temperature=0.9, prior_temperature=0.4), data()

    def found(program):
        return discrete(pyro.poutine.trace(program).get_trace(x).nodes["z"]["fn"]).temperature.item()

    assert (found(vae.guide), found(vae.model)) == (pytest.approx(0.9), pytest.approx(0.4))
    before = vae.temperature
    vae.temperature = 0.25
    vae.prior_temperature = torch.tensor(0.125)
    assert (found(vae.guide), found(vae.model)) == (0.25, 0.125)
    assert vae.temperature is before  # the same tensor, so that a recorded graph sees the change
    assert {"_temperature", "_prior_temperature"} <= vae.state_dict().keys()
    with pytest.raises(ValueError, match="positive temperature"):
        vae.temperature = 0.0


def test_annealing_a_deep_copy_leaves_the_original():
    vae = make(temperature=0.9)
    other = copy.deepcopy(vae)
    other.temperature = 0.1
    assert vae.temperature.item() == pytest.approx(0.9)


def test_two_models_of_one_name_are_refused_not_confused():
    first, second, x = make(), make(), data()
    SVI(first.model, first.guide, pyro.optim.Adam({"lr": 1e-2}), Trace_ELBO()).step(x)
    with pytest.raises(ValueError, match=r"param store to hold this module's .* Try pyro.clear_param_store\(\)"):
        SVI(second.model, second.guide, pyro.optim.Adam({"lr": 1e-2}), Trace_ELBO()).step(x)
    third = make(name="another")
    SVI(third.model, third.guide, pyro.optim.Adam({"lr": 1e-2}), Trace_ELBO()).step(x)


def test_users_networks():
    encoder = nn.Sequential(nn.Linear(D, N * K), nn.Unflatten(-1, (N, K)))
    decoder = nn.Sequential(nn.Flatten(-2), nn.Linear(N * K, D))
    vae = make(encoder=encoder, decoder=decoder)
    assert vae.encoder is encoder and vae.decoder is decoder
    loss = TraceEnum_ELBO(max_plate_nesting=1).loss(enumerated(vae.model), enumerated(vae.guide), data())
    assert loss == pytest.approx(-brute_force(vae, data())[0].item(), rel=1e-5)


def test_an_encoder_of_another_shape_is_refused():
    vae = make(encoder=nn.Sequential(nn.Linear(D, N * (K + 1)), nn.Unflatten(-1, (N, K + 1))))
    with pytest.raises(ValueError, match=r"encoder to return logits of shape \(5, 2, 3\), but found \(5, 2, 4\)"):
        vae.guide(data())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_networks_of_other_precision(dtype):
    vae, x = make().to(dtype), data().to(dtype)
    loss = Trace_ELBO().differentiable_loss(vae.model, vae.guide, x)
    assert loss.dtype == torch.promote_types(dtype, torch.float32)
    loss.backward()
    assert all(p.grad.isfinite().all() for p in vae.parameters())
    exact = TraceEnum_ELBO(max_plate_nesting=1).loss(enumerated(vae.model), enumerated(vae.guide), x)
    assert exact == pytest.approx(-brute_force(vae.double(), x.double())[0].item(), rel=0.05)


def test_pyro_may_look_at_the_relations_of_the_pair():
    relations = pyro.infer.inspect.get_model_relations(make().model, (data(),))
    assert "x" in relations["observed"] and "z_log" in relations["sample_sample"]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"num_categories": 1}, "num_categories of at least 2, but found 1"),
        ({"num_latents": 0}, "num_latents of at least 1, but found 0"),
        ({"hidden": (8, 0)}, r"hidden\[1\] of at least 1, but found 0"),
        ({"observation": "poisson"}, "observation among bernoulli, .*, but found 'poisson'"),
        ({"observation": "gaussian", "scale": -1.0}, "positive scale, but found -1.0"),
        ({"scale": 0.5}, "no scale for the observation 'bernoulli', but found scale=0.5"),
        ({"num_levels": 3}, "no num_levels for the observation 'bernoulli', but found num_levels=3"),
        ({"observation": "categorical", "num_levels": 1}, "num_levels of at least 2, but found 1"),
        ({"temperature": 0.0}, "positive temperature, but found 0.0"),
        ({"prior_temperature": -2.0}, "positive temperature, but found -2.0"),
    ],
)
def test_invalid_arguments_are_refused(options, sentence):
    with pytest.raises(ValueError, match=sentence):
        CategoricalVAE(**options)


@pytest.mark.parametrize(
    ("x", "sentence"),
    [
        (torch.zeros(B, 2, 3), r"shape \(B, 6\), but found \(5, 2, 3\). Try x.flatten\(1\)"),
        (torch.zeros(B, 7), r"shape \(B, 6\), but found \(5, 7\)"),
        (
            torch.full((B, D), 255.0),
            r"data in \[0, 1\], but found values from 255 to 255\. .* than Bernoulli",
        ),
        (torch.full((B, D), -0.1), r"data in \[0, 1\]"),
        (torch.full((B, D), math.nan), r"data in \[0, 1\], but found values from nan to nan"),
        (torch.zeros(0, D), r"shape \(B, 6\), but found \(0, 6\)"),
        (torch.zeros(B, D, dtype=torch.uint8), r"networks' dtype torch.float32, but found torch.uint8"),
        (torch.zeros(B, D).double(), r"Try x.to\(torch.float32\)"),
        ([[0.0] * D] * B, "data as a tensor, but found list"),
    ],
)
def test_wrong_data_are_refused_in_one_sentence(x, sentence):
    vae = make()
    with pytest.raises(ValueError, match=sentence):
        vae.model(x)
    with pytest.raises(ValueError, match=sentence):
        vae.guide(x)


def test_levels_are_whole_numbers():
    vae = make("categorical")
    with pytest.raises(ValueError, match=r"Expected data of whole numbers 0 to 2, but found values from 0\.5 to 0\.5"):
        vae.model(torch.full((B, D), 0.5))
    vae.model(torch.full((B, D), 2.0))


def test_training_warns_of_nothing():
    vae, x = make(), data()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": 1e-2}), Trace_ELBO()).step(x)
        TraceEnum_ELBO(max_plate_nesting=1).loss(enumerated(vae.model), enumerated(vae.guide), x)


# ------------------------------------------------------------------------------- as a module that is called


def check_same_gradients(vae, *losses):
    for gradients in zip(*(torch.autograd.grad(loss, list(vae.parameters())) for loss in losses), strict=True):
        torch.testing.assert_close(*gradients)


def test_a_call_gives_the_loss_of_each_datum():
    """The call is one sample of Trace_ELBO, with parameters and gradients; Pyro's param store stays empty."""
    vae, x = make(learn_prior=True), data()
    pyro.set_rng_seed(0)
    each = vae(x)
    assert each.shape == (B,) and not pyro.get_param_store().keys()
    pyro.set_rng_seed(0)
    together = Trace_ELBO().differentiable_loss(vae.model, vae.guide, x)
    assert each.sum().item() == pytest.approx(together.item(), rel=1e-5)
    check_same_gradients(vae, each.sum(), together)


def test_what_trains_by_calling_a_module_takes_it():
    vae, x = make(), data()
    pyro.set_rng_seed(0)
    found = vae(x)
    replica = vae._replicate_for_data_parallel()  # it has no parameters of its own
    for module in (vae, nn.DataParallel(vae), replica, copy.deepcopy(vae)):
        pyro.set_rng_seed(0)
        assert torch.equal(module(x), found) and found.shape == (B,)


def test_the_outermost_handler_says_what_a_call_draws():
    vae, x = make(), data()
    for handler in (relax(temperature=0.1), straight_through(kind="reinmax", temperature=1.0), weigh_kl(beta=0.5)):
        pyro.set_rng_seed(0)
        found = handler(vae)(x).sum()
        pyro.set_rng_seed(0)
        right = Trace_ELBO().differentiable_loss(handler(vae.model), handler(vae.guide), x)
        check_same_gradients(vae, found, right)
    with pytest.raises(ValueError, match="found a FactorizedOneHotCategorical: the gradient"):
        discretize(vae)(x)
    with torch.no_grad():
        losses = torch.stack([discretize(vae)(x).sum() for _ in range(300)])
    right = ExactELBO().loss(vae.model, vae.guide, x)
    assert (losses.mean() - right).abs() < 5 * losses.std() / 300**0.5


def test_calls_in_threads_do_not_meet_in_pyros_handlers():
    """DataParallel makes such threads, one for each device."""
    vae, x = make(), data()
    with ThreadPoolExecutor(3) as pool:
        losses = list(pool.map(lambda _: vae(x).sum().item(), range(60)))
    assert all(map(math.isfinite, losses))


def test_a_model_that_pyro_has_trained_is_pickled():
    vae, x = make(), data()
    svi = SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": 0.1}), Trace_ELBO())
    svi.step(x)
    model, guide = pickle.loads(pickle.dumps((vae.model, vae.guide)))
    assert model.__self__ is guide.__self__
    with pyro.get_param_store().scope():
        assert all(map(torch.equal, model.__self__.parameters(), vae.parameters()))
        guide(x)
    before = next(vae.parameters()).clone()
    svi.step(x)
    assert not torch.equal(before, next(vae.parameters())), "and is trained further"
