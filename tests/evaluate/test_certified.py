"""Certified bounds of log p(x): the interval contains the sum over all codes, for every model."""

from typing import Any, ClassVar

import pyro
import pyro.distributions as dist
import pytest
import torch
from pairs import DATA, PROGRAMS
from problems import PROBLEMS, evidence_in_a_loop
from pyro import poutine

from pyro_gvae import CategoricalVAE, exact
from pyro_gvae.data.dataset import Dataset
from pyro_gvae.evaluate import certified
from pyro_gvae.evaluate.certified import certified_bounds
from pyro_gvae.evaluate.metrics import evaluate
from pyro_gvae.exact import Pair

ROUNDING = 1e-9
COUNTS = (1, 2, 3, 5, 7, 8)
#: Problems with an upper bound: all but continuous densities without a scale of their own.
BOUNDED = [problem for problem in PROBLEMS if not problem.name.startswith("continuous")]


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("problem", PROBLEMS, ids=lambda problem: problem.name)
def test_the_interval_contains_the_sum_over_all_codes(problem, seed):
    vae, x = problem.vae(), problem.x()
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in vae.parameters():
            parameter.mul_(3 * torch.rand(()))
    expected = evidence_in_a_loop(problem, vae, x)
    # torch uses a Taylor series for continuous Bernoullis near 1 / 2.
    rounding = ROUNDING if problem in BOUNDED else 1e-4
    for count in COUNTS:
        found = certified_bounds(vae, x, count)
        assert (found.lower <= expected + rounding).all()
        assert (found.upper is None) == (problem not in BOUNDED and not found.is_complete)
        if found.upper is not None:
            assert (expected <= found.upper + rounding).all()
    assert found.is_complete
    torch.testing.assert_close(found.lower, expected, rtol=0, atol=rounding)
    torch.testing.assert_close(found.upper, expected, rtol=0, atol=rounding)


def wide_vae(num_latents, num_categories, sharpness, seed):
    torch.manual_seed(seed)
    vae = CategoricalVAE(6, num_latents, num_categories, hidden=(8,), learn_prior=True).double()
    with torch.no_grad():
        for parameter in vae.parameters():
            parameter.add_(sharpness * torch.randn_like(parameter))
    return vae


@pytest.mark.parametrize("rounds", [1, 16])  # many codes are expanded at once, or few
@pytest.mark.parametrize("sharpness", [0.3, 1.0, 3.0])
@pytest.mark.parametrize("seed", range(2))
def test_the_interval_contains_log_p_where_most_codes_are_left_out(rounds, sharpness, seed, monkeypatch):
    monkeypatch.setattr(certified, "_MOST_ROUNDS", rounds)
    vae, x = wide_vae(4, 4, sharpness, seed), torch.rand(7, 6).double()
    expected = exact.log_evidence(vae, x)
    widths = []
    for count in (4, 30, 120, 255):
        found = certified_bounds(vae, x, count)
        assert (found.lower <= expected + ROUNDING).all() and (expected <= found.upper + ROUNDING).all()
        widths.append((found.upper - found.lower).mean())
    assert widths == sorted(widths, reverse=True)


def test_the_check_finds_a_code_that_is_counted_twice(monkeypatch):
    """The negative control."""
    monkeypatch.setattr(certified, "_is_known", lambda new, *_: torch.zeros(new.shape[:2], dtype=torch.bool))
    vae, x = wide_vae(3, 3, 1.0, 0), torch.rand(7, 6).double()
    assert (certified_bounds(vae, x, 26).lower > exact.log_evidence(vae, x) + 0.01).any()


def test_changes_of_one_digit_find_codes_that_the_guide_has_missed():
    vae, x = wide_vae(4, 3, 2.0, 1), torch.rand(5, 6).double().round()
    with torch.no_grad():
        for parameter in vae.encoder.parameters():
            parameter.zero_()  # all codes are as probable
    grown = exact.log_evidence(vae, x) - certified_bounds(vae, x, 40).lower
    half = exact.log_evidence(vae, x) - certified_bounds(vae, x, 20).lower
    assert grown.mean() < 0.3 < half.mean()


DISCRETE = ["two layers, bottom-up", "two layers, top-down", "bits and an integer"]


@pytest.mark.parametrize("name", DISCRETE)
def test_latents_that_depend_on_each_other(name):
    program = PROGRAMS[name]
    observed = Pair(with_bits(program.model), program.guide)
    expected = exact.log_evidence(observed, DATA)
    for count in (3, 7, 12):
        found = certified_bounds(observed, DATA, count)
        assert (found.lower <= expected + ROUNDING).all() and (expected <= found.upper + ROUNDING).all()
    torch.testing.assert_close(found.lower, expected)


class Thresholded(poutine.messenger.Messenger):
    """Replace normal observations by bits with given log-odds."""

    def _pyro_sample(self, msg):
        if msg["name"] == "x":
            msg["fn"] = dist.Bernoulli(logits=msg["fn"].base_dist.loc).to_event(1)
            msg["value"] = (msg["value"] > 0).double()


def with_bits(program):
    def run(x):
        with Thresholded():
            program(x)

    return run


def test_scales_and_masks_are_the_programs():
    vae, x = wide_vae(3, 3, 1.0, 0), torch.rand(7, 6).double()
    masked = torch.arange(7) < 5

    def scaled(program):
        return poutine.scale(poutine.mask(program, mask=masked), scale=2.0)

    pair = Pair(scaled(vae.model), scaled(vae.guide))
    found = certified_bounds(pair, x, 10)
    plain = certified_bounds(vae, x, 10)
    torch.testing.assert_close(found.lower[:5], 2 * plain.lower[:5])
    torch.testing.assert_close(found.upper[:5], 2 * plain.upper[:5])
    assert (found.lower[5:] <= ROUNDING).all() and (found.upper[5:] >= -ROUNDING).all()


def two_codes(*, read):
    """A code that depends on a normal that depends on another code."""

    def program(x):
        with pyro.plate("data", len(x)):
            first = pyro.sample("first", dist.Bernoulli(torch.full((len(x),), 0.4).double()))
            c = pyro.sample("c", dist.Normal(first, 1.0))
            second = pyro.sample("second", dist.Bernoulli(logits=c))
            if read:
                pyro.sample("x", dist.Normal(c + second, 1.0), obs=x[:, 0])

    return program


def test_what_has_no_certain_bound_is_refused():
    for name, sentence in (
        ("a normal given a code", "no sum can be taken"),
        ("a global code", "which several data share"),
    ):
        program = PROGRAMS[name]
        with pytest.raises(ValueError, match=sentence):
            certified_bounds(Pair(program.model, program.guide), DATA, 4)
    between = Pair(two_codes(read=True), two_codes(read=False))
    with pytest.raises(ValueError, match="no sum can be taken"):
        certified_bounds(between, DATA, 4)
    with pytest.raises(ValueError, match="at least one code, but found num_codes=0"):
        certified_bounds(wide_vae(2, 2, 1.0, 0), torch.rand(3, 6).double(), 0)
    with pytest.raises(ValueError, match="one datum or more, but found none"):
        certified_bounds(wide_vae(2, 2, 1.0, 0), torch.rand(0, 6).double())


class OnlyScored(dist.TorchDistribution):
    """A density of the user's, without a support, which Pyro needs only to check data."""

    arg_constraints: ClassVar[dict[str, Any]] = {}

    def __init__(self, centre: torch.Tensor) -> None:
        self.centre = centre
        super().__init__(centre.shape, validate_args=False)

    def log_prob(self, value: torch.Tensor) -> torch.Tensor:
        return -(value - self.centre).abs()


def test_a_distribution_without_a_support_has_no_upper_bound():
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Categorical(torch.tensor([0.2, 0.3, 0.5]).double()))
            pyro.sample("x", OnlyScored(torch.tensor([0.0, 1.0, 2.0]).double()[z].expand(z.shape)), obs=x[:, 0])

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Categorical(torch.ones(len(x), 3).double()))

    pair = Pair(model, guide)
    found = certified_bounds(pair, DATA, 2)
    assert found.upper is None and (found.lower < exact.log_evidence(pair, DATA)).all()


def test_an_evaluation_says_which_bound_is_certain():
    vae, x = wide_vae(3, 3, 1.0, 0).float(), torch.rand(9, 6).round()
    found = evaluate(vae, Dataset("few", x, x, (2, 3)), evidence="importance-weighted", num_particles=10)
    rows = found.metrics.query("part == 'test'").set_index("metric")
    assert list(rows.loc[["iwae_bound", "lower_bound", "upper_bound"], "method"]) == [
        "10 samples",
        "certain, 10 codes",
        "certain, 10 codes",
    ]
    summed = exact.log_evidence(vae, x).mean()
    assert found.value("test", "lower_bound") <= summed <= found.value("test", "upper_bound")
