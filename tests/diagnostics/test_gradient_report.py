"""The gradient report, tested with estimators whose mean and variance are sums over all codes."""

import math
from dataclasses import replace

import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch
from problems import PROBLEMS, B, K, N, joint_in_a_loop, log_q_in_a_loop
from reinforce import REINFORCE, row
from torch import nn

from pyro_gvae.config.gradients import GradientsConfig
from pyro_gvae.data.datasets import load
from pyro_gvae.diagnostics import laboratory, timing
from pyro_gvae.diagnostics.candidates import candidates
from pyro_gvae.diagnostics.gradient_report import COLUMNS, COMPARED, gradient_report
from pyro_gvae.diagnostics.probe import WARMUP, Probe, make_problem
from pyro_gvae.diagnostics.recommend import Advice
from pyro_gvae.diagnostics.references import obstacle_to_sums, sample_moments
from pyro_gvae.elbos.sampled import Estimate, SampledELBO
from pyro_gvae.estimators import Objective, estimator, with_kl_weight
from pyro_gvae.exact import Pair
from pyro_gvae.models.categorical_vae import CategoricalVAE
from pyro_gvae.runtime.rng import seeded
from pyro_gvae.train.setup import initial_model

PROBLEM = PROBLEMS[0]


class Counting(SampledELBO):
    """REINFORCE with a learned constant as its baseline; it counts its calls."""

    def __init__(self):
        super().__init__()
        self.own = nn.Module()
        self.own.baseline = nn.Parameter(torch.zeros((), dtype=torch.float64))
        self.own.register_buffer("calls", torch.zeros(()))

    def estimate(self, target):
        self.own.calls += 1
        draws = target.draw(1)
        log_q = draws.log_q
        bound = draws.log_joint - log_q
        signal = bound.detach() - self.own.baseline.detach()
        loss = (bound.detach() - self.own.baseline).square().mean()
        return Estimate(bound.mean(0), (signal * log_q + bound).mean(0).sum(), loss)


class Refusing(SampledELBO):
    def estimate(self, target):
        raise ValueError("Expected two categories, but found more.\nThe shapes are long.")


def report(*arguments, wrt=("logits",), **options):
    return gradient_report(*arguments, wrt=wrt, seed=1, **{"budget": 1.0, "num_samples": 4096} | options)


def enumerated_reinforce(vae, x):
    """Return the gradient -(f - 1) (z - pi) of each code z (S, B, N * K), and the probability of the code (S, B)."""
    log_q = log_q_in_a_loop(vae, x)
    f = joint_in_a_loop(PROBLEM, vae, x) - log_q  # (S, B)
    codes = nn.functional.one_hot(torch.cartesian_prod(*[torch.arange(K)] * N), K).double()  # (S, N, K)
    score = codes.unsqueeze(1) - vae.encoder(x).softmax(-1)  # (S, B, N, K)
    return (-(f - 1)[..., None, None] * score).flatten(2).detach(), log_q.exp().detach()


def test_the_report_agrees_with_enumeration():
    vae, x = PROBLEM.vae(), PROBLEM.x()
    g, q = enumerated_reinforce(vae, x)
    mean = (q.unsqueeze(-1) * g).sum(0)  # (B, N * K)
    variance = (q.unsqueeze(-1) * g.square()).sum(0) - mean.square()
    signal, noise = mean.square().sum().item(), variance.sum().item()
    joint = torch.cartesian_prod(*[torch.arange(len(g))] * B)  # (S^B, B): a code for each datum
    both = g[joint, torch.arange(B)].flatten(1)
    cosines = torch.cosine_similarity(both, mean.flatten(), dim=-1)
    found = report(vae, x, [REINFORCE]).iloc[0]
    expected = {
        "squared_bias": 0.0,
        "relative_std": math.sqrt(noise / signal),
        "cosine": 1.0,
        "sample_cosine": (q[joint, torch.arange(B)].prod(-1) * cosines).sum().item(),
        "snr": (mean.abs() / variance.sqrt()).mean().item(),
        "mse": noise / signal,
        "mse_at_budget": noise / signal * found["seconds"],
        "progress": signal / (signal + noise),
    }
    for name, value in expected.items():
        assert abs(found[name] - value) < 5 * found[f"{name}_se"] + 1e-3 * abs(value), name
        assert found[f"{name}_se"] < 0.2 * max(value, 0.5), name
    assert found["refused"] is None and found["samples"] == 4096 and found["reference"] == "exact"


def test_parameters_are_held_to_the_exact_gradient_too():
    vae, x = PROBLEM.vae(), PROBLEM.x()
    found = report(vae, x, [REINFORCE, "exact"], wrt=("parameters",), num_parameter_samples=64).iloc[0]
    assert abs(found["squared_bias"]) < 5 * found["squared_bias_se"] < found["mse"]


@pytest.mark.parametrize("wrt", ["logits", "parameters"])
def test_the_exact_gradient_has_neither_bias_nor_variance(wrt):
    found = report(PROBLEM.vae(), PROBLEM.x(), ["exact"], wrt=(wrt,)).iloc[0]
    assert found["relative_bias"] < 1e-12 and found["relative_std"] == 0 and found["mse"] < 1e-24
    assert found["cosine"] == pytest.approx(1) and found["progress"] == pytest.approx(1) and found["snr"] == math.inf
    assert found["samples"] == 1 and found["cosine_se"] == 0


@pytest.mark.parametrize("options", [{"kl": "relaxed"}, {"kl": "categorical"}])
def test_a_relaxation_is_found_biased(options):
    found = report(PROBLEM.vae(), PROBLEM.x(), ["gumbel-softmax"], temperatures=(0.5, 2.0), **options)
    assert list(found["temperature"]) == [0.5, 2.0]
    assert (found["squared_bias"] > 5 * found["squared_bias_se"]).all()
    assert (found["relative_bias"] > 5 * found["relative_bias_se"]).all()
    assert found["relative_std"][0] > found["relative_std"][1]  # low temperatures are noisy


@pytest.mark.parametrize("chosen", [REINFORCE, estimator("gumbel-softmax", temperature=0.5)])
def test_one_backward_pass_gives_estimates_of_the_same_law(chosen):
    problem = make_problem(PROBLEM.vae(), PROBLEM.x())
    with seeded(3):
        together = Probe(problem, chosen)(1000)
        one_by_one = Probe(problem, chosen)
        apart = torch.cat([one_by_one() for _ in range(120)])
    assert together.shape == (1000, B * N * K) and apart.shape == (120, B * N * K)
    for power in (1, 2):
        means, errors = zip(
            *((g.pow(power).mean(0), g.pow(power).var(0) / len(g)) for g in (together, apart)), strict=True
        )
        assert ((means[0] - means[1]).abs() < 5 * (errors[0] + errors[1]).sqrt() + 1e-12).all()
    correlations = torch.corrcoef(together[:, :: N * K].T) - torch.eye(B)  # rows are independent of each other
    assert correlations.abs().max() < 5 / math.sqrt(1000)


def divergence_gradient(vae, x):
    logits = vae.encoder(x).detach().requires_grad_()
    q = torch.distributions.OneHotCategorical(logits=logits)
    p = torch.distributions.OneHotCategorical(logits=vae.prior_logits.expand_as(logits))
    return torch.autograd.grad(torch.distributions.kl_divergence(q, p).sum(), logits)[0].flatten()


@pytest.mark.parametrize("chosen", [estimator("exact"), estimator("gumbel-softmax", kl="categorical")])
def test_the_reconstruction_term_is_the_total_without_the_divergence(chosen):
    vae, x = PROBLEMS[1].vae(), PROBLEM.x()  # a learned prior, far from uniform
    problem = make_problem(vae, x)
    with seeded(0):
        total = Probe(problem, chosen)()[0]
    with seeded(0):
        reconstruction = Probe(problem, chosen, term="reconstruction")()[0]
    torch.testing.assert_close(total - divergence_gradient(vae, x), reconstruction)
    assert not torch.allclose(total, reconstruction, rtol=0.1)


def test_what_the_elbo_is_not_is_not_called_biased():
    found = report(PROBLEM.vae(), PROBLEM.x(), ["exact-evidence"], wrt=("logits", "parameters"))
    assert "no" not in found["approximates"][1] and "log-evidence" in found["approximates"][1]
    assert found.loc[1, list(COMPARED)].isna().all() and found["relative_std"][1] == 0
    assert found["refused"].notna().tolist() == [True, False]
    assert "gradient with respect to the guide's logits, but found none" in found["refused"][0]
    assert found.loc[0, list(COLUMNS)].isna().all()


def test_a_refusal_is_a_row():
    found = report(PROBLEM.vae(), PROBLEM.x(), [row("refusing", Refusing), "exact"])
    assert found["refused"][0] == "Expected two categories, but found more." and pd.isna(found["refused"][1])
    late = report(PROBLEM.vae(), PROBLEM.x(), ["gumbel-softmax"], temperatures=(-1.0,))
    assert "positive temperature" in late["refused"][0]


def test_an_estimator_learns_its_own_state_first():
    probe = Probe(make_problem(PROBLEM.vae(), PROBLEM.x()), row("counting", Counting))
    own = probe.elbo.own
    assert own.calls >= WARMUP and own.baseline.item() < -0.1  # log-likelihoods are negative


def user_pair():
    def model(x):
        means = pyro.param("means", torch.randn(6, 6))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.OneHotCategorical(logits=torch.zeros(2, 3)).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=z.flatten(-2) @ means).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.OneHotCategorical(logits=pyro.param("logits", torch.randn(8, 2, 3))).to_event(1))

    return Pair(model, guide)


def test_a_users_pair_is_measured_as_it_stands():
    x = torch.rand(8, 6).round()
    options = {"temperatures": (0.5,), "vectorize": False, "num_samples": 32, "num_parameter_samples": 32}
    found = report(user_pair(), x, ["exact", "gumbel-softmax", REINFORCE], wrt=("logits", "parameters"), **options)
    assert found["refused"].isna().all()
    assert (found["relative_bias"][found["estimator"] == "exact"] < 1e-6).all()  # the same random parameters throughout
    # Its logits have a fixed number of rows, so the data cannot be repeated.
    assert report(user_pair(), x, ["gumbel-softmax"], temperatures=(0.5,), num_samples=64)["refused"].isna().all()


def test_nothing_of_the_users_changes():
    vae, x = PROBLEM.vae(), PROBLEM.x()
    pair = user_pair()
    pyro.param("means", torch.zeros(6, 6))
    pyro.get_param_store()["means"].unconstrained().grad = torch.ones(6, 6)
    state, before = {name: value.clone() for name, value in vae.state_dict().items()}, torch.get_rng_state()
    report(vae, x, ["exact", "gumbel-softmax"], wrt=("logits", "parameters"), num_samples=64)
    report(pair, torch.ones(8, 6), ["exact"], wrt=("logits", "parameters"), vectorize=False)
    assert all(parameter.grad is None and parameter.requires_grad for parameter in vae.parameters())
    assert all(torch.equal(state[name], value) for name, value in vae.state_dict().items())
    assert torch.equal(torch.get_rng_state(), before)
    assert list(pyro.get_param_store().keys()) == ["means"]
    means = pyro.get_param_store()["means"].unconstrained()
    assert (means == 0).all() and (means.grad == 1).all()


def test_the_same_seed_gives_the_same_report():
    vae, x = PROBLEM.vae(torch.float32), PROBLEM.x(torch.float32)
    first, second = (report(vae, x, ["gumbel-softmax"], num_samples=64, dtype=torch.float64) for _ in range(2))
    pd.testing.assert_frame_equal(
        *(frame.drop(columns=["seconds", "mse_at_budget", "mse_at_budget_se"]) for frame in (first, second))
    )
    problem = make_problem(vae, x, dtype=torch.float64)
    sums = sample_moments(problem, estimator("gumbel-softmax"), reference=None, num_samples=10, num_groups=2)
    assert sums.total.dtype == torch.float64 and next(vae.parameters()).dtype == torch.float32


def test_candidates_are_a_grid_of_what_has_a_temperature():
    found = candidates(["exact", "gumbel-softmax"], temperatures=(0.3, 0.6), kl="categorical", max_memory=1e9)
    assert [(one.name, one.temperature) for one in found] == [
        ("exact", None),
        ("gumbel-softmax", 0.3),
        ("gumbel-softmax", 0.6),
    ]
    assert found[2].make().temperature == 0.6 and found[2].make().objective is Objective.SOFT_ELBO
    assert candidates([REINFORCE])[0].make() is REINFORCE


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"num_samples": 31}, "Expected at least 32 samples, two for each group, but found 31"),
        ({"estimators": ["gumble"]}, "Expected an estimator among"),
    ],
)
def test_what_cannot_be_measured_is_refused(options, sentence):
    with pytest.raises(ValueError, match=sentence):
        gradient_report(**{"vae": PROBLEM.vae(), "x": PROBLEM.x(), "estimators": ["exact"]} | options)


def test_a_program_that_is_no_module_has_its_own_type():
    with pytest.raises(ValueError, match="Expected a module, which can be converted"):
        make_problem(user_pair(), torch.ones(8, 6), dtype=torch.float64)


def test_a_site_of_one_latent_is_measured():
    decoder = torch.randn(3, 4)

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.OneHotCategorical(logits=torch.zeros(3)))
            pyro.sample("x", dist.Bernoulli(logits=z @ decoder).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.OneHotCategorical(logits=x @ decoder.T))

    found = report(Pair(model, guide), torch.ones(5, 4), [REINFORCE], num_samples=2048).iloc[0]
    assert found["refused"] is None, found["refused"]
    assert abs(found["squared_bias"]) < 5 * found["squared_bias_se"] < found["mse"]


def test_wide_models_are_measured_in_several_calls():
    problem = make_problem(CategoricalVAE(400, 2, 3, (2000,)), torch.rand(50, 400))
    assert 1 <= Probe(problem, estimator("gumbel-softmax")).most_repeats < 100


def test_every_estimator_has_its_own_time_and_temperatures_share_one(monkeypatch):
    timed = []

    def particles(problem, chosen):
        timed.append(chosen.name)
        return float(getattr(chosen.elbo(), "num_particles", 1))

    monkeypatch.setattr(timing, "_step_seconds", particles)
    few, many = (estimator("reinforce-loo", num_particles=number) for number in (2, 64))
    grid = [few, many, "gumbel-softmax", with_kl_weight(many, 0.5)]
    found = report(PROBLEM.vae(), PROBLEM.x(), grid, temperatures=(0.5, 1.0), num_samples=64, budget=None)
    assert found["seconds"].tolist() == [2, 64, 1, 1, 64] and (found["budget"] == 1).all()
    # At equal seconds, the noise with 64 particles counts 32 times as much as it would at the time of two particles.
    rows = found[:2]
    noise = (rows["mse"] * rows["seconds"]).tolist()
    assert rows["mse_at_budget"].tolist() == pytest.approx(noise, rel=0.2)
    assert timed == ["exact", "reinforce-loo", "reinforce-loo", "gumbel-softmax", "reinforce-loo"]


def test_what_differs_in_more_than_a_temperature_is_another_family():
    cool, warm = candidates(["gumbel-softmax"], temperatures=(0.5, 1.0), kl="categorical")
    [other] = candidates(["gumbel-softmax"], temperatures=(0.5,))
    [unknown] = candidates(["reinforce-baseline"], hidden=[3])  # an option may be a list
    assert cool.family == warm.family != other.family
    assert unknown.family != candidates(["reinforce-baseline"], hidden=[3])[0].family


def test_names_may_have_options():
    found = candidates(
        ["gumbel-softmax[kl=relaxed]", "reinmax[temperature=2.0]"], temperatures=(0.5,), kl="categorical"
    )
    assert [(one.name, one.temperature) for one in found] == [
        ("gumbel-softmax[kl=relaxed]", 0.5),
        ("reinmax[temperature=2.0]", 2.0),
    ]
    assert [one.make().temperature for one in found] == [0.5, 2.0]
    assert found[0].make().objective is Objective.RELAXED_ELBO
    [sites] = candidates(["per-site[y=exact]"])
    assert sites.make().name.startswith("per-site[y=exact")
    advised = Advice("gumbel-softmax[kl=relaxed]", 0.5, "exact", ())
    assert advised.stages == "gumbel-softmax[kl=relaxed,temperature=0.5]:20,exact:3"


def test_beside_a_gaussian_the_reference_is_a_mean(slow_clock):
    size = {"model": "joint", "num_latents": 1, "num_categories": 3, "latent_dim": 2, "hidden": (8,)}
    config = GradientsConfig(**size, num_data=5, num_samples=64, double=True)
    data = load("digits", binarize="threshold")
    laboratory._check_codes(config, data)
    vae = initial_model(config.training(), data)
    cells = [("logits", one) for one in candidates(["exact", "reinforce-loo"])]
    rows = list(laboratory._rows(config, vae, data.train[:5], cells))
    for one in rows:
        assert one["reference"] == "the mean of 256 estimates by exact" and one["relative_std"] > 0.1
        assert abs(one["squared_bias"]) < 5 * (one["squared_bias_se"] + one["reference_error"] ** 2)
    with pytest.raises(ValueError, match="independent in the guide for the reconstruction term"):
        laboratory._check_codes(replace(config, protocol="reinmax"), data)


def test_the_laboratory_refuses_by_counted_work(slow_clock):
    data = load("digits")
    small = GradientsConfig(num_latents=2, num_categories=3, hidden=(8,))
    laboratory._check_codes(small, data)
    with pytest.raises(ValueError, match="Expected codes that can be summed in 6e"):
        laboratory._check_codes(replace(small, num_latents=30), data)


def test_advice_takes_the_exact_gradient_by_counted_work(slow_clock):
    problem = make_problem(PROBLEM.vae(), PROBLEM.x())
    assert obstacle_to_sums(problem, 1e8, None) is None
    assert "One exact gradient sums over 8 codes" in obstacle_to_sums(problem, 1, None)
