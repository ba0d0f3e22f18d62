"""Score-function losses: the published formulas written out, exact oracles for other bounds, and refusals."""

import itertools
import math
from functools import partial
from typing import ClassVar

import pairs
import pyro
import pyro.distributions as dist
import pytest
import torch
from draws import exact_gradient, log_densities, standard_scores
from problems import PROBLEMS, Rows
from pyro import poutine
from pyro.infer import (
    SVI,
    EnergyDistance,
    RenyiELBO,
    Trace_ELBO,
    TraceEnum_ELBO,
    TraceGraph_ELBO,
    TraceMeanField_ELBO,
    TraceTailAdaptive_ELBO,
    TraceTMC_ELBO,
)

from pyro_gvae.distributions.codes import joint_codes
from pyro_gvae.distributions.one_hot import FactorizedOneHotCategorical
from pyro_gvae.elbos.baselines import BaselineELBO, NeuralBaseline, RunningBaseline
from pyro_gvae.elbos.exact import ExactELBO
from pyro_gvae.elbos.score import OVIS, VIMCO, ReinforceLOO, ReweightedWakeSleep
from pyro_gvae.estimators import estimator, own_state
from pyro_gvae.exact import Pair
from pyro_gvae.handlers import discretize, relax
from pyro_gvae.jit.traced_elbo import TracedELBO
from pyro_gvae.models.categorical_vae import CategoricalVAE
from pyro_gvae.train.step import make_step

LOSSES = [ReinforceLOO, VIMCO, OVIS, ReweightedWakeSleep]
EACH_LOSS = pytest.mark.parametrize("loss", LOSSES)


# The published formulas, one datum and one code at a time: a bound, and a sum of (weight, term).


def leave_one_out(log_p, log_q):
    costs = [(p - q).item() for p, q in zip(log_p, log_q, strict=True)]
    terms = []
    for i, cost in enumerate(costs):
        baseline = sum(other for j, other in enumerate(costs) if j != i) / (len(costs) - 1)
        terms += [(1 / len(costs), log_p[i]), ((cost - baseline) / len(costs), log_q[i])]
    return sum(costs) / len(costs), terms


def log_mean(log_weights):
    return math.log(sum(map(math.exp, log_weights)) / len(log_weights))


def vimco(log_p, log_q):
    log_weights = [(p - q).item() for p, q in zip(log_p, log_q, strict=True)]
    bound, total = log_mean(log_weights), sum(map(math.exp, log_weights))
    terms = []
    for i, log_weight in enumerate(log_weights):
        others = [other for j, other in enumerate(log_weights) if j != i]
        signal = bound - log_mean([*others, sum(others) / len(others)])
        terms += [(signal, log_q[i]), (math.exp(log_weight) / total, log_p[i] - log_q[i])]
    return bound, terms


def ovis(log_p, log_q, gamma=0.0):
    log_weights = [(p - q).item() for p, q in zip(log_p, log_q, strict=True)]
    bound, count = log_mean(log_weights), len(log_weights)
    terms = []
    for i, log_weight in enumerate(log_weights):
        share = math.exp(log_weight) / sum(map(math.exp, log_weights))
        others = log_mean([other for j, other in enumerate(log_weights) if j != i])
        control = others - gamma * share + (1 - gamma) * math.log(1 - 1 / count)
        terms += [(bound - share - control, log_q[i]), (share, log_p[i])]
    return bound, terms


def wake_wake(log_p, log_q):
    weights = [math.exp((p - q).item()) for p, q in zip(log_p, log_q, strict=True)]
    terms = [(w / sum(weights), p + q) for w, p, q in zip(weights, log_p, log_q, strict=True)]
    return math.log(sum(weights) / len(weights)), terms


FORMULAS = {ReinforceLOO: leave_one_out, VIMCO: vimco, OVIS: ovis, ReweightedWakeSleep: wake_wake}


@EACH_LOSS
@pytest.mark.parametrize("num_particles", [2, 5])
def test_loss_and_gradients_are_the_published_formula(loss, num_particles):
    rows = Rows("mlp", 3, 2, 4)
    torch.manual_seed(1)
    found = loss(num_particles=num_particles).loss_and_grads(rows.model, rows.guide, rows.x)
    gradients = rows.gradients()
    torch.manual_seed(1)
    codes = FactorizedOneHotCategorical(logits=rows.logits.detach()).sample((num_particles,))
    results = [FORMULAS[loss](*log_densities(rows, codes[:, row], row)) for row in range(4)]
    rows.zero_grad()
    surrogate = sum(weight * term for _, terms in results for weight, term in terms)
    (-surrogate).backward()
    assert found == pytest.approx(-sum(bound for bound, _ in results))
    torch.testing.assert_close(gradients, rows.gradients())


@pytest.mark.parametrize("gamma", [0.3, 1.0])
def test_other_control_variates_of_ovis_are_the_published_formula(gamma, monkeypatch):
    monkeypatch.setitem(FORMULAS, OVIS, partial(ovis, gamma=gamma))
    monkeypatch.setattr(OVIS.__init__, "__kwdefaults__", {"num_particles": 5, "gamma": gamma})
    test_loss_and_gradients_are_the_published_formula(OVIS, 4)


@EACH_LOSS
def test_the_three_forms_of_the_loss_agree(loss):
    rows, elbo = Rows("mlp", 3, 2, 4), loss(num_particles=3)
    losses = []
    for method in (elbo.loss, elbo.loss_and_grads, elbo.differentiable_loss):
        torch.manual_seed(1)
        losses.append(method(rows.model, rows.guide, rows.x))
    assert losses[0] == losses[1] == pytest.approx(losses[2].item())
    gradients = rows.gradients()
    rows.zero_grad()
    losses[2].backward()
    torch.testing.assert_close(rows.gradients(), gradients)


def renyi_gradient(size, num_particles, alpha=0.0):
    """Return minus the mean of the bound over all K^(N P) combinations of codes, and its gradient; alpha 0 is IWAE."""
    one = Rows("mlp", *size)
    log_p, log_q = log_densities(one, joint_codes(*size, dtype=torch.float64), 0)
    expected = 0.0
    for combination in itertools.product(range(len(log_p)), repeat=num_particles):
        chosen = list(combination)
        log_sum = torch.logsumexp((1 - alpha) * (log_p - log_q)[chosen], 0)
        expected = expected - log_q[chosen].sum().exp() * (log_sum - math.log(num_particles)) / (1 - alpha)
    expected.backward()
    return expected.item(), one.gradients().squeeze(0)


@pytest.mark.parametrize("elbo", [VIMCO, OVIS])
@pytest.mark.parametrize(("size", "num_particles"), [((2, 2), 2), ((1, 3), 3), ((2, 3), 2)])
def test_gradients_of_the_importance_weighted_bound_are_unbiased(elbo, size, num_particles):
    expected, gradient = renyi_gradient(size, num_particles)
    rows = Rows("mlp", *size, 20_000)
    loss = elbo(num_particles=num_particles).loss_and_grads(rows.model, rows.guide, rows.x)
    assert loss / 20_000 == pytest.approx(expected, rel=0.02)
    assert standard_scores(rows.gradients(), gradient, *size).max() < 5
    # The negative control: it is not the gradient of the ELBO.
    assert standard_scores(rows.gradients(), exact_gradient("mlp", *size), *size).max() > 5


def test_reweighted_wake_sleep_tends_to_the_posterior():
    one = Rows("mlp", 2, 3)
    log_p, log_q = log_densities(one, joint_codes(2, 3, dtype=torch.float64), 0)
    posterior = log_p.softmax(0).detach()
    (-(posterior * (log_p + log_q)).sum()).backward()
    expected, distances = one.gradients(), []
    for num_particles in (20, 20_000):
        rows = Rows("mlp", 2, 3, 10)
        ReweightedWakeSleep(num_particles=num_particles).loss_and_grads(rows.model, rows.guide, rows.x)
        distances.append(((rows.gradients() - expected).norm(dim=-1).mean() / expected.norm()).item())
    assert distances[1] < 0.05 < distances[0]


def test_weights_belong_to_a_datum_and_not_to_a_batch():
    """Another datum changes nothing about the gradient of a datum."""
    rows = Rows("mlp", 3, 2, 2)
    pair = [rows.model, rows.guide, rows.x]
    for loss in (VIMCO, ReweightedWakeSleep):
        found = []
        for shift in (0.0, 5.0):
            with torch.no_grad():
                rows.first[1] += shift
            rows.zero_grad()
            torch.manual_seed(1)
            loss(num_particles=4).loss_and_grads(*pair)
            found.append(rows.gradients()[0])
        torch.testing.assert_close(*found)


def test_weights_of_every_size_are_summed():
    log_weights = torch.tensor([[-1000.0, 0.0], [0.0, -2000.0], [-3000.0, -2000.0]])

    def model():
        with pyro.plate("data", 2):
            z = pyro.sample("z", dist.OneHotCategorical(logits=torch.zeros(3)))
            pyro.factor("factor", (z * log_weights.T).sum(-1))

    logits = torch.zeros(2, 3, requires_grad=True)

    def guide():
        with pyro.plate("data", 2):
            pyro.sample("z", dist.OneHotCategorical(logits=pyro.param("logits", logits)))

    for loss in LOSSES:
        for seed in range(5):
            torch.manual_seed(seed)
            found = loss(num_particles=4).loss_and_grads(model, guide)
            assert pyro.param("logits").grad.isfinite().all()
            torch.manual_seed(seed)
            z = FactorizedOneHotCategorical(logits=torch.zeros(2, 1, 3)).sample((4,)).squeeze(-2)
            drawn = (z * log_weights.T).sum(-1)  # (P, B); prior and guide are the same
            bound = drawn.mean(0) if loss is ReinforceLOO else drawn.logsumexp(0) - math.log(4)
            assert found == pytest.approx(-bound.sum().item(), rel=1e-5)


def _gradients_of(name, handle, rows, **options):
    rows.zero_grad()
    model, guide, elbo = estimator(name, **options).bind(Pair(handle(rows.model), handle(rows.guide)))
    torch.manual_seed(2)
    loss = elbo.loss_and_grads(model, guide, rows.x)
    return loss, rows.gradients()


NAMES = ["reinforce", "reinforce-baseline", "reinforce-loo", "vimco", "ovis", "tvo", "reweighted-wake-sleep"]


@pytest.mark.parametrize("name", NAMES)
def test_scales_stand_outside(name):
    rows = Rows("mlp", 2, 3, 4)
    plain = _gradients_of(name, lambda program: program, rows)
    scaled = _gradients_of(name, lambda program: poutine.scale(program, scale=7.0), rows)
    assert scaled[0] == pytest.approx(7.0 * plain[0])
    torch.testing.assert_close(scaled[1], 7.0 * plain[1])


@pytest.mark.parametrize("name", NAMES)
def test_masked_data_have_no_say(name):
    rows = Rows("mlp", 2, 3, 4)
    mask = torch.tensor([True, False, True, True])
    _, plain = _gradients_of(name, lambda program: program, rows)
    _, masked = _gradients_of(name, lambda program: poutine.mask(program, mask=mask), rows)
    torch.testing.assert_close(masked, plain * mask.unsqueeze(-1))


@pytest.mark.parametrize("name", ["vimco", "ovis", "tvo", "daps", "reweighted-wake-sleep"])
def test_weights_of_sites_that_are_scaled_differently_are_refused(name):
    rows = Rows("mlp", 2, 3, 4)
    model, guide, elbo = estimator(name).bind(rows)
    with pytest.raises(ValueError, match="Expected all sites of the model to share one scale"):
        elbo.loss(poutine.scale(model, scale=2.0), guide, rows.x)


@pytest.mark.parametrize("name", NAMES)
def test_plates_may_be_nested(name):
    logits = torch.randn(2, 3, 2, 4, dtype=torch.float64)
    weights = torch.randn(8, dtype=torch.float64)
    data = torch.randn(2, 3, dtype=torch.float64)

    def gradients(shape):
        leaf = logits.reshape(*shape, 2, 4).clone().requires_grad_()

        def within_plates(run):
            if len(shape) == 1:
                with pyro.plate("data", 6):
                    return run()
            with pyro.plate("rows", 2, dim=-2), pyro.plate("columns", 3, dim=-1):
                return run()

        def model():
            def run():
                z = pyro.sample("z", dist.OneHotCategorical(logits=torch.zeros(2, 4).double()).to_event(1))
                pyro.sample("x", dist.Normal(z.flatten(-2) @ weights, 1.0), obs=data.reshape(shape))

            within_plates(run)

        def guide():
            parameter = pyro.param("logits", leaf)
            within_plates(lambda: pyro.sample("z", dist.OneHotCategorical(logits=parameter).to_event(1)))

        with pyro.get_param_store().scope():
            bound_model, bound_guide, elbo = estimator(name).bind(Pair(model, guide))
            torch.manual_seed(3)
            loss = elbo.loss_and_grads(bound_model, bound_guide)
        return loss, leaf.grad.reshape(6, 8)

    torch.testing.assert_close(gradients((2, 3)), gradients((6,)))


# Baselines.


def test_the_running_baseline_is_a_mean():
    baseline = RunningBaseline(beta=0.5)
    assert baseline(None) == 0
    for cost in (4.0, 1.0):
        baseline.update(cost)
    assert baseline(None).item() == pytest.approx((0.5 * 4.0 + 1.0) / 1.5)


@pytest.mark.parametrize("num_particles", [1, 3])
def test_the_baseline_is_the_mean_cost_of_a_datum_in_batches_of_any_size(num_particles):
    elbo = estimator("reinforce-baseline", beta=0.0, num_particles=num_particles).elbo()
    for size in (5, 2):
        rows = Rows("mlp", 2, 3, size)
        loss = elbo.loss_and_grads(discretize(rows.model), discretize(rows.guide), rows.x)
        assert elbo.own(None).item() == pytest.approx(-loss / size)


@pytest.mark.parametrize("baseline", ["running", "neural"])
@pytest.mark.parametrize("num_particles", [1, 2])
def test_a_batch_of_one_has_a_baseline_too(baseline, num_particles):
    vae = CategoricalVAE(6, 2, 3, (5,))
    options = {"data_dim": 6} if baseline == "neural" else {}
    chosen = estimator("reinforce-baseline", baseline=baseline, num_particles=num_particles, **options)
    step = make_step(vae, chosen)
    first, second, third = (step(torch.ones(1, 6)).item() for _ in range(3))
    running = step.own if baseline == "running" else step.own.running
    assert running(None).item() == pytest.approx(-(0.81 * first + 0.9 * second + third) / 2.71)


def test_a_baseline_is_subtracted_from_the_cost():
    rows = Rows("mlp", 2, 3, 5)
    model, guide = discretize(rows.model), discretize(rows.guide)
    elbo, gradients = BaselineELBO(RunningBaseline()), []
    for engine in (TraceGraph_ELBO(), elbo, elbo):
        rows.zero_grad()
        torch.manual_seed(1)
        loss = engine.loss_and_grads(model, guide, rows.x)
        gradients.append(rows.gradients())
    torch.testing.assert_close(gradients[1], gradients[0])  # in the first step there is no mean yet
    torch.manual_seed(1)
    z = FactorizedOneHotCategorical(logits=rows.logits.detach()).sample()
    difference = (gradients[2] - gradients[0])[:, :6].unflatten(-1, (2, 3))
    torch.testing.assert_close(difference, -loss / 5 * (z - rows.logits.softmax(-1)))


def test_the_neural_baseline_is_the_running_mean_and_what_a_network_adds():
    baseline, x = NeuralBaseline(4, hidden=(5,)), torch.rand(3, 4)
    torch.testing.assert_close(baseline(x).float(), baseline.network(x).squeeze(-1))
    baseline.update(-40.0)
    torch.testing.assert_close(baseline(x).float(), -40.0 + baseline.network(x).squeeze(-1))


def test_the_neural_baseline_learns_the_cost_of_each_datum_in_stock_svi():
    vae = CategoricalVAE(4, 2, 3, hidden=(5,), observation="gaussian", scale=1.0)
    x = torch.tensor([[0.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 20.0]]).repeat(4, 1)
    vae.requires_grad_(False)
    model, guide, elbo = estimator("reinforce-baseline", baseline="neural", data_dim=4).bind(vae)
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.05}), elbo)
    for _ in range(100):
        svi.step(x)
    one, other = elbo.own(x)[:2]
    expected = [-Trace_ELBO(num_particles=50).loss(model, guide, x[row : row + 1]) for row in range(2)]
    assert other.item() == pytest.approx(expected[1], rel=0.1)
    assert one - other > 0.8 * (expected[0] - expected[1])
    assert not any("Baseline" in name for name in pyro.get_param_store())


@pytest.mark.parametrize("baseline", ["running", "neural"])
def test_recorded_steps_keep_what_a_baseline_has_learned(baseline):
    options = {"baseline": baseline, "data_dim": 4}
    x = torch.rand(3, 4, dtype=torch.float64).round()
    found = []
    for record in (True, False):
        torch.manual_seed(0)
        vae = CategoricalVAE(4, 2, 3, hidden=(5,)).double()
        model, guide, elbo = estimator("reinforce-baseline", **options).bind(vae)
        traced = TracedELBO(elbo) if record else elbo
        svi = SVI(model, guide, pyro.optim.Adam({"lr": 1e-2}), traced)
        with pyro.get_param_store().scope():
            losses = [svi.step(x) for _ in range(20)]
        state = [tensor.double() for tensor in own_state(elbo).state_dict().values()]
        found.append([torch.tensor(losses), *state, *(p.detach() for p in vae.parameters())])
        if record:
            assert traced.num_recordings == 1
    torch.testing.assert_close(*found, rtol=1e-5, atol=1e-5)


def test_make_step_trains_a_neural_baseline():
    vae = CategoricalVAE(4, 2, 3, hidden=(5,))
    chosen = estimator("reinforce-baseline", baseline="neural", data_dim=4)
    elbos = []
    remembering = type(chosen)(
        **{**vars(chosen), "elbo": lambda: elbos.append(chosen.elbo()) or elbos[-1]}  # the ELBO that the step uses
    )
    step = make_step(vae, remembering, lr=0.01)
    before = {name: value.clone() for name, value in own_state(elbos[0]).state_dict().items()}
    for _ in range(3):
        step(torch.ones(5, 4))
    for name, value in own_state(elbos[0]).state_dict().items():
        assert not torch.equal(value, before[name]), name
    assert list(pyro.get_param_store()) == []


def test_a_baseline_lies_where_the_parameters_lie():
    vae = CategoricalVAE(4, 2, 3, hidden=(5,)).to("meta")
    elbo = estimator("reinforce-baseline", baseline="neural", data_dim=4).bind(vae).elbo
    assert {tensor.device.type for tensor in own_state(elbo).state_dict().values()} == {"meta"}


def test_baselines_refuse_what_they_cannot_do():
    rows = Rows("mlp", 2, 3, 4)
    model, guide, elbo = estimator("reinforce-baseline", baseline="neural").bind(rows)
    with pytest.raises(ValueError, match=r"Expected data of shape \(\.\.\., 784\) .* but found \(4, 2\)"):
        elbo.loss_and_grads(model, guide, rows.x)

    def three(x):
        with pyro.plate("three", 3):
            pyro.sample("y", dist.Bernoulli(torch.tensor(0.5)))

    elbo = BaselineELBO(RunningBaseline())
    with pytest.raises(ValueError, match="to have a discrete site, latent or observed, but found none"):
        elbo.loss_and_grads(lambda x: None, lambda x: None, rows.x)
    elbo = BaselineELBO(NeuralBaseline(rows.DIM))
    with pytest.raises(
        ValueError, match=r"data of batch shape \(3,\), .* but found one of shape \(4,\)\. Try baseline="
    ):
        elbo.loss_and_grads(three, three, rows.x)
    with pytest.raises(ValueError, match="one of running, neural, but found 'none'"):
        estimator("reinforce-baseline", baseline="none")
    with pytest.raises(ValueError, match=r"beta in \[0, 1\), but found 1.0"):
        estimator("reinforce-baseline", beta=1.0)
    with pytest.raises(ValueError, match="at least 1, but found 0"):
        estimator("reinforce-baseline", hidden=(0,))
    for name in ("reinforce-loo", "vimco", "reweighted-wake-sleep"):
        with pytest.raises(ValueError, match="at least 2 particles, but found num_particles=1"):
            estimator(name, num_particles=1)


# Stock ELBOs on discrete programs: correct, or refused.

PARTICLES = {"num_particles": 3, "vectorize_particles": True, "max_plate_nesting": 1}
RIGHT = {
    "Trace_ELBO": lambda: Trace_ELBO(),
    "Trace_ELBO, particles": lambda: Trace_ELBO(**PARTICLES),
    "TraceGraph_ELBO": lambda: TraceGraph_ELBO(),
    "TraceEnum_ELBO": lambda: TraceEnum_ELBO(max_plate_nesting=1, strict_enumeration_warning=False),
}
WRONG = {
    "RenyiELBO, alpha 0": lambda: RenyiELBO(alpha=0.0, **PARTICLES),
    "RenyiELBO, alpha 0.5": lambda: RenyiELBO(alpha=0.5, **PARTICLES),
    "RenyiELBO, one particle": lambda: RenyiELBO(alpha=0.0),
    "TraceTMC_ELBO": lambda: TraceTMC_ELBO(max_plate_nesting=1, strict_enumeration_warning=False),
    "TraceMeanField_ELBO": lambda: TraceMeanField_ELBO(),
    "TraceTailAdaptive_ELBO": lambda: TraceTailAdaptive_ELBO(**PARTICLES),
}


@pytest.mark.parametrize("name", RIGHT)
def test_stock_elbos_that_are_right(name):
    problem = "mlp", 2, 3
    rows = Rows(*problem, 20_000)
    RIGHT[name]().loss_and_grads(discretize(rows.model), discretize(rows.guide), rows.x)
    assert standard_scores(rows.gradients(), exact_gradient(*problem), *problem[1:]).max() < 5


@pytest.mark.parametrize("problem", PROBLEMS, ids=lambda problem: problem.name)
def test_every_observation_passes_its_gradient_to_stock_tracegraph(problem):
    """For one site it is REINFORCE, with equal gradients; it uses a tensor class that hides derivatives."""
    found = []
    for elbo in (Trace_ELBO(), TraceGraph_ELBO()):
        vae, x = problem.vae(), problem.x()
        with pyro.get_param_store().scope():
            torch.manual_seed(3)
            elbo.loss_and_grads(discretize(vae.model), discretize(vae.guide), x)
        found.append([parameter.grad for parameter in vae.parameters()])
    torch.testing.assert_close(*found)


@pytest.mark.parametrize("name", WRONG)
def test_stock_elbos_that_are_wrong_are_refused(name):
    rows = Rows("mlp", 2, 3, 4)
    with pytest.raises(ValueError, match=r"Expected an ELBO that has the score of the discrete site 'z' .* Try "):
        WRONG[name]().loss_and_grads(discretize(rows.model), discretize(rows.guide), rows.x)


def test_the_energy_distance_refuses_discrete_sites_without_validation_too():
    """It would omit the guide's gradient of discrete sites; that of relaxed sites it has."""
    logits = torch.zeros(4, 3, requires_grad=True)

    def model(x):
        with pyro.plate("data", 4):
            z = pyro.sample("z", dist.OneHotCategorical(torch.ones(3) / 3))
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", 4):
            pyro.sample("z", dist.OneHotCategorical(logits=logits))

    loss = EnergyDistance(num_particles=2, max_plate_nesting=2)
    with pyro.validation_enabled(False):
        with pytest.raises(ValueError, match=r"score of the discrete site 'z' .*, but found EnergyDistance, .* Try "):
            loss(discretize(model), discretize(guide), torch.ones(4, 3))
        loss(relax(model, temperature=0.5), relax(guide, temperature=0.5), torch.ones(4, 3)).backward()
    assert logits.grad.any()


@pytest.mark.parametrize("name", ["RenyiELBO, alpha 0", "RenyiELBO, one particle", "TraceTMC_ELBO"])
def test_why_they_are_refused_no_gradient_at_all(name):
    """The program is plain Pyro, so nothing refuses it, and the guide's gradient is zero."""
    rows = Rows("mlp", 2, 3, 4)
    with pyro.validation_enabled(False):
        WRONG[name]().loss_and_grads(rows.model, rows.guide, rows.x)
    assert rows.gradients()[:, :6].abs().max() < 1e-12 < rows.gradients()[:, 12:].abs().max()
    assert exact_gradient("mlp", 2, 3)[:6].norm() > 0.1


@pytest.mark.parametrize("name", ["RenyiELBO, alpha 0.5", "TraceMeanField_ELBO"])
def test_why_they_are_refused_another_gradient(name):
    size = 1, 3
    rows = Rows("mlp", *size, 20_000)
    with pyro.validation_enabled(False):
        WRONG[name]().loss_and_grads(rows.model, rows.guide, rows.x)
    right = renyi_gradient(size, 3, alpha=0.5)[1] if "Renyi" in name else exact_gradient("mlp", *size)
    found = rows.gradients()
    # The gradient of the model is right, that of the guide is not.
    scores = (found.mean(0) - right).abs() / (found.std(0) / len(found) ** 0.5 + 1e-12)
    assert scores[3:].max() < 5 < scores[:3].max()


def test_what_needs_no_score_is_not_refused():
    """Allowed: values, relaxed sites, and the model's gradient; values and gradient are those of the plain pair."""
    rows = Rows("mlp", 2, 3, 4)
    elbo = RenyiELBO(alpha=0.0, **PARTICLES)
    elbo.loss_and_grads(*(relax(program, temperature=0.5) for program in (rows.model, rows.guide)), rows.x)
    values, gradients = [], []
    for handle in (lambda program: program, discretize):
        model, guide = handle(rows.model), handle(rows.guide)
        with pyro.validation_enabled(False):
            rows.logits.requires_grad_(True)
            torch.manual_seed(0)
            values.append(elbo.loss(model, guide, rows.x))
            rows.logits.requires_grad_(False)
            rows.zero_grad()
            torch.manual_seed(0)
            assert elbo.loss_and_grads(model, guide, rows.x) == pytest.approx(values[-1])
        gradients.append(rows.first.grad.clone())
    assert values[0] == pytest.approx(values[1])
    torch.testing.assert_close(*gradients)


# Any program: `tests/estimators/test_table.py` tests these losses on many programs.


def _standard_scores(loss, program, expected, repeats=600):
    """Return how many standard errors the mean loss and gradients are off."""
    pyro.set_rng_seed(1)
    found = [
        pairs.with_gradients(lambda: loss.loss_and_grads(program.model, program.guide, pairs.DATA))
        for _ in range(repeats)
    ]
    assert found[0].keys() == expected.keys()
    scores = []
    for name, right in expected.items():
        values = torch.stack([one[name] for one in found])
        error = values.std(0) / repeats**0.5
        scores.append(((values.mean(0) - right).abs() / (error + 1e-9)).flatten())
    return torch.cat(scores)


class Coin(dist.TorchDistribution):
    """A bit of a class that nothing knows."""

    arg_constraints: ClassVar = {}
    support = dist.constraints.boolean

    def __init__(self, logits):
        self.bit = dist.Bernoulli(logits=logits)
        super().__init__(self.bit.batch_shape, validate_args=False)

    def expand(self, batch_shape, _instance=None):
        return Coin(self.bit.logits.expand(batch_shape))

    def sample(self, sample_shape=()):
        return self.bit.sample(sample_shape)

    def log_prob(self, value):
        return self.bit.log_prob(value)


def test_a_latent_without_a_pathwise_derivative_is_scored():
    """A distribution of one's own is not read as a discrete latent; written as a bit, it can be summed."""

    def pair(bit):
        def program(x, observe):
            with pyro.plate("data", len(x)):
                y = pyro.sample("y", pairs.one_hot(pairs.weights(3) if observe else pairs.linear(3, x)))
                logits = y[..., 0] - 0.5 if observe else x[:, 0]
                b = pyro.sample("b", bit(logits))
                if observe:
                    pairs.observe(y, b.unsqueeze(-1), obs=x)

        return pairs.Program(partial(program, observe=True), partial(program, observe=False))

    unknown = pair(Coin)
    bits = pair(lambda logits: dist.Bernoulli(logits=logits))
    expected = pairs.with_gradients(lambda: ExactELBO().loss_and_grads(bits.model, bits.guide, pairs.DATA))
    assert _standard_scores(ReinforceLOO(num_particles=20), unknown, expected, repeats=60).max() < 5
    with pytest.raises(ValueError, match=r"'b', a Coin without rsample\. Try .* reinforce-loo"):
        ExactELBO().loss(unknown.model, unknown.guide, pairs.DATA)
