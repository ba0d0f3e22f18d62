"""A traced ELBO gives what the plain one gives, notices every change, and refuses what it cannot hold."""

import random

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pyro.infer import ELBO, SVI, Trace_ELBO, TraceEnum_ELBO, TraceGraph_ELBO, TraceMeanField_ELBO
from pyro.infer.autoguide import AutoNormal
from pyro.infer.util import torch_item
from torch import nn

from pyro_gvae.elbos.exact import ExactELBO
from pyro_gvae.elbos.free_bits import FreeBits
from pyro_gvae.handlers import discretize, enumerated
from pyro_gvae.jit import guards
from pyro_gvae.jit.capture import NotRecordableError
from pyro_gvae.jit.traced_elbo import TracedELBO
from pyro_gvae.models.categorical_vae import CategoricalVAE
from pyro_gvae.programs.kept import Kept
from pyro_gvae.programs.tensor_elbo import TensorELBO

D, N, K, B = 8, 2, 3, 5


def same(program):
    return program


# Name: the plain ELBO, and the handler of model and guide.
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
    """Losses, weights and torch's random state at the end."""
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
    """Of stock SVI; those of our own step, by every estimator and in both types, are in `tests/train/test_step.py`."""
    make_elbo, handler = ELBOS[name]
    traced = TracedELBO(make_elbo())
    found, expected = train(traced, handler), train(make_elbo(), handler)
    assert_same_training(found, expected, 1e-10)
    assert traced.num_recordings == 1, "annealing takes no new recording"


def test_sums_over_slices_are_refused_at_once():
    with pytest.raises(NotRecordableError, match="a sum over one slice of codes, but found 3 slices"):
        train(TracedELBO(ExactELBO(slice_size=3)), discretize, num_steps=1)


def test_the_comparison_notices_other_random_numbers():
    """The negative control: one more draw, and nothing is the same."""

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


# A stale graph is impossible: each change is seen, whether it takes a new recording or not.


class Scaled(nn.Module):
    """A decoder with all kinds of state."""

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


# Name: the change, and how many recordings there are after it.
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


def test_recordings_are_bounded():
    vae, x = new_vae(), torch.ones(B, D, dtype=torch.float64)
    traced = TracedELBO(Trace_ELBO(), max_recordings=2)
    for size in (1, 2, 3, 1):
        assert_as_plain(traced, vae, x[:size])
    assert (traced.num_recordings, len(traced._entries)) == (4, 2)
    with pytest.raises(ValueError, match="Expected max_recordings of at least 1, but found 0"):
        TracedELBO(Trace_ELBO(), max_recordings=0)


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


# Programs that a recording cannot hold.


def item(x):
    return 2.0 if x.sum().item() > 0 else 1.0


def branch(x):
    return 2.0 if x.sum() > 0 else 1.0


def mask(x):
    return x[x > 0].sum()


def to_numpy(x):
    return torch.as_tensor(np.asarray(x).sum())


REFUSED = {
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


@pytest.mark.parametrize("name", REFUSED)
def test_what_depends_on_data_is_refused(name):
    function, sentence = REFUSED[name]

    def model(x):
        pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(torch.zeros(3), 1.0 + function(x)).to_event(1), obs=x[0])

    def guide(x):
        pyro.sample("z", dist.Normal(0.0, 1.0))

    state, traced = torch.get_rng_state(), TracedELBO(Trace_ELBO())
    with pytest.raises(NotRecordableError, match=sentence) as refusal:
        traced.loss_and_grads(model, guide, torch.ones(1, 3))
    assert "Try the plain ELBO" in str(refusal.value)
    assert torch.equal(torch.get_rng_state(), state)


def test_buffers_are_not_read_as_constants_either():
    """`make_fx` alone would bake the number in, as the tensor is not one of its inputs."""
    scale = torch.tensor(2.0)

    def model(x):
        pyro.sample("x", dist.Normal(0.0, scale.item()).expand([3]).to_event(1), obs=x)

    with pytest.raises(NotRecordableError, match=r"found \.item\(\) before the first site"):
        TracedELBO(Trace_ELBO()).loss(model, lambda x: None, torch.ones(3))


def test_a_tensor_that_could_be_replaced_unnoticed_is_refused():
    class Hidden:
        __slots__ = ("tensor",)

    hidden = Hidden()
    hidden.tensor = torch.tensor(2.0)

    def model(x):
        pyro.sample("x", dist.Normal(0.0, hidden.tensor).expand([3]).to_event(1), obs=x)

    with pytest.raises(NotRecordableError, match="whose replacement a recording could not notice"):
        TracedELBO(Trace_ELBO()).loss(model, lambda x: None, torch.ones(3))


@pytest.mark.parametrize("draw", [random.random, np.random.rand], ids=["python", "numpy"])
def test_random_numbers_from_elsewhere_are_refused(draw):
    def model(x):
        pyro.sample("x", dist.Normal(draw(), 1.0).expand([3]).to_event(1), obs=x)

    with pytest.raises(NotRecordableError, match="draws its random numbers from torch"):
        TracedELBO(Trace_ELBO()).loss(model, lambda x: None, torch.ones(3))


def test_programs_with_a_memory_are_refused():
    calls = []

    def model(x):
        calls.append(len(calls))
        pyro.sample("x", dist.Normal(float(len(calls)), 1.0).expand([3]).to_event(1), obs=x)

    with pytest.raises(NotRecordableError, match="changes its own Python state"):
        TracedELBO(Trace_ELBO()).loss(model, lambda x: None, torch.ones(3))


def test_running_baselines_of_pyro_are_refused():
    """They replace an entry of the param store at each step."""
    vae = new_vae()

    def guide(x):
        with pyro.plate("data", len(x)):
            options = {"baseline": {"use_decaying_avg_baseline": True}}
            pyro.sample("z", dist.OneHotCategorical(logits=vae.encoder(x)).to_event(1), infer=options)

    with pytest.raises(NotRecordableError, match="puts a new tensor in the place of one"):
        TracedELBO(TraceGraph_ELBO()).loss_and_grads(
            discretize(vae.model), discretize(guide), torch.ones(B, D, dtype=torch.float64)
        )


@pytest.mark.parametrize("check", [True, False])
def test_the_self_check_finds_what_nothing_else_finds(check, monkeypatch):
    """A graph that is wrong on purpose: the rewriting turns a sum into a product."""
    from pyro_gvae.jit import graph

    def spoil(graph_module):
        for node in graph_module.graph.nodes:
            if node.target is torch.ops.aten.add.Tensor:
                node.target = torch.ops.aten.mul.Tensor

    monkeypatch.setattr(graph, "simplify", spoil)
    vae, x = new_vae(), torch.ones(B, D, dtype=torch.float64)
    traced = TracedELBO(Trace_ELBO(), check=check)
    if check:
        with pytest.raises(NotRecordableError, match="under the same seed, but found that its loss differs"):
            traced.loss_and_grads(vae.model, vae.guide, x)
    else:
        traced.loss_and_grads(vae.model, vae.guide, x)


def test_the_self_check_counts_random_draws(monkeypatch):
    """A graph with the right loss that takes one more number from the generator."""
    from pyro_gvae.jit import graph

    def spoil(graph_module):
        *_, output = graph_module.graph.nodes
        with graph_module.graph.inserting_before(output):
            graph_module.graph.call_function(torch.ops.aten.rand.default, ([1],))

    monkeypatch.setattr(graph, "simplify", spoil)
    vae, x = new_vae(), torch.ones(B, D, dtype=torch.float64)
    with pytest.raises(NotRecordableError, match="found that the number of its random draws differs"):
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
    """The sum of squares of a program's result, and three ways to make a number of it."""

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
    monkeypatch.setattr(FreeBits, "_penalty", lambda *_: torch.tensor(0.5))
    traced, extra = TracedELBO(elbo), 0.5 * isinstance(elbo, FreeBits)
    for factor in (1.0, 2.0):
        assert traced.loss(torch.neg, None, factor * torch.ones(3)) == 3 * factor**2 + extra
    assert traced.num_recordings == 1


def test_a_number_in_a_loss_of_ones_own_is_refused():
    assert ByItem().loss(torch.neg, None, torch.ones(3)) == 3
    with pytest.raises(NotRecordableError, match=r"found \.item\(\) before the first site"):
        TracedELBO(ByItem()).loss(torch.neg, None, torch.ones(3))


def test_guards_follow_what_a_program_refers_to():
    inner = {"numbers": [1.0, {2.0}]}
    layer = nn.Linear(2, 2)

    def program(x, default=layer):
        return inner, x

    guard = guards.Guard([program])
    assert set(map(id, guard.tensors.values())) == set(map(id, layer.parameters()))
    assert guard.holds()
    inner["numbers"][1].add(3.0)
    assert not guard.holds()
    assert guard.changes()


def test_what_was_found_out_is_no_state():
    class Loss:
        def __init__(self):
            self.kept = Kept()
            self.other = {}

    loss = Loss()
    guard = guards.Guard([loss])
    loss.kept.find("key", (), {}, lambda: torch.ones(1))
    assert guard.holds() and not guard.tensors
    loss.other["key"] = torch.ones(1)
    assert not guard.holds()
