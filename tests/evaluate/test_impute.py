"""Imputation: moments of missing cells against loops over codes, columns and torch's distributions."""

import math

import pandas as pd
import pytest
import torch
from rows import COLUMNS, D, brute_force, cell, observation, rows

from pyro_gvae import CategoricalVAE
from pyro_gvae.data.tables import encoded
from pyro_gvae.evaluate.impute import impute, predictive_means
from pyro_gvae.models.hierarchical_categorical_vae import HierarchicalCategoricalVAE
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
                probs = torch.stack([family.mean, family.mean.square() + family.variance], 1)
            parts.append(weights @ probs)
        expected.append(torch.cat(parts))
    found = predictive_means(vae, x)
    torch.testing.assert_close(found, torch.stack(expected).detach(), atol=1e-8, rtol=1e-8)


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
