"""The benchmark of estimators as a whole at a tiny size, and its handling of estimators that refuse."""

import json

import pytest
import speed_estimators
import torch
from speed_step import Size

from pyro_gvae import ESTIMATORS
from pyro_gvae.data.dataset import Dataset

pytestmark = pytest.mark.slow  # many recordings, or processes


def tiny(num_latents: int, num_categories: int) -> Size:
    x = torch.rand(20, 6).round()
    return Size(Dataset("tiny", x, x, (2, 3)), num_latents, num_categories, hidden=(5, 4), batch_size=4)


def test_the_smoke_run_measures_every_estimator(tmp_path):
    speed_estimators.estimators(smoke=True, results=tmp_path / "new" / "speed.json", figures=tmp_path / "figures")
    [size] = json.loads((tmp_path / "new" / "speed.json").read_text())["sizes"]
    assert {*ESTIMATORS, *speed_estimators.OPTIONS} == set(size["milliseconds"]) | set(size["refused"])
    assert size["over_gumbel_softmax"]["gumbel-softmax"] == 1
    exact_ratio = size["milliseconds"]["exact"] / size["milliseconds"]["gumbel-softmax"]
    assert size["over_gumbel_softmax"]["exact"] == pytest.approx(exact_ratio)
    assert {path.name for path in (tmp_path / "figures").iterdir()} == {"estimator_cost.png", "estimator_cost.svg"}


def test_codes_that_are_too_many_are_named(monkeypatch):
    monkeypatch.setattr(speed_estimators, "ESTIMATORS", ("exact", "gumbel-softmax"))
    steps, refused = speed_estimators.contenders(tiny(num_latents=20, num_categories=2))
    assert refused["exact"] == "2^20 codes"
    assert "gumbel-softmax" in steps
