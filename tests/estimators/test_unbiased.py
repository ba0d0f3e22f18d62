"""Unbiased estimators: their mean gradient is the exact one, within five standard errors, in every coordinate."""

from typing import Any

import pytest
import torch
from draws import exact_gradient, standard_scores
from problems import Rows
from torch import Tensor

from pyro_gvae.estimators import ESTIMATORS, Estimator, Objective, estimator

#: Options other than the defaults to test.
MORE_OPTIONS: list[tuple[str, dict[str, Any]]] = [
    ("reinforce", {"num_particles": 3}),
    ("reinforce-baseline", {"num_particles": 3}),
    ("reinforce-baseline", {"baseline": "neural", "data_dim": Rows.DIM}),
    ("reinforce-loo", {"num_particles": 2}),
    ("top-c", {"num_codes": 3}),
]
#: Gradients of objectives other than the ELBO are tested elsewhere.
UNBIASED = [
    (name, options)
    for name, options in [*((name, {}) for name in ESTIMATORS), *MORE_OPTIONS]
    if (row := estimator(name, **options)).is_unbiased and not row.is_exact and row.objective is Objective.ELBO
]
NUM_ROWS, NUM_CALLS = 4000, 4
WARM_UP = 3  # steps in which an ELBO learns its own state, such as a baseline


def sampled_gradients(chosen: Estimator, *problem: Any) -> Tensor:
    """Return independent estimates: (samples, coordinates)."""
    rows = Rows(*problem, NUM_ROWS)
    model, guide, elbo = chosen.bind(rows)
    torch.manual_seed(5)
    found = []
    warm_up = WARM_UP if hasattr(elbo, "own") else 0
    for _ in range(warm_up + NUM_CALLS):
        rows.zero_grad()
        elbo.loss_and_grads(model, guide, rows.x)
        found.append(rows.gradients())
    return torch.cat(found[warm_up:])


#: Decoder, N and K: two categories, three and many, a decoder that mixes the latents and one that does not. Programs of
#: `test_table.py` have one latent.
PROBLEMS = [
    pytest.param("mlp", 3, 2, id="mlp-N3-K2"),
    pytest.param("mlp", 3, 3, id="mlp-N3-K3"),
    pytest.param("linear", 3, 8, id="linear-N3-K8", marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("decoder", "num_latents", "num_categories"), PROBLEMS)
@pytest.mark.parametrize(("name", "options"), UNBIASED)
def test_the_mean_gradient_is_the_exact_one(name, options, decoder, num_latents, num_categories):
    chosen = estimator(name, **options)
    if chosen.num_categories not in (None, num_categories):
        pytest.skip(f"{name} takes K = {chosen.num_categories} alone")
    problem = decoder, num_latents, num_categories
    samples = sampled_gradients(chosen, *problem)
    scores = standard_scores(samples, exact_gradient(*problem), num_latents, num_categories)
    assert scores.max() < 5


@pytest.mark.parametrize("kl", ["relaxed", "categorical"])
@pytest.mark.parametrize("num_categories", [2, 3])
def test_a_relaxation_fails(kl, num_categories):
    """The negative control: a relaxation is known to be biased."""
    problem = "mlp", 3, num_categories
    relaxed = estimator("gumbel-softmax", kl=kl, temperature=0.5)
    samples = sampled_gradients(relaxed, *problem)
    scores = standard_scores(samples, exact_gradient(*problem), *problem[1:])
    assert scores.max() > 5
