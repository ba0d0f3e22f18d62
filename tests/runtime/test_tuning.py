"""The sizes for another device change the speed of a computation, and its result only by rounding."""

from dataclasses import replace

import pytest
import torch

from pyro_gvae import exact
from pyro_gvae.diagnostics.probe import Probe, make_problem
from pyro_gvae.estimators import estimator
from pyro_gvae.evaluate.importance import importance_weighted
from pyro_gvae.exact.plan import make_plan
from pyro_gvae.models.categorical_vae import CategoricalVAE
from pyro_gvae.programs.runs import bind_pair
from pyro_gvae.runtime import tuning
from pyro_gvae.train.step import make_step

#: A device with small slices that does not look for negligible codes.
SMALL = tuning.Tuning(
    slice_bytes=5e4,
    forward_bytes=2e4,
    few_codes=0,
    searched_bytes=float("inf"),
    decoded_rows=8,
    normalized_elements=30,
    repeated_bytes=1e4,
    many_categories=2,
)


def vae_and_data():
    torch.manual_seed(0)
    return CategoricalVAE(12, 4, 3, (8,)).double(), torch.rand(5, 12, dtype=torch.float64).round()


def results():
    vae, x = vae_and_data()
    steps = [make_step(vae, estimator(name), optimizer="SGD", lr=1e-2) for name in ("exact", "local-expectation")]
    torch.manual_seed(1)
    losses = [step(x) for _ in range(2) for step in steps]
    found = importance_weighted(vae, x, 50)
    gradients = Probe(make_problem(vae, x), estimator("gumbel-softmax"))(2)
    with torch.no_grad():
        evidence = exact.log_evidence(vae, x)
    best = exact.mean_field(vae, x, tolerance=1e-14, max_sweeps=1000).elbo
    return [*losses, exact.log_evidence(vae, x), evidence, best, found.neighbourhood, gradients]


@pytest.mark.usefixtures("recorded")
@pytest.mark.parametrize("sizes", [tuning.ACCELERATOR, SMALL], ids=["accelerator", "small"])
def test_results_are_those_of_a_cpu(sizes, monkeypatch):
    expected = results()
    monkeypatch.setattr(tuning, "CPU", sizes)
    for found, one in zip(results(), expected, strict=True):
        torch.testing.assert_close(found, one, rtol=1e-10, atol=1e-12)


def test_slices_are_as_large_as_is_fast_and_fits(monkeypatch):
    vae, x = vae_and_data()

    def slices(**options):
        return make_plan(bind_pair(vae, x), **options).num_slices

    assert slices() == 1
    monkeypatch.setattr(tuning, "CPU", replace(tuning.CPU, slice_bytes=5e4))
    assert slices() > 1 == slices(with_gradient=False)
    monkeypatch.setattr(tuning, "CPU", replace(tuning.CPU, slice_bytes=96e6, forward_bytes=5e4))
    assert slices() == 1 < slices(with_gradient=False)
    monkeypatch.setattr(tuning, "CPU", tuning.ACCELERATOR)
    assert slices() == slices(with_gradient=False) == 1 < slices(max_memory=5e4)
