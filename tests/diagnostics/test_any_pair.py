"""Gradients of programs with several latents: the reference against a loop over codes, and a row per estimator."""

import pyro
import pytest
import torch
from brute import every_code, expected, sharp
from pairs import DATA, PROGRAMS
from pyro.poutine.messenger import Messenger

from pyro_gvae.diagnostics import gradient_report as report_module
from pyro_gvae.diagnostics import probe as probe_module
from pyro_gvae.diagnostics import timing
from pyro_gvae.diagnostics.advise import advise_on
from pyro_gvae.diagnostics.candidates import candidates
from pyro_gvae.diagnostics.gradient_report import gradient_report
from pyro_gvae.diagnostics.probe import Probe, make_problem
from pyro_gvae.diagnostics.references import References
from pyro_gvae.diagnostics.reinmax import reinmax_protocol
from pyro_gvae.estimators import ESTIMATORS, estimator, with_free_bits, with_kl_weight
from pyro_gvae.exact import Pair
from pyro_gvae.models.gaussian_mixture_vae import GaussianMixtureVAE
from pyro_gvae.runtime.rng import seeded


@pytest.fixture(autouse=True)
def no_clock(monkeypatch):
    monkeypatch.setattr(timing, "_step_seconds", lambda problem, chosen: 1.0)


class Offset(Messenger):
    """Add a leaf to the logits of some one-hots, in stock Pyro; the probe claims to do the same."""

    def __init__(self, offsets):
        super().__init__()
        self.offsets = offsets

    def _pyro_sample(self, msg):
        if msg["name"] in self.offsets:
            logits = msg["fn"].logits + self.offsets[msg["name"]]
            msg["fn"] = pyro.distributions.OneHotCategorical(logits=logits)


@pytest.mark.parametrize("name", ["two layers, bottom-up", "two layers, top-down", "two layers, independent"])
def test_the_exact_gradient_of_logits_that_depend_on_other_latents(name):
    pair = sharp(name)
    sizes = {"top": 3, "below": 4}
    offsets = {site: torch.zeros(len(DATA), size).double().requires_grad_() for site, size in sizes.items()}
    said = every_code(Pair(pair.model, Offset(offsets)(pair.guide)), DATA)
    elbo = expected(said, [sum(one.log_p.values()) - sum(one.log_q.values()) for one in said]).sum()
    order = [site for site in said[0].digits if site in sizes]
    wanted = torch.cat([own.flatten() for own in torch.autograd.grad(-elbo, [offsets[site] for site in order])])
    found = Probe(make_problem(pair, DATA), estimator("exact"))()[0]
    torch.testing.assert_close(found, wanted)
    assert wanted.abs().max() > 0.1


def report(pair, *arguments, wrt=("logits",), x=DATA, **options):
    return gradient_report(pair, x, *arguments, wrt=wrt, seed=1, **{"num_samples": 512, "budget": 1.0} | options)


@pytest.mark.parametrize("name", ["two layers, top-down", "a global code", "nested plates"])
def test_unbiased_estimators_are_found_unbiased(name):
    pair = sharp(name)
    number = 64 if name == "a global code" else 256  # each takes a call, since repeated data would share the code
    found = report(pair, ["exact", "reinforce-loo"], num_samples=number)
    assert found["refused"].isna().all() and (found["reference"] == "exact").all()
    assert found["relative_bias"][0] < 1e-9 and found["samples"].tolist() == [1, number]
    assert abs(found["squared_bias"][1]) < 5 * found["squared_bias_se"][1] < found["mse"][1]
    repeats = Probe(make_problem(pair, DATA), estimator("reinforce-loo")).most_repeats
    assert (repeats == 1) == (name == "a global code")


@pytest.mark.parametrize("wrt", ["logits", "parameters"])
def test_beside_continuous_latents_the_reference_is_a_long_mean(wrt):
    with seeded(0):
        vae, x = GaussianMixtureVAE(6, num_components=3, latent_dim=2, hidden=(5,)), torch.rand(8, 6).round()
    options = {"x": x, "num_samples": 64, "num_parameter_samples": 32}
    found = report(vae, ["exact", "reinforce-loo", "exact-evidence"], wrt=(wrt,), **options)
    number = options["num_samples" if wrt == "logits" else "num_parameter_samples"]
    assert found["reference"][0] == f"the mean of {4 * number} estimates by exact"
    assert 0 < found["reference_error"][0] < 0.5
    assert (found["squared_bias"].abs() < 5 * found["squared_bias_se"] + found["reference_error"] ** 2)[:2].all()
    assert found["samples"][0] == number and found["relative_std"][0] > 0  # the normal is drawn
    assert "no sum can be taken" in found["refused"][2]


def test_without_sums_another_unbiased_estimator_is_the_reference():
    found = report(sharp("two layers, top-down"), ["reinforce-loo"], num_samples=1024, max_operations=0)
    assert found["reference"][0].startswith("the mean of 4096 estimates by ") and "exact" not in found["reference"][0]
    assert 0 < found["reference_error"][0] < 1
    assert abs(found["squared_bias"][0]) < 5 * found["squared_bias_se"][0] + found["reference_error"][0] ** 2
    # There is no reference if the noise exceeds the gradient.
    noisy, _ = candidates(["reinforce", "exact"])
    problem = make_problem(sharp("two layers, top-down", 0.1), DATA)
    assert References(problem, "logits", [noisy], count=lambda _: 2)(estimator("exact")) is None


@pytest.mark.parametrize("wrt", ["logits", "parameters"])
def test_another_objective_is_held_against_its_own_gradient(wrt):
    pair = sharp("two layers, top-down")
    exact = estimator("exact")
    grid = [with_kl_weight(exact, 0.3), with_free_bits(exact, {"top": 3.0}), with_free_bits(exact, 0.4), exact]
    found = report(pair, grid, wrt=(wrt,))
    assert (found["relative_bias"] < 1e-9).all()
    assert found["reference"].tolist() == [f"exact{''.join(map(str, one.details))}" for one in grid]
    problem = make_problem(pair, DATA)
    gradients = [Probe(problem, one, wrt=wrt)()[0] for one in grid]
    assert (gradients[0] - gradients[3]).abs().max() > 0.1  # the control: the objectives do differ
    assert (gradients[1] - gradients[3]).abs().max() > 0.1


@pytest.mark.filterwarnings("ignore:Expected programs that accept codes")
@pytest.mark.parametrize("name", ["bits and an integer", "a mixture with Dirichlet weights"])
def test_every_estimator_is_a_row(name, monkeypatch):
    """No number is tested here, so the fewest samples are enough: two for each of two groups, after one warming up."""
    monkeypatch.setattr(report_module, "NUM_GROUPS", 2)
    monkeypatch.setattr(probe_module, "WARMUP", 1)
    pyro.clear_param_store()
    pair = Pair(*PROGRAMS[name][:2])
    found = report(pair, list(ESTIMATORS), wrt=("parameters",), num_parameter_samples=4)
    refused = found.set_index("estimator")["refused"].dropna()
    assert refused.str.startswith("Expected ").all() and "gumbel-softmax" in refused
    assert {"exact", "reinforce", "reinforce-loo", "vimco"}.isdisjoint(refused.index)


def test_all_arguments_of_a_program_are_its_data():
    def model(x, scale):
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", pyro.distributions.OneHotCategorical(logits=torch.zeros(3).double()))
            pyro.sample("x", pyro.distributions.Normal(y[..., 0] * scale, 1.0), obs=x)

    def guide(x, scale):
        with pyro.plate("data", len(x)):
            pyro.sample("y", pyro.distributions.OneHotCategorical(logits=x.unsqueeze(-1) * torch.arange(3.0).double()))

    x, scale = DATA[:, 0], torch.linspace(0.0, 2.0, len(DATA)).double()
    found = report(Pair(model, guide), ["reinforce-loo"], x=(x, scale), num_samples=64)
    assert found["refused"].isna().all() and found["mse"][0] > 0


def test_the_reconstruction_term_needs_independent_latents():
    found = reinmax_protocol(sharp("two layers, independent"), DATA, ["exact", "reinforce-loo"], num_samples=64)
    assert found["refused"].isna().all() and found["relative_bias"][0] < 1e-9
    for name in ("two layers, top-down", "a normal given a code"):
        with pytest.raises(ValueError, match="independent in the guide for the reconstruction term"):
            reinmax_protocol(sharp(name, 1.0), DATA, ["exact"])


def test_advice_for_a_program_of_ones_own():
    with seeded(0):
        vae, x = GaussianMixtureVAE(6, num_components=3, latent_dim=2, hidden=(5,)), torch.rand(8, 6).round()
    table, found = advise_on(vae, x, estimators=("exact", "reinforce-loo", "gumbel-softmax", "disarm"), seconds=0.4)
    assert table["reference"].iloc[0].endswith("estimates by exact")
    assert table.set_index("estimator")["refused"].isna().tolist() == [True, True, True, True, False]
    assert found.estimator in ("exact", "reinforce-loo", "gumbel-softmax")
