"""Imputation: moments of missing cells against loops over codes and columns with torch's distributions."""

import math

import numpy as np
import pandas as pd
import pytest
import torch
from rows import COLUMNS, D, brute_force, cell, observation, rows

from pyro_gvae import CategoricalVAE
from pyro_gvae.data.tables import encoded
from pyro_gvae.evaluate.impute import impute
from pyro_gvae.evaluate.predictive import moments, origin, predictive_means, sampled_predictive_means
from pyro_gvae.models.hierarchical_categorical_vae import HierarchicalCategoricalVAE
from pyro_gvae.models.joint_vae import JointVAE
from pyro_gvae.models.table import Column, TableObservation


def test_moments_are_those_of_the_posterior_predictive_code_by_code():
    built, x = observation(), rows(6)
    vae = CategoricalVAE(D, 2, 3, (5,), built, learn_prior=True).double()
    torch.nn.init.normal_(vae.prior_logits)
    codes = torch.cartesian_prod(torch.arange(3), torch.arange(3))
    natural = vae.decoder(torch.nn.functional.one_hot(codes, 3).double())  # (S, M)
    prior = vae.prior_logits.log_softmax(-1)[torch.arange(2), codes].sum(-1)
    expected = []
    for row in x:
        joint = prior + torch.stack([brute_force(built, own, row) for own in natural])
        weights = (joint - joint.logsumexp(0)).exp()
        parts = []
        for column in COLUMNS:
            family, _ = cell(built, column, natural)
            if column.levels:
                levels = torch.arange(len(column.levels)).double()
                probs = torch.stack([family.log_prob(level).exp() for level in levels], 1)
            else:
                mean = family.mean - origin(column)
                probs = torch.stack([mean, mean.square() + family.variance], 1)
            parts.append(weights @ probs)
        expected.append(torch.cat(parts))
    found = predictive_means(vae, x).means
    torch.testing.assert_close(found, torch.stack(expected).detach(), atol=1e-8, rtol=1e-8)


def repeated(vae, x, repeats=20, num_particles=400):
    """Return repeated estimates of the same moments, and their mean with its standard error."""
    torch.manual_seed(3)
    found = [sampled_predictive_means(vae, x, num_particles).means for _ in range(repeats)]
    means = torch.stack(found)
    return means.mean(0), means.std(0) / math.sqrt(repeats)


@pytest.mark.parametrize("prior", ["independent", "mixture"])
def test_weighted_samples_converge_to_the_exact_moments(prior, monkeypatch):
    monkeypatch.setattr("pyro_gvae.evaluate.predictive.PAIRS_AT_A_TIME", 300)  # several chunks of one row
    vae, x = CategoricalVAE(D, 2, 3, (5,), observation(), prior=prior).double(), rows(4)
    with torch.no_grad():
        vae.encoder[-2].weight.mul_(3)
        vae.decoder[-1].weight.mul_(3)
    mean, error = repeated(vae, x)
    expected = predictive_means(vae, x).means
    assert ((mean - expected).abs() < 5 * error + 1e-3 * (1 + expected.abs())).all()
    assert ((mean - predictive_means(vae, torch.full_like(x, math.nan)).means).abs() > 10 * error).any()


def test_continuous_latents_are_drawn():
    """The oracle is an integral on a grid for each category."""
    torch.manual_seed(0)
    vae, x = JointVAE(D, 1, 2, 1, (5,), observation=observation()).double(), rows(3)
    z = torch.linspace(-7, 7, 1001).double().reshape(-1, 1)
    log_p, values = [], []
    for y in torch.eye(2).double():
        row = vae.observation(vae.decoder(y.expand(len(z), -1), z))
        log_p.append(torch.stack([row.log_prob(one) for one in x], 1) - z.square() / 2)
        values.append(moments(row, vae.observation.columns))
    weights = torch.cat(log_p).softmax(0)  # (2 * 1001, rows)
    mean, error = repeated(vae, x)
    expected = (weights.T @ torch.cat(values)).detach()
    assert ((mean - expected).abs() < 5 * error + 1e-3 * (1 + expected.abs())).all()
    with pytest.raises(ValueError, match=r"are all discrete, but found 'z', over which no sum"):
        impute(vae, x, averaging="exact")


def test_what_is_approximate_says_so():
    vae, x = CategoricalVAE(D, 2, 3, (5,), observation(torch.float32)), rows(40).float()
    exactly, sampled = impute(vae, x), impute(vae, x, averaging="sampled", num_particles=50)
    assert exactly.notes() == [] and exactly.effective_sample_size is None
    assert sampled.notes()[0].startswith("approximate: 50 weighted samples of the guide for each row, of which ")
    assert exactly.cells[["row", "column"]].equals(sampled.cells[["row", "column"]])
    assert sampled.cells["effective_sample_size"].between(1, 50).all()
    assert sampled.cells.equals(impute(vae, x, averaging="sampled", num_particles=50).cells)  # the seed decides
    few = impute(vae, x, averaging="sampled", num_particles=5).notes()
    assert few[1].endswith("their values may be far from the posterior's. Try more particles.")
    large = CategoricalVAE(D, 40, 10, (5,), observation(torch.float32))
    assert impute(large, x[:2], num_particles=7).num_particles == 7  # there are too many codes for a sum


def test_numbers_far_from_zero_keep_their_differences():
    """Times in milliseconds, say: moments about zero would lose the spread, and the last digits of the mean."""

    def imputed(centre):
        torch.manual_seed(0)
        column = Column("time", "real", (), centre, 2.0)
        vae = CategoricalVAE(2, 2, 3, (5,), TableObservation([column, Column("sex", "binary", ("f", "m"))]))
        with torch.no_grad():
            vae.decoder[-1].weight.mul_(3)
        return impute(vae, torch.tensor([[math.nan, 0.0], [math.nan, 1.0]])).cells

    near, far = imputed(0.0), imputed(1.7e12)
    values = [np.array([float(value) for value in cells["value"]]) for cells in (near, far)]
    np.testing.assert_allclose(values[1] - 1.7e12, values[0], atol=1e-3)
    np.testing.assert_allclose(far["standard_deviation"], near["standard_deviation"], rtol=1e-6)
    assert near["standard_deviation"].min() > 1


def test_equal_weights_are_all_effective():
    vae = CategoricalVAE(D, 2, 3, (5,), observation())
    for parameter in vae.encoder.parameters():
        torch.nn.init.zeros_(parameter)
    vae, nothing = vae.double(), torch.full((2, D), math.nan).double()  # posterior and guide equal the prior
    sizes = sampled_predictive_means(vae, nothing, 30).effective_sample_size
    torch.testing.assert_close(sizes, torch.full((2,), 30.0).double())


def test_missing_cells_are_filled_and_known_ones_kept():
    frame = pd.DataFrame(
        {
            "id": ["a", "b", "c"],
            "age": [30.5, None, 41.25],
            "grade": [1.0, 2.0, None],
            "sex": ["f", None, "m"],
            "city": [None, "Rome", "Oslo"],
        },
        index=[7, 8, 9],
    )
    columns = [
        Column("sex", "binary", ("f", "m")),
        Column("age", "positive", (), 3.5, 0.5),
        Column("grade", "categorical", ("1", "2", "3")),
        Column("city", "categorical", ("Oslo", "Rome")),
    ]
    vae = HierarchicalCategoricalVAE(4, 2, 1, 3, (5,), observation=TableObservation(columns))
    found = impute(vae, frame)
    known = frame.notna()
    assert found.table.notna().all().all() and found.table[known].equals(frame[known])
    assert found.table["grade"].iloc[2] in (1.0, 2.0, 3.0) and found.table["grade"].dtype == float
    cells = list(zip(found.cells["row"], found.cells["column"], strict=True))
    assert cells == [(1, "city"), (2, "sex"), (2, "age"), (3, "grade")]
    totals = found.levels.groupby(["row", "column"])["probability"].sum()
    assert len(totals) == 3 and (totals - 1).abs().max() < 1e-6
    best = found.levels.groupby(["row", "column"])["probability"].max()
    chosen = found.cells.dropna(subset="probability").set_index(["row", "column"])["probability"]
    pd.testing.assert_series_equal(best, chosen.sort_index())
    by_tensor = impute(vae, encoded(frame, columns))
    pd.testing.assert_frame_equal(by_tensor.levels, found.levels)


def test_what_is_known_is_not_asked_again():
    vae = CategoricalVAE(D, 1, 2, (5,), observation(torch.float32))
    found = impute(vae, rows(3, share_missing=0.0).float())
    assert found.cells.empty and found.levels.empty


def test_other_programs_and_tables_are_refused():
    with pytest.raises(ValueError, match="a program of a table, but found data in"):
        impute(CategoricalVAE(4, 1, 2, (5,)), torch.full((2, 4), math.nan))
    vae = CategoricalVAE(1, 1, 2, (5,), TableObservation([Column("sex", "binary", ("f", "m"))]))
    with pytest.raises(ValueError, match="a column 'sex', but found age"):
        impute(vae, pd.DataFrame({"age": [1.0]}))
