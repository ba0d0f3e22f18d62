"""The training step: losses and weights of the plain ELBO, one optimizer, and no other side effects."""

import logging
import warnings

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

from pyro_gvae.config.train import TrainConfig
from pyro_gvae.estimators import ESTIMATORS, estimator, own_state
from pyro_gvae.models.categorical_vae import CategoricalVAE
from pyro_gvae.train import step as steps
from pyro_gvae.train.ranges import widened
from pyro_gvae.train.step import make_step

recorded = pytest.mark.usefixtures("recorded")

D, N, K, B = 8, 2, 3, 5
TOLERANCES = {torch.float64: 1e-10, torch.float32: 1e-4}
OPTIONS = [
    *((name, {}) for name in ESTIMATORS),
    ("gumbel-softmax", {"kl": "categorical"}),
    ("exact", {"slice_size": 4}),
]


def new_vae(dtype=torch.float64, num_categories=K, **options):
    torch.manual_seed(0)
    return CategoricalVAE(D, N, num_categories, (6,), **options).to(dtype)


def batches(count, dtype=torch.float64, size=B):
    torch.manual_seed(1)
    return torch.rand(count, size, D, dtype=dtype).round()


def weights(vae):
    return torch.cat([parameter.detach().flatten() for parameter in vae.parameters()])


def plainly(vae, chosen, xs, lr=1e-2, optimizer="Adam"):
    """Take the same steps, written with Pyro's ELBO and torch's optimizer."""
    model, guide, elbo = chosen.bind(vae)
    parameters = [*vae.parameters(), *own_state(elbo).parameters()]
    chosen_optimizer = getattr(torch.optim, optimizer)(parameters, lr=lr)
    losses = []
    for x in xs:
        chosen_optimizer.zero_grad()
        with pyro.get_param_store().scope():
            losses.append(elbo.loss_and_grads(model, guide, x) / len(x))
        chosen_optimizer.step()
    return torch.tensor(losses, dtype=torch.float64)


# This is the one sweep over the registry with recorded steps. One recording serves all of them, and an error in one of
# them changes the weights of the next. In single precision, Adam makes full steps from gradients that are only rounding
# errors, as where all particles are the same code: use SGD there, and one row of each family.
FAMILIES = ["gumbel-softmax", "gumbel-rao", "reinforce-baseline", "vimco", "disarm", "rebar", "local-expectation"]


@recorded
@pytest.mark.parametrize(
    ("name", "options", "dtype", "optimizer", "lr"),
    [
        *((name, options, torch.float64, "Adam", 1e-2) for name, options in OPTIONS),
        # Signals of score functions are large.
        *((name, {}, torch.float32, "SGD", 1e-3) for name in [*FAMILIES, "exact"]),
    ],
    ids=str,
)
def test_steps_are_those_of_the_plain_elbo(name, options, dtype, optimizer, lr):
    chosen = estimator(name, **options)
    expected_vae, vae = [new_vae(dtype, chosen.num_categories or K) for _ in range(2)]
    xs = batches(8, dtype)
    torch.manual_seed(2)
    expected, random = plainly(expected_vae, chosen, xs, lr=lr, optimizer=optimizer), torch.get_rng_state()
    step = make_step(vae, chosen, lr=lr, optimizer=optimizer)
    torch.manual_seed(2)
    losses = torch.stack([step(x) for x in xs]).double()
    tolerance = TOLERANCES[dtype]
    torch.testing.assert_close(losses, expected, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(weights(vae), weights(expected_vae), rtol=tolerance, atol=tolerance)
    assert torch.equal(torch.get_rng_state(), random)
    traced = step._gradients._traced
    assert traced.num_recordings == ("slice_size" not in options)


@recorded
@pytest.mark.parametrize("name", ["gumbel-softmax", "exact", "exact-evidence"])
def test_two_sizes_that_take_turns_are_recorded_once_each(name):
    """The last batch of each epoch has another size, and a recording takes as long as hundreds of steps."""
    xs = [batches(1, size=size)[0] for size in (B, 1) * 3]
    expected_vae, step = new_vae(), make_step(new_vae(), estimator(name), lr=1e-2)
    torch.manual_seed(2)
    expected = plainly(expected_vae, estimator(name), xs)
    torch.manual_seed(2)
    torch.testing.assert_close(torch.stack([step(x) for x in xs]), expected)
    assert step._gradients._traced.num_recordings == 2


@recorded
def test_nothing_else_changes():
    before = pyro.settings.get()
    pyro.param("of somebody else", torch.zeros(1))
    step = make_step(new_vae(), estimator("gumbel-softmax"))
    for x in batches(3):
        step(x)
        assert pyro.settings.get() == before
    assert list(pyro.get_param_store()) == ["of somebody else"]


@recorded
@pytest.mark.parametrize("slice_size", [None, 4], ids=["recorded", "not recorded"])
def test_pyros_validation_is_on_in_the_first_step_alone(slice_size, caplog):
    log = logging.getLogger("validation")  # guards do not read a logger, so it is no changing state
    caplog.set_level(logging.INFO)

    class Watching(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.Sequential(nn.Flatten(-2), nn.Linear(N * K, D))

        def forward(self, z):
            log.info(torch.distributions.Distribution._validate_args)
            return self.layers(z)

    with pyro.validation_enabled(False):
        step = make_step(new_vae(decoder=Watching()), estimator("exact", slice_size=slice_size))
        first, second = batches(2)
        step(first)
        assert "True" in caplog.messages
        caplog.clear()
        step(second)
        assert "True" not in caplog.messages
        assert torch.distributions.Distribution._validate_args is False


def test_data_out_of_range_are_refused_in_the_first_step():
    step = make_step(new_vae(), estimator("gumbel-softmax"))
    with pytest.raises(ValueError, match="Expected data in"):
        step(2 * torch.ones(B, D, dtype=torch.float64))


def test_each_argument_has_a_range():
    x, y = torch.tensor([0.0, 1.0]), torch.tensor([3, 4])
    known = widened({}, [x], {"y": y, "rate": torch.tensor(0.5), "other": "text"})
    assert known == {0: (0, 1, True), "y": (3, 4, True)}
    assert widened(known, [x[:1]], {"y": y}) is known
    assert widened(known, [torch.tensor([torch.nan, 5.0])], {"y": y}) is known  # the loss shows NaN
    assert widened(known, [x / 2], {"y": y + 1}) == {0: (0, 1, False), "y": (3, 5, True)}


def stock_pair(likelihood):
    class Stock(nn.Module):
        def __init__(self):
            super().__init__()
            self.bias = nn.Parameter(torch.zeros(D))

        def model(self, x):
            pyro.module("stock", self)
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(torch.zeros(D), 1.0).to_event(1))
                pyro.sample("k", dist.Categorical(torch.ones(2) / 2), obs=torch.zeros(len(x)))
                pyro.sample("x", likelihood(z + self.bias).to_event(1), obs=x)

        def guide(self, x):
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Normal(x, 1.0).to_event(1))

    return Stock()


@recorded
@pytest.mark.parametrize(
    ("new", "name", "wrong", "sentence"),
    [
        (lambda: new_vae(torch.float32), "gumbel-softmax", 2.0, "Expected data in"),
        (lambda: new_vae(torch.float32), "exact", -1.0, "Expected data in"),
        (lambda: stock_pair(lambda logits: dist.Bernoulli(logits=logits)), "reinforce", 0.5, "support"),
        (lambda: stock_pair(lambda logits: dist.Poisson(logits.exp())), "reinforce", -1.0, "support"),
    ],
    ids=["too large", "too small", "not whole", "negative counts"],
)
def test_data_out_of_range_are_refused_in_any_step(new, name, wrong, sentence):
    """Their loss would be finite. The program is checked once for each new range, without affecting its draws."""
    torch.manual_seed(0)
    program, (x, y) = new(), batches(2, torch.float32)
    step = make_step(program, estimator(name))
    step(x)
    before = weights(program)
    with pytest.raises(ValueError, match=sentence):
        step(torch.where(y == 1, wrong, y))
    assert torch.equal(weights(program), before) and step(y).isfinite()


def test_a_wider_range_changes_nothing_else():
    def trained(first):
        torch.manual_seed(0)
        step = make_step(vae := new_vae(observation="gaussian"), estimator("reinforce-baseline"))
        step(first)
        return step(batches(1)[0] * 3), weights(vae), torch.rand(1), *step.own.buffers()

    x = torch.ones(B, D, dtype=torch.float64)
    x[0, 0] = 0  # narrower than 0 to 3
    wide, narrow = x.clone(), x
    checked, plain = trained(narrow), None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(steps, "widened", lambda known, args, kwargs: known)
        plain = trained(wide)
    assert all(map(torch.equal, checked, plain))


def test_gradients_are_clipped_at_their_norm_per_datum():
    vae = new_vae()
    optimizer = torch.optim.SGD(vae.parameters(), lr=1.0)
    step = make_step(vae, estimator("exact"), optimizer=optimizer, clip_norm=0.01)
    before = weights(vae)
    step(batches(1)[0])
    assert (weights(vae) - before).norm().item() == pytest.approx(0.01 * B, rel=1e-4)


@recorded
@pytest.mark.filterwarnings("ignore:Encountered NaN")
def test_a_step_that_is_left_out_changes_nothing():
    """Neither weights nor the averages of the loss change."""
    vae = new_vae()
    step, [x] = make_step(vae, estimator("reinforce-baseline"), skip_non_finite=True), batches(1)
    step(x)
    before = [weights(vae), *(buffer.clone() for buffer in step.own.buffers())]
    bias = vae.decoder[-1].bias.data
    kept = bias.clone()
    bias.fill_(torch.nan)
    assert step(x).isnan()
    bias.copy_(kept)
    assert all(map(torch.equal, [weights(vae), *step.own.buffers()], before))
    step(x)
    assert not torch.equal(weights(vae), before[0])


@recorded
@pytest.mark.parametrize("name", ["exact", "gumbel-softmax"])  # others cannot draw codes in this case
def test_a_loss_that_is_not_finite_is_an_error_before_the_step(name):
    """This holds in later steps, too, where data are no longer checked."""
    vae = new_vae()
    step = make_step(vae, estimator(name))
    (x,) = batches(1)
    step(x)
    before = {key: value.clone() for key, value in vae.state_dict().items()}
    with pytest.raises(ValueError, match=r"Expected a finite loss, but found nan; parameters are as before the step"):
        step(torch.full_like(x, torch.nan))
    assert all(torch.equal(value, before[key]) for key, value in vae.state_dict().items())
    assert step(x).isfinite()


def test_a_batch_without_data_is_refused():
    vae = new_vae()
    step = make_step(vae, estimator("exact"))
    (x,) = batches(1)
    step(x)
    with pytest.raises(ValueError, match=r"Expected a batch of one datum or more, but found shape \(0, "):
        step(x[:0])
    assert all(parameter.isfinite().all() for parameter in vae.parameters())


@pytest.mark.parametrize("name", ["AdamW", "RAdam"])
def test_optimizers_by_name(name):
    """Adam and SGD are tested above."""
    expected_vae, vae, xs = new_vae(), new_vae(), batches(10)
    plainly(expected_vae, estimator("exact"), xs, optimizer=name)
    step = make_step(vae, estimator("exact"), optimizer=name, lr=1e-2)
    for x in xs:
        step(x)
    torch.testing.assert_close(weights(vae), weights(expected_vae))


@pytest.mark.parametrize("name", ["Adamant", "lr_scheduler", "Tensor"])
def test_an_unknown_optimizer_is_refused(name):
    with pytest.raises(ValueError, match=f"Expected the name of an optimizer in torch.optim, but found '{name}'"):
        make_step(new_vae(), estimator("exact"), optimizer=name)


def test_two_steps_may_share_an_optimizer():
    vae = new_vae()
    optimizer = torch.optim.Adam(vae.parameters(), lr=1e-2)
    for name in ("gumbel-softmax", "exact"):
        step = make_step(vae, estimator(name), optimizer=optimizer)
        for x in batches(3):
            step(x)
    assert {int(state["step"]) for state in optimizer.state.values()} == {6}


@pytest.mark.parametrize(
    ("name", "options", "absent"),
    [
        ("rebar", {}, "eta, log_temperature"),
        ("relax", {}, "eta, log_temperature, network.weight, network.bias, network.output"),
        ("reinforce-baseline", {"baseline": "neural", "data_dim": D}, "network.0.weight, network.0.bias, .*"),
    ],
)
def test_an_optimizer_that_lacks_what_the_loss_trains_is_refused(name, options, absent):
    """Otherwise, a control variate would silently remain untrained."""
    vae, x = new_vae(), batches(1)[0]
    before = weights(vae)
    step = make_step(vae, estimator(name, **options), optimizer=torch.optim.SGD(vae.parameters(), lr=1.0))
    with pytest.raises(ValueError, match=rf"lacks {absent}\. Try optimizer\.add_param_group"):
        step(x)
    assert torch.equal(weights(vae), before)


def test_an_optimizer_that_has_what_the_loss_trains_trains_it():
    vae, x = new_vae(), batches(1)[0]
    optimizer = torch.optim.SGD(vae.decoder.parameters(), lr=1e-3)  # another part of the module is frozen
    step = make_step(vae, estimator("rebar"), optimizer=optimizer)
    optimizer.add_param_group({"params": step.own.parameters()})
    before, eta = weights(vae.encoder), step.own.eta.item()
    step(x)
    assert step.own.eta.item() != eta and torch.equal(weights(vae.encoder), before)


@pytest.mark.parametrize(
    ("optimizer", "sentence"),
    [
        (torch.optim.SGD([torch.zeros(1)], lr=1.0), "found one that has none of them"),
        (pyro.optim.Adam({"lr": 1e-3}), r"but found pyro\.optim\..*Try 'Adam', or stock SVI"),
    ],
)
def test_an_optimizer_of_something_else_is_refused(optimizer, sentence):
    with pytest.raises(ValueError, match=sentence):
        make_step(new_vae(), estimator("exact"), optimizer=optimizer)(batches(1)[0])
    with pytest.raises(ValueError, match="Expected the name of an optimizer, since a run makes its own"):
        TrainConfig(optimizer=optimizer)


@recorded
@pytest.mark.parametrize("flush_every", [20, 10**9], ids=["ours", "negative control"])
def test_averages_do_not_become_denormal(flush_every, monkeypatch):
    """A pixel that is on only in the first batch leaves averages that decay to zero without reaching it.

    They are multiplied by 0.6 in each step, and so decay in 20 steps as far as at Adam's default of 0.9 in 100.
    """
    monkeypatch.setattr(steps, "FLUSH_EVERY", flush_every)
    vae = new_vae(torch.float32)
    optimizer = torch.optim.Adam(vae.parameters(), lr=1e-5, betas=(0.6, 0.999))
    step = make_step(vae, estimator("exact"), optimizer=optimizer)
    x = batches(1, torch.float32)[0]
    x[:, 0] = 1.0
    found = False
    for number in range(220):
        step(x)
        x[:, 0] = 0.0
        if number % 5 == 0:
            averages = torch.cat([state["exp_avg"].flatten() for state in optimizer.state.values()])
            found |= bool(((averages != 0) & (averages.abs() < torch.finfo(torch.float32).tiny)).any())
    assert found is (flush_every != 20)


@recorded
def test_annealing_is_seen():
    vae, chosen, x = new_vae(), estimator("gumbel-softmax"), batches(1)[0]
    step = make_step(vae, chosen)
    for temperature in (1.0, 0.5, 0.1):
        vae.temperature = temperature
        model, guide, elbo = chosen.bind(vae)
        torch.manual_seed(3)
        expected = elbo.loss(model, guide, x) / B
        torch.manual_seed(3)
        assert step(x).item() == pytest.approx(expected)


@recorded
def test_a_program_that_cannot_be_recorded_runs_as_it_is():
    class Branching(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(N * K, D)

        def forward(self, z):
            return self.layer(z.flatten(-2)) * (2.0 if z.sum().item() > 0 else 1.0)

    vae, expected_vae = new_vae(decoder=Branching()), new_vae(decoder=Branching())
    expected_vae.load_state_dict(vae.state_dict())
    chosen, xs = estimator("gumbel-softmax"), batches(5)
    step = make_step(vae, chosen, lr=1e-2)
    torch.manual_seed(2)
    with pytest.warns(UserWarning, match=r"Steps run without a recording: .* found \.item\(\) after site 'z'"):
        losses = [step(x).item() for x in xs]
    torch.manual_seed(2)
    assert losses == pytest.approx(plainly(expected_vae, chosen, xs).tolist())


@recorded
def test_parameters_outside_of_the_module_are_refused():
    class Outside(nn.Module):
        def model(self, x):
            scale = pyro.param("scale", torch.tensor(1.0))
            pyro.sample("k", dist.Bernoulli(0.5), obs=torch.tensor(1.0))
            pyro.sample("x", dist.Normal(0.0, scale).expand([D]).to_event(1), obs=x)

        def guide(self, x):
            pass

    with pytest.raises(ValueError, match=r"Expected all parameters .* in the module's parameters\(\)"):
        make_step(Outside(), estimator("gumbel-softmax"), optimizer=torch.optim.SGD([torch.zeros(1)], lr=1.0))(
            torch.ones(D)
        )


@recorded
@pytest.mark.parametrize("recordable", [True, False])
def test_a_program_that_does_not_show_its_parameters_is_refused(recordable):
    """A stock ELBO would silently form no gradient."""

    class Hidden(nn.Module):
        def __init__(self):
            super().__init__()
            self.logits = nn.Parameter(torch.zeros(N, K))

        def model(self, x):
            if not recordable:
                x.sum().item()
            pyro.sample("z", dist.OneHotCategorical(logits=self.logits).to_event(1))

        guide = model

    step = make_step(Hidden(), estimator("gumbel-softmax", temperature=0.5))
    refused = pytest.raises(ValueError, match=r"Expected a gradient for some parameter .* Try pyro\.module")
    with warnings.catch_warnings(), refused:
        warnings.simplefilter("ignore")  # it warns that it runs unrecorded
        step(torch.ones(B, D))


# torch 2.8 rounds the gradients of a recording differently, so the step runs unrecorded there, with a warning.
@recorded
@pytest.mark.filterwarnings("ignore:Steps run without a recording:UserWarning")
def test_networks_in_bfloat16_score_in_float32():
    """Networks with 8 bits of precision change a loss by at most tenths of a nat; log-probabilities, by whole nats."""
    losses = {}
    for dtype in (torch.float32, torch.bfloat16):
        vae = new_vae(torch.float32)
        step = make_step(vae, estimator("gumbel-softmax"), lr=1e-2)
        xs = batches(20, torch.float32)
        torch.manual_seed(2)
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype is torch.bfloat16):
            losses[dtype] = torch.stack([step(x) for x in xs])
        assert losses[dtype].dtype is torch.float32
        assert all(parameter.dtype is torch.float32 for parameter in vae.parameters())
    difference = (losses[torch.float32] - losses[torch.bfloat16]).abs().max()
    assert 0 < difference < 0.5


@recorded
@pytest.mark.slow
def test_a_compiled_step_is_the_same():
    """Inductor is set to use torch's own random numbers."""
    xs, losses = batches(4, torch.float32), []
    for compile in (False, True):
        vae = new_vae(torch.float32)
        step = make_step(vae, estimator("gumbel-softmax"), lr=1e-2, compile=compile)
        torch.manual_seed(2)
        losses.append(torch.stack([step(x) for x in xs]))
    torch.testing.assert_close(*losses, rtol=1e-4, atol=1e-4)


@recorded
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("compile", [False, True])
def test_steps_on_a_gpu(compile):
    vae, xs = new_vae(torch.float32).cuda(), batches(30, torch.float32).cuda()
    step = make_step(vae, estimator("exact"), lr=1e-2, compile=compile)
    first, *_, last = [step(x).item() for x in xs]
    assert last < first
