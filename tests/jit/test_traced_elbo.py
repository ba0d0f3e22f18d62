"""A traced ELBO equals the plain one, notices every change, and runs programs that it cannot record as they are."""

import itertools
import random
import re
import types
import warnings
import weakref
from functools import partial

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pyro.infer import ELBO, SVI, Trace_ELBO, TraceEnum_ELBO, TraceGraph_ELBO, TraceMeanField_ELBO
from pyro.infer.autoguide import AutoDelta, AutoDiagonalNormal, AutoNormal
from pyro.infer.util import torch_item
from torch import nn

from pyro_gvae.elbos.exact import ExactELBO
from pyro_gvae.elbos.free_bits import FreeBits
from pyro_gvae.estimators import estimator
from pyro_gvae.handlers import discretize, enumerated, relax
from pyro_gvae.jit import traced_elbo
from pyro_gvae.jit.traced_elbo import TracedELBO
from pyro_gvae.models.categorical_vae import CategoricalVAE
from pyro_gvae.programs.tensor_elbo import TensorELBO
from pyro_gvae.runtime.rng import own_randomness

D, N, K, B = 8, 2, 3, 5


def same(program):
    return program


# Name -> the plain ELBO, and the handler of model and guide.
ELBOS = {
    "trace": (Trace_ELBO, same),
    "mean-field": (TraceMeanField_ELBO, same),
    "particles": (lambda: Trace_ELBO(num_particles=3), same),
    "vectorized": (lambda: Trace_ELBO(num_particles=3, vectorize_particles=True, max_plate_nesting=1), same),
    "score function": (Trace_ELBO, discretize),
    "enumerated": (lambda: TraceEnum_ELBO(max_plate_nesting=1), enumerated),
    "graph": (TraceGraph_ELBO, same),
    "exact": (ExactELBO, discretize),
}


def new_vae(dtype=torch.float64, **options):
    torch.manual_seed(0)
    return CategoricalVAE(D, N, K, (6,), **options).to(dtype)


def train(elbo, handler, num_steps=30):
    """Train, and return losses, final weights and torch's final random state."""
    with pyro.get_param_store().scope():
        vae = new_vae()
        svi = SVI(handler(vae.model), handler(vae.guide), pyro.optim.Adam({"lr": 1e-2}), loss=elbo)
        torch.manual_seed(1)
        losses = []
        for step in range(num_steps):
            vae.temperature = 1 - step / (2 * num_steps)
            losses.append(svi.step(torch.rand(B, D, dtype=torch.float64).round()))
        weights = torch.cat([parameter.detach().flatten() for parameter in vae.parameters()])
    return torch.tensor(losses, dtype=torch.float64), weights, torch.get_rng_state()


def assert_same_training(traced, plain, tolerance):
    for found, expected in zip(traced[:2], plain[:2], strict=True):
        assert (found - expected).abs().max() <= tolerance * expected.abs().max()
    assert torch.equal(traced[2], plain[2])


@pytest.mark.parametrize("name", ELBOS)
def test_30_steps_are_those_of_the_plain_elbo(name):
    """Here, steps of stock SVI; `tests/train/test_step.py` tests our own step with every estimator and both types."""
    make_elbo, handler = ELBOS[name]
    traced = TracedELBO(make_elbo())
    found, expected = train(traced, handler), train(make_elbo(), handler)
    assert_same_training(found, expected, 1e-10)
    assert traced.num_recordings == 1, "annealing takes no new recording"


def test_sums_over_slices_run_as_they_are():
    """There is no warning, since Pyro takes only a small part of their time."""
    traced = TracedELBO(ExactELBO(slice_size=3))
    found, expected = train(traced, discretize, num_steps=3), train(ExactELBO(slice_size=3), discretize, num_steps=3)
    assert_same_training(found, expected, 1e-10)
    assert traced.num_recordings == 0


def test_the_comparison_notices_other_random_numbers():
    """The negative control: with one more draw, everything differs."""

    def draws_more(program):
        def drawing(x):
            torch.rand(1)
            return program(x)

        return drawing

    found, expected = train(TracedELBO(Trace_ELBO()), draws_more, num_steps=3), train(Trace_ELBO(), same, num_steps=3)
    with pytest.raises(AssertionError):
        assert_same_training(found, expected, 1e-3)


def loss_and_gradients(elbo, vae, x, handler=same, seed=7):
    vae.zero_grad()
    torch.manual_seed(seed)
    loss = elbo.loss_and_grads(handler(vae.model), handler(vae.guide), x)
    return loss, [parameter.grad for parameter in vae.parameters()]


def assert_as_plain(traced, vae, x, plain=None, tolerance=1e-10):
    plain = traced.elbo if plain is None else plain
    loss, gradients = loss_and_gradients(plain, vae, x)
    found_loss, found_gradients = loss_and_gradients(traced, vae, x)
    assert found_loss == pytest.approx(loss, rel=tolerance)
    for found, expected in zip(found_gradients, gradients, strict=True):
        assert (found is None) == (expected is None)
        if expected is not None:
            torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance * expected.abs().max().item())


@settings(max_examples=12)
@given(
    batch_size=st.integers(1, 4),
    num_latents=st.integers(1, 3),
    num_categories=st.integers(2, 18),
    learn_prior=st.booleans(),
    observation=st.sampled_from(["bernoulli", "gaussian", "continuous-bernoulli"]),
    elbo=st.sampled_from([Trace_ELBO, TraceMeanField_ELBO]),
)
def test_any_shape(batch_size, num_latents, num_categories, learn_prior, observation, elbo):
    with pyro.get_param_store().scope():
        torch.manual_seed(0)
        options = {"learn_prior": learn_prior, "observation": observation}
        vae = CategoricalVAE(4, num_latents, num_categories, (3,), **options).double()
        traced = TracedELBO(elbo())
        for _ in range(2):
            assert_as_plain(traced, vae, torch.rand(batch_size, 4, dtype=torch.float64).round())
        assert traced.num_recordings == 1


@pytest.mark.parametrize("method", ["loss", "differentiable_loss"])
def test_the_other_methods_of_an_elbo(method):
    vae, x = new_vae(), torch.rand(B, D, dtype=torch.float64).round()
    traced = TracedELBO(Trace_ELBO())

    def run(elbo):
        vae.zero_grad()
        torch.manual_seed(3)
        loss = getattr(elbo, method)(vae.model, vae.guide, x)
        if method == "loss":
            return [torch.tensor(loss)]
        (2 * loss).backward()
        return [loss.detach(), *(parameter.grad for parameter in vae.parameters())]

    expected = run(Trace_ELBO())
    for _ in range(2):
        torch.testing.assert_close(run(traced), expected, rtol=1e-10, atol=1e-10)
    assert traced.num_recordings == 1


def test_svi_evaluates_without_gradients():
    vae, x = new_vae(), torch.ones(B, D, dtype=torch.float64)
    losses = []
    for elbo in (Trace_ELBO(), TracedELBO(Trace_ELBO())):
        torch.manual_seed(0)
        losses.append(SVI(vae.model, vae.guide, pyro.optim.Adam({}), elbo).evaluate_loss(x))
    assert losses[1] == pytest.approx(losses[0], rel=1e-10)


def test_gradients_are_added_to_those_that_there_are():
    vae, x = new_vae(), torch.ones(B, D, dtype=torch.float64)
    traced = TracedELBO(Trace_ELBO())
    _, once = loss_and_gradients(traced, vae, x)
    once = [gradient.clone() for gradient in once]
    torch.manual_seed(7)
    traced.loss_and_grads(vae.model, vae.guide, x)
    for parameter, gradient in zip(vae.parameters(), once, strict=True):
        torch.testing.assert_close(parameter.grad, 2 * gradient)


def test_equal_gradients_do_not_share_memory():
    def model(x):
        mean = pyro.param("first", torch.zeros(2)) + pyro.param("second", torch.zeros(2))
        pyro.sample("x", dist.Normal(mean, 1.0).to_event(1), obs=x)

    TracedELBO(Trace_ELBO()).loss_and_grads(model, lambda x: None, torch.ones(2))
    first, second = (pyro.param(name).grad for name in ("first", "second"))
    assert torch.equal(first, second)
    first.add_(1.0)
    assert torch.equal(second, torch.tensor([-1.0, -1.0]))


# A graph is never stale: each change is noticed, whether or not it needs a new recording.


class Scaled(nn.Module):
    """A decoder with every kind of state."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(-2), nn.Linear(N * K, D), nn.Dropout(0.5))
        self.strength = 1.0
        self.options = {"shift": [0.0]}

    def forward(self, z):
        return self.strength * self.layers(z) + self.options["shift"][0] + getattr(self, "extra", 0.0)


def set_prior(vae):
    vae.prior_logits = torch.randn(N, K, dtype=torch.float64)


def replace_weight(vae):
    vae.decoder.layers[1].weight = nn.Parameter(torch.randn(D, N * K, dtype=torch.float64))


def add_parameter(vae):
    vae.decoder.extra = nn.Parameter(torch.ones(D, dtype=torch.float64))


def freeze(vae):
    vae.decoder.layers[1].weight.requires_grad_(False)


def shift(vae):
    vae.decoder.options["shift"][0] = 2.0


# Name -> the change, and the number of recordings after it.
CHANGES = {
    "temperature": (lambda vae: setattr(vae, "temperature", 0.3), 1),
    "prior in its place": (lambda vae: vae.prior_logits.normal_(), 1),
    "weights loaded": (lambda vae: vae.load_state_dict({k: v + 0.1 for k, v in vae.state_dict().items()}), 1),
    "prior replaced": (set_prior, 2),
    "parameter replaced": (replace_weight, 2),
    "parameter added": (add_parameter, 2),
    "parameter frozen": (freeze, 2),
    "eval mode": (lambda vae: vae.eval(), 2),
    "dropout": (lambda vae: setattr(vae.decoder.layers[2], "p", 0.1), 2),
    "a number": (lambda vae: setattr(vae.decoder, "strength", 3.0), 2),
    "a number in a list in a dictionary": (shift, 2),
    "a hook": (lambda vae: vae.decoder.register_forward_hook(lambda module, args, output: output + 1), 2),
    "a layer": (lambda vae: vae.decoder.layers.append(nn.Tanh()), 2),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_is_noticed(name):
    change, recordings = CHANGES[name]
    vae, x = new_vae(decoder=Scaled()), torch.rand(B, D, dtype=torch.float64).round()
    traced = TracedELBO(Trace_ELBO())
    with pyro.settings.context(module_local_params=True):
        before, _ = loss_and_gradients(traced, vae, x)
        change(vae)
        assert_as_plain(traced, vae, x)
        assert traced.num_recordings == recordings
        if name != "parameter frozen":
            assert loss_and_gradients(traced, vae, x)[0] != pytest.approx(before), "the change matters"
        assert traced.num_recordings == recordings


def test_annotations_of_a_hook_are_no_change():
    """Torch copies them into the hook's dictionary, and `dict[str, Tensor]` makes its own anew whenever it is read."""

    def load(module, state: dict[str, torch.Tensor], *rest):
        pass

    vae = new_vae(decoder=Scaled())
    vae.decoder.register_load_state_dict_pre_hook(load)
    traced = TracedELBO(Trace_ELBO())
    for _ in range(2):
        assert_as_plain(traced, vae, torch.ones(B, D, dtype=torch.float64))
    assert traced.num_recordings == 1


def test_another_type_is_noticed():
    vae = new_vae(torch.float32)
    traced = TracedELBO(Trace_ELBO())
    assert_as_plain(traced, vae, torch.ones(B, D), tolerance=1e-4)
    assert_as_plain(traced, vae.double(), torch.ones(B, D, dtype=torch.float64))


def test_parameters_that_change_their_type_in_place_are_noticed():
    layer = nn.Linear(D, D)

    def model(x):
        pyro.sample("x", dist.Normal(layer(x.to(layer.weight.dtype)), 1.0).to_event(2), obs=x)

    traced, x = TracedELBO(Trace_ELBO()), torch.randn(B, D)
    for _ in range(2):
        expected = Trace_ELBO().loss_and_grads(model, lambda x: None, x)
        assert traced.loss_and_grads(model, lambda x: None, x) == pytest.approx(expected, rel=1e-5)
        layer.double()


def test_old_recordings_are_used_again():
    vae, x = new_vae(decoder=Scaled()), torch.ones(B, D, dtype=torch.float64)
    traced = TracedELBO(Trace_ELBO())
    for _ in range(3):
        for batch in (x, x[:2]):
            for mode in (True, False):
                assert_as_plain(traced, vae.train(mode), batch)
    assert traced.num_recordings == 4


def test_recordings_are_bounded(monkeypatch):
    """A recording pays off only if it is replayed, so the number allowed grows with the replays."""
    monkeypatch.setattr(traced_elbo, "REPLAYS_PER_RECORDING", 4)
    vae, x = new_vae(), torch.ones(B, D, dtype=torch.float64)
    traced = TracedELBO(Trace_ELBO(), max_recordings=2)
    for size in (1, 2):
        assert_as_plain(traced, vae, x[:size])
    with pytest.warns(UserWarning, match=r"found 2 recordings, and now a tensor of shape \(3, 8\)"):
        assert_as_plain(traced, vae, x[:3])
    for size in (1, 2, 1, 2, 3):
        assert_as_plain(traced, vae, x[:size])
    assert (traced.num_recordings, len(traced._entries)) == (3, 2)
    with pytest.raises(ValueError, match="Expected max_recordings of at least 1, but found 0"):
        TracedELBO(Trace_ELBO(), max_recordings=0)


@pytest.mark.parametrize("where", ["argument", "attribute"])
def test_a_number_that_changes_in_each_step_ends_the_recordings(where, monkeypatch):
    monkeypatch.setattr(traced_elbo, "RUNS_PER_RECORDING", 10)
    state = types.SimpleNamespace(beta=0.0)

    def model(x, beta=None):
        pyro.sample("x", dist.Normal(state.beta if beta is None else beta, 1.0).expand([3]).to_event(1), obs=x)

    def guide(x, beta=None):
        pass

    def run(elbo, beta):
        state.beta = beta
        return elbo.loss(model, guide, torch.ones(3), *([beta] if where == "argument" else []))

    traced = TracedELBO(Trace_ELBO(), max_recordings=3)
    numbers = [0.5 * i for i in range(13)]
    what = r"the argument 1\.5 in place of 1\.0" if where == "argument" else r"\[1\.5\] among the objects of model"
    with pytest.warns(UserWarning, match=f"found 3 recordings, and now {what}.* Try a tensor") as said:
        losses = [run(traced, beta) for beta in numbers]
    assert len(said) == 1 and traced.num_recordings == 3
    assert losses == pytest.approx([run(Trace_ELBO(), beta) for beta in numbers])
    for _ in range(3):  # it changes no more
        assert run(traced, 9.0) == pytest.approx(run(Trace_ELBO(), 9.0))
    assert traced.num_recordings == 4


def test_an_argument_given_twice_is_two_arguments():
    def model(x, y):
        pyro.sample("x", dist.Normal(x * y.exp(), 1.0).to_event(1), obs=torch.ones(3))

    traced, x, y = TracedELBO(Trace_ELBO()), torch.ones(3), torch.tensor([0.0, 1.0, 2.0])
    for pair in ((x, x), (x, y), (y, x)):
        expected = Trace_ELBO().loss(model, lambda x, y: None, *pair)
        assert traced.loss(model, lambda x, y: None, *pair) == pytest.approx(expected)


@pytest.mark.parametrize("values", [(1.0, 2.0), (1, 1.0), (True, 2), ("a", "bb")])
def test_arguments_that_are_no_tensors(values):
    def model(x, *, option):
        mean = float(len(option)) if isinstance(option, str) else option * (1 if isinstance(option, float) else 5)
        pyro.sample("x", dist.Normal(torch.full((3,), float(mean)), 1.0).to_event(1), obs=x["x"])

    def guide(x, *, option):
        pass

    traced = TracedELBO(Trace_ELBO())
    for option in values:
        x = {"x": torch.zeros(3)}
        expected = Trace_ELBO().loss(model, guide, x, option=option)
        assert traced.loss(model, guide, x, option=option) == pytest.approx(expected)
    assert traced.num_recordings == 2


strength = 1.0


def test_global_variables_and_closures_are_guarded(monkeypatch):
    power = 1.0

    def helper(x):
        return strength * x**power

    def model(x):
        pyro.sample("x", dist.Normal(helper(x), 1.0).to_event(1), obs=torch.ones(3))

    def guide(x):
        pass

    traced, x = TracedELBO(Trace_ELBO()), torch.full((3,), 2.0)
    losses = [traced.loss(model, guide, x)]
    monkeypatch.setitem(globals(), "strength", 3.0)
    losses.append(traced.loss(model, guide, x))
    power = 2.0
    losses.append(traced.loss(model, guide, x))
    expected = [Trace_ELBO().loss(lambda x, m=m: model_with_mean(m), guide, x) for m in (2.0, 6.0, 12.0)]
    assert losses == pytest.approx(expected)


def model_with_mean(mean):
    pyro.sample("x", dist.Normal(torch.full((3,), mean), 1.0).to_event(1), obs=torch.ones(3))


def test_the_elbo_itself_is_guarded():
    vae, x = new_vae(), torch.ones(B, D, dtype=torch.float64)
    traced = TracedELBO(Trace_ELBO())
    assert_as_plain(traced, vae, x)
    traced.elbo.num_particles = 4
    assert_as_plain(traced, vae, x)


def test_pyros_parameters_are_guarded_and_trained():
    def model(x):
        scale = pyro.param("scale", torch.tensor(2.0), constraint=dist.constraints.positive)
        pyro.sample("x", dist.Normal(0.0, scale).expand([3]).to_event(1), obs=x)

    def guide(x):
        pass

    def run(elbo):
        pyro.clear_param_store()
        svi = SVI(model, guide, pyro.optim.SGD({"lr": 0.1}), elbo)
        losses = [svi.step(torch.ones(3)) for _ in range(3)]
        pyro.clear_param_store()
        losses += [svi.step(torch.ones(3)) for _ in range(2)]
        pyro.get_param_store()["scale"] = torch.tensor(5.0)
        losses += [svi.step(torch.ones(3)) for _ in range(2)]
        return [*losses, pyro.param("scale").item()]

    assert run(TracedELBO(Trace_ELBO())) == pytest.approx(run(Trace_ELBO()))


def test_an_autoguide():
    def model(x):
        mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(mean, 1.0), obs=x)

    def run(elbo):
        pyro.clear_param_store()
        torch.manual_seed(0)
        svi = SVI(model, AutoNormal(model), pyro.optim.Adam({"lr": 0.01}), elbo)
        return [svi.step(torch.arange(4.0)) for _ in range(5)]

    assert run(TracedELBO(Trace_ELBO())) == pytest.approx(run(Trace_ELBO()), rel=1e-5)


def test_running_statistics_change_once_a_step():
    def decoder():
        return nn.Sequential(nn.Flatten(-2), nn.Linear(N * K, 4), nn.BatchNorm1d(4), nn.Linear(4, D))

    x, states = torch.rand(B, D, dtype=torch.float64).round(), []
    for elbo in (Trace_ELBO(), TracedELBO(Trace_ELBO())):
        torch.manual_seed(1)
        vae = new_vae(decoder=decoder())
        with pyro.settings.context(module_local_params=True):
            for _ in range(3):
                elbo.loss_and_grads(vae.model, vae.guide, x)
        states.append(vae.decoder[2])
    assert states[0].num_batches_tracked == states[1].num_batches_tracked == 3
    torch.testing.assert_close(states[0].running_mean, states[1].running_mean)


def test_calls_in_other_handlers_go_to_the_plain_elbo():
    vae, x = new_vae(), torch.ones(B, D, dtype=torch.float64)
    traced = TracedELBO(Trace_ELBO())
    torch.manual_seed(0)
    loss = traced.loss_and_grads(vae.model, vae.guide, x)
    torch.manual_seed(0)
    with pyro.poutine.scale(scale=0.5):
        assert traced.loss_and_grads(vae.model, vae.guide, x) == pytest.approx(loss / 2)


# Programs that cannot be recorded: they run unrecorded, with one warning.


def assert_runs_unrecorded(elbo, new_pair, args, sentence, method="loss", **options):
    """Assert the numbers of the plain ELBO with the same seed, one warning, no recording, and equal random states."""
    found = []
    traced = TracedELBO(elbo, **options)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for loss in (elbo, traced):
            with own_randomness(3), pyro.get_param_store().scope():
                model, guide = new_pair()
                losses = [getattr(loss, method)(model, guide, *args) for _ in range(5)]
                gradients = [leaf.grad for _, leaf in pyro.get_param_store().named_parameters()]
                found.append((losses, gradients, [torch.rand(1).item(), random.random(), np.random.rand()]))
    torch.testing.assert_close(found[1], found[0], rtol=1e-6, atol=1e-6)
    [warning] = said
    assert re.search(f"Steps run without a recording: Expected .*{sentence}", str(warning.message))
    assert traced.num_recordings == 0


def item(x):
    return 2.0 if x.sum().item() > 0 else 1.0


def branch(x):
    return 2.0 if x.sum() > 0 else 1.0


def mask(x):
    return x[x > 0].sum()


def to_numpy(x):
    return torch.as_tensor(np.asarray(x).sum())


UNRECORDED = {
    "item": (item, r"found \.item\(\) after site 'z'"),
    "branch": (branch, r"found bool\(tensor\), as in `if tensor > 0`, after site 'z'"),
    "mask": (mask, r"found indexing by a mask after site 'z'"),
    "numpy": (to_numpy, r"found \.numpy\(\) after site 'z'|found numpy.asarray\(tensor\) after site 'z'"),
    "list": (lambda x: sum(x.tolist()[0]), r"found \.tolist\(\) after site 'z'"),
    "int": (lambda x: 1.0 / (1 + int(x[0, 0])), r"found int\(tensor\) after site 'z'"),
    "float": (lambda x: float(x[0, 0]), r"found float\(tensor\) after site 'z'"),
    "index": (lambda x: [1.0, 2.0][x[0, 0].long()], r"found a tensor as an index or a length after site 'z'"),
    "nonzero": (lambda x: x.nonzero().sum(), r"found nonzero after site 'z'"),
    "equal": (lambda x: float(torch.equal(x, x)), r"found equal after site 'z'"),
}


@pytest.mark.parametrize("name", UNRECORDED)
def test_what_depends_on_data_runs_as_it_is(name):
    function, sentence = UNRECORDED[name]

    def model(x):
        pyro.sample("z", dist.Normal(0.0, 1.0))
        mean = pyro.param("mean", torch.zeros(3))
        pyro.sample("x", dist.Normal(mean, 1.0 + function(x)).to_event(1), obs=x[0])

    def guide(x):
        pyro.sample("z", dist.Normal(0.0, 1.0))

    sentence = f"{sentence}.* Try the plain ELBO"
    for method in ("loss", "loss_and_grads"):
        assert_runs_unrecorded(Trace_ELBO(), lambda: (model, guide), [torch.ones(1, 3)], sentence, method)


def observing(mean):
    """Build a pair in whose model a function gives the mean in each run."""

    def model(x):
        pyro.sample("x", dist.Normal(mean(), 1.0).expand([3]).to_event(1), obs=x)

    return model, lambda x: None


def with_a_memory():
    calls = []

    def counted():
        calls.append(len(calls))
        return float(len(calls))

    return observing(counted)


UNSEEN = [torch.tensor(2.0)]


def reading_unseen():
    """Read a tensor that no guard can see, because a weak reference leads to it."""
    return observing(weakref.ref(UNSEEN[0]))


PAIRS = {
    # `make_fx` alone would make the number a constant, because the tensor is not one of its inputs.
    "a number of a buffer": (
        lambda: observing(torch.tensor(2.0).item),
        r"found \.item\(\) before the first site",
    ),
    "an iterator": (lambda: observing(partial(next, itertools.cycle([torch.tensor(2.0)]))), "found a cycle"),
    "an unseen tensor": (reading_unseen, "whose replacement a recording could not notice"),
    "Python's random numbers": (lambda: observing(random.random), "draws its random numbers from torch"),
    "NumPy's random numbers": (lambda: observing(np.random.rand), "draws its random numbers from torch"),
    "a memory": (with_a_memory, "changes its own Python state"),
    "a large array": (lambda: observing(partial(np.mean, np.zeros(2**16))), r"found a large array of shape \(65536,\)"),
}


@pytest.mark.parametrize("name", PAIRS)
def test_programs_that_no_recording_can_stand_for_run_as_they_are(name):
    """Each program runs exactly as often as with the plain ELBO."""
    new_pair, sentence = PAIRS[name]
    assert_runs_unrecorded(Trace_ELBO(), new_pair, [torch.ones(3)], sentence)


def test_large_arrays_run_as_they_are():
    def model(x):
        pyro.sample("x", dist.Normal(0.0, 1.0).expand([600]).to_event(1), obs=torch.as_tensor(x))

    assert_runs_unrecorded(Trace_ELBO(), lambda: (model, lambda x: None), [np.ones(600)], "found a large array")


def test_running_baselines_of_pyro_run_as_they_are():
    """These baselines replace an entry of the param store at each step."""

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.OneHotCategorical(logits=torch.zeros(K)))
            pyro.sample("x", dist.Normal(z[..., 0], 1.0), obs=x)

    def guide(x):
        logits = pyro.param("logits", torch.zeros(B, K))
        with pyro.plate("data", len(x)):
            options = {"baseline": {"use_decaying_avg_baseline": True}}
            pyro.sample("z", dist.OneHotCategorical(logits=logits), infer=options)

    sentence = "replaces a tensor by a new one"
    assert_runs_unrecorded(
        TraceGraph_ELBO(), lambda: (model, guide), [torch.arange(float(B))], sentence, "loss_and_grads"
    )


@pytest.mark.parametrize("check", [True, False])
def test_the_self_check_finds_what_nothing_else_finds(check, monkeypatch):
    """The graph is wrong on purpose: the rewriting turns a sum into a product."""
    from pyro_gvae.jit import graph

    def spoil(graph_module):
        for node in graph_module.graph.nodes:
            if node.target is torch.ops.aten.add.Tensor:
                node.target = torch.ops.aten.mul.Tensor

    monkeypatch.setattr(graph, "simplify", spoil)
    vae, x = new_vae(), torch.ones(B, D, dtype=torch.float64)
    traced = TracedELBO(Trace_ELBO(), check=check)
    expected, _ = loss_and_gradients(Trace_ELBO(), vae, x)
    if check:
        with pytest.warns(UserWarning, match="under the same seed, but found that its loss differs"):
            assert loss_and_gradients(traced, vae, x)[0] == expected
    else:
        loss_and_gradients(traced, vae, x)
        assert loss_and_gradients(traced, vae, x)[0] != pytest.approx(expected)


def test_the_self_check_counts_random_draws(monkeypatch):
    """The graph has the right loss, but draws one more random number."""
    from pyro_gvae.jit import graph

    def spoil(graph_module):
        *_, output = graph_module.graph.nodes
        with graph_module.graph.inserting_before(output):
            graph_module.graph.call_function(torch.ops.aten.rand.default, ([1],))

    monkeypatch.setattr(graph, "simplify", spoil)
    vae, x = new_vae(), torch.ones(B, D, dtype=torch.float64)
    with pytest.warns(UserWarning, match="found that the number of its random draws differs"):
        TracedELBO(Trace_ELBO()).loss_and_grads(vae.model, vae.guide, x)


@pytest.mark.parametrize("is_on", [True, False])
def test_validation_and_gradients_are_as_before(is_on):
    vae, x = new_vae(), torch.ones(B, D, dtype=torch.float64)
    with pyro.validation_enabled(is_on):
        settings_before = pyro.settings.get()
        TracedELBO(Trace_ELBO()).loss(vae.model, vae.guide, x)
        assert pyro.settings.get() == settings_before
        assert torch.distributions.Distribution._validate_args is is_on
    assert all(parameter.grad is None for parameter in vae.parameters())


def test_the_first_step_validates():
    vae = new_vae()
    with pyro.validation_enabled(True), pytest.raises(ValueError, match="Expected data in"):
        TracedELBO(Trace_ELBO()).loss(vae.model, vae.guide, torch.full((B, D), 2.0, dtype=torch.float64))


def test_a_loss_that_is_not_a_number_warns_as_in_pyro():
    def model(x):
        pyro.sample("x", dist.Normal(0.0, 1.0).expand([3]).to_event(1), obs=x)

    with pyro.validation_enabled(False):
        traced = TracedELBO(Trace_ELBO())
        traced.loss(model, lambda x: None, torch.ones(3))
        with pytest.warns(UserWarning, match="Encountered NaN: loss"):
            traced.loss(model, lambda x: None, torch.full((3,), torch.nan))


class Squares(ELBO):
    """The sum of squares of a program's result; the classes below turn it into a number in three ways."""

    def _get_trace(self, *_):
        raise TypeError

    def differentiable_loss(self, model, guide, *args):
        return model(*args).square().sum()


class ByTorchItem(Squares):
    def loss(self, model, guide, *args):
        return torch_item(self.differentiable_loss(model, guide, *args))


class ByItem(Squares):
    def loss(self, model, guide, *args):
        return self.differentiable_loss(model, guide, *args).item()


class AsTensor(TensorELBO):
    def tensor_loss(self, model, guide, *args):
        return model(*args).square().sum()

    def tensor_loss_and_grads(self, model, guide, *args):
        raise NotImplementedError


@pytest.mark.parametrize("elbo", [ByTorchItem(), AsTensor(), FreeBits(AsTensor(), 0.0), FreeBits(ByTorchItem(), 0.0)])
def test_losses_of_ones_own_are_recorded(elbo, monkeypatch):
    monkeypatch.setattr(FreeBits, "_planned", lambda *_: None)  # these programs have no latents
    monkeypatch.setattr(FreeBits, "_penalty", lambda *_: torch.tensor(0.5))
    traced, extra = TracedELBO(elbo), 0.5 * isinstance(elbo, FreeBits)
    for factor in (1.0, 2.0):
        assert traced.loss(torch.neg, None, factor * torch.ones(3)) == 3 * factor**2 + extra
    assert traced.num_recordings == 1


def test_a_number_in_a_loss_of_ones_own_runs_as_it_is():
    assert_runs_unrecorded(
        ByItem(), lambda: (torch.neg, None), [torch.ones(3)], r"found \.item\(\) before the first site"
    )


# Typical programs of users.


def assert_same_steps(elbo, new_pair, args, num_steps=4, num_recordings=1):
    """Assert equal losses and parameters of stock SVI, recorded and not."""
    found = []
    traced = TracedELBO(elbo)
    for loss in (elbo, traced):
        with own_randomness(3), pyro.get_param_store().scope():
            svi = SVI(*new_pair(), pyro.optim.Adam({"lr": 0.05}), loss)
            losses = [svi.step(*args) for _ in range(num_steps)]
            found.append((losses, dict(pyro.get_param_store().named_parameters())))
    torch.testing.assert_close(found[1], found[0], rtol=1e-4, atol=1e-4)
    assert traced.num_recordings == num_recordings


def test_sequential_plates_are_recorded():
    """Pyro takes their indices from a constant tensor."""

    def model(x):
        for i in pyro.plate("data", len(x)):
            z = pyro.sample(f"z_{i}", dist.OneHotCategorical(logits=torch.zeros(2)))
            pyro.sample(f"x_{i}", dist.Normal(z[..., 0], 1.0), obs=x[i])

    def guide(x):
        for i in pyro.plate("data", len(x)):
            pyro.sample(f"z_{i}", dist.OneHotCategorical(logits=pyro.param(f"q_{i}", torch.zeros(2))))

    assert_same_steps(Trace_ELBO(), lambda: (discretize(model), discretize(guide)), [torch.randn(3)])


def test_constants_are_known_and_what_is_written_to_them_is_not():
    def model(x):
        mean = torch.zeros(3)
        shift = 2.0 if torch.arange(3).sum() == 3 else 0.0
        mean += pyro.param("mean", torch.ones(3))
        pyro.sample("x", dist.Normal(mean + shift, 1.0).to_event(1), obs=x)

    def peeking(x):
        mean = torch.zeros(3)
        mean += x
        pyro.sample("x", dist.Normal(mean.sum().item(), 1.0).expand([3]).to_event(1), obs=x)

    assert_same_steps(Trace_ELBO(), lambda: (model, lambda x: None), [torch.randn(3)])
    assert_runs_unrecorded(Trace_ELBO(), lambda: (peeking, lambda x: None), [torch.ones(3)], r"found \.item\(\)")


HANDLED = {
    "score function": (Trace_ELBO, discretize),
    "relaxed": (Trace_ELBO, lambda program: relax(program, temperature=0.5)),
    "enumerated": (lambda: TraceEnum_ELBO(max_plate_nesting=1), enumerated),
    "exact": (ExactELBO, discretize),
}


@pytest.mark.parametrize("name", HANDLED)
def test_data_in_a_closure_and_transposed_logits_are_recorded(name):
    """Without arguments the first operation reads tensors from outside; (B, K, N) transposed is not contiguous."""
    make_elbo, handler = HANDLED[name]
    x = torch.randn(B)

    def model():
        with pyro.plate("data", B):
            z = pyro.sample("z", dist.OneHotCategorical(logits=torch.zeros(N, K)).to_event(1))
            pyro.sample("x", dist.Normal(z[..., 0].sum(-1), 1.0), obs=x)

    def guide():
        score = x * pyro.param("w", torch.ones(B))
        logits = torch.stack([score, 0 * score, -score], -1).unsqueeze(-1).expand(-1, -1, N).contiguous()
        with pyro.plate("data", B):
            pyro.sample("z", dist.OneHotCategorical(logits=logits.transpose(1, 2)).to_event(1))

    assert_same_steps(make_elbo(), lambda: (handler(model), handler(guide)), [])


@pytest.mark.parametrize("kind", [AutoDelta, AutoNormal, AutoDiagonalNormal])
@pytest.mark.parametrize("name", ["relaxed", "enumerated"])
def test_autoguides_of_plates_are_recorded(kind, name):
    """Autoguides create their plates anew in each call."""
    make_elbo, handler = HANDLED[name]

    def model(x):
        with pyro.plate("components", 2):
            locs = pyro.sample("locs", dist.Normal(0.0, 10.0))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.OneHotCategorical(logits=torch.zeros(2)))
            pyro.sample("x", dist.Normal(z @ locs, 1.0), obs=x)

    def new_pair():
        handled = handler(model)
        return handled, kind(handled if name == "relaxed" else pyro.poutine.block(handled, expose=["locs"]))

    assert_same_steps(make_elbo(), new_pair, [torch.tensor([0.0, 1.0, 10.0, 11.0, 12.0])])


class Recurrent(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.layer, self.out = kind(4, 3, num_layers=2, dropout=0.5, batch_first=True), nn.Linear(3, N * K)

    def forward(self, x):
        return self.out(self.layer(x.unflatten(-1, (2, 4)))[0][:, -1]).unflatten(-1, (N, K))


class Sparse(nn.Module):
    def __init__(self):
        super().__init__()
        self.out = nn.Linear(D, N * K)
        self.register_buffer("graph", (torch.rand(D, D) * torch.eye(D)).to_sparse())

    def forward(self, x):
        return self.out((self.graph @ x.T).T).unflatten(-1, (N, K))


@pytest.mark.parametrize("encoder", [lambda: Recurrent(nn.LSTM), lambda: Recurrent(nn.GRU), Sparse])
def test_recurrent_layers_and_sparse_buffers_are_recorded(encoder):
    def new_pair():
        vae = new_vae(torch.float32, encoder=encoder())
        return vae.model, vae.guide

    assert_same_steps(Trace_ELBO(), new_pair, [torch.rand(B, D).round()])


@pytest.mark.parametrize("name", ["reinforce-baseline", "exact-evidence", "vimco"])
def test_a_loss_that_is_recorded_for_training_is_recorded_for_evaluation(name):
    model, guide, elbo = estimator(name).bind(new_vae(torch.float32))
    traced = TracedELBO(elbo)
    losses = []
    for loss in (elbo, traced, traced):
        torch.manual_seed(1)
        losses.append(SVI(model, guide, pyro.optim.Adam({}), loss).evaluate_loss(torch.ones(B, D)))
    assert losses[1:] == pytest.approx(losses[:1] * 2, rel=1e-5) and traced.num_recordings == 1


def test_second_derivatives_are_those_of_the_plain_elbo():
    """Newton's method needs them, but a recording has none. Running statistics change once."""
    vae = new_vae(decoder=nn.Sequential(nn.Flatten(-2), nn.Linear(N * K, D), nn.BatchNorm1d(D)))
    weight, x, found = vae.decoder[1].weight, torch.rand(B, D, dtype=torch.float64).round(), []
    for elbo in (Trace_ELBO(), TracedELBO(Trace_ELBO())):
        vae.decoder[2].reset_running_stats()
        torch.manual_seed(1)
        loss = elbo.differentiable_loss(discretize(vae.model), discretize(vae.guide), x)
        [first] = torch.autograd.grad(loss, [weight], create_graph=True)
        [second] = torch.autograd.grad(first[0, 0], [weight])
        found.append([loss, first, second, vae.decoder[2].running_mean.clone(), torch.rand(1)])
    torch.testing.assert_close(found[1], found[0], rtol=1e-8, atol=1e-8)
    assert found[0][2].abs().max() > 0.1
