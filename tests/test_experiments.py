"""The experiments, each of them whole on a tiny size, and what they share."""

import sys
from pathlib import Path

import pandas as pd
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "experiments"))

import article
import bound_gaps
import cells
import crossover
import gradient_fidelity
import reinmax_protocol
import relaxed_vs_exact
import semi_supervised
import stages
from cells import Places

pytestmark = pytest.mark.slow  # many recordings, or processes


@pytest.fixture
def places(tmp_path):
    return Places(results=tmp_path / "results", figures=tmp_path / "figures", runs=tmp_path / "runs")


SMOKES = {
    "reinmax_protocol": lambda places: reinmax_protocol.main(
        places, estimators=("reinmax", "gumbel-softmax", "exact"), epochs=2, smoke=True
    ),
    "relaxed_vs_exact": lambda places: relaxed_vs_exact.main(
        places, problems=("digits 8x4",), seeds=(0, 1), temperatures=(0.5,), scale=0.01, smoke=True
    ),
    "stages": lambda places: stages.main(
        places, epochs=6, plans=("soft", "exact", "soft, 3 exact"), seeds=(0, 1), smoke=True
    ),
    "bound_gaps": lambda places: bound_gaps.main(
        places, dataset="digits", epochs=2, exact_epochs=1, seeds=(0,), temperatures=(0.4,), num_test=20, smoke=True
    ),
    "gradient_fidelity": lambda places: gradient_fidelity.main(
        "reinmax", places, epochs=(0,), estimators=("reinmax", "gumbel-softmax"), num_samples=32, smoke=True
    ),
    "crossover": lambda places: crossover.main(
        places, datasets=("digits",), seconds=0.2, estimators=("exact", "reinmax"), smoke=True
    ),
    "article": lambda places: article.main(places, estimators=("the article", "straight-through"), smoke=True),
    "semi_supervised": lambda places: semi_supervised.main(places, steps=3, smoke=True),
}


@pytest.mark.parametrize("name", SMOKES)
def test_a_smoke_run_writes_numbers_and_figures_and_is_not_repeated(name, places, monkeypatch):
    SMOKES[name](places)
    written = {path: path.read_text() for path in places.results.glob(f"{name}*.csv")}
    assert written and all(len(pd.read_csv(path)) > 1 for path in written)
    assert any(places.figures.glob(f"{name}*.png")) and any(places.figures.glob(f"{name}*.svg"))
    monkeypatch.setattr(cells, "_measured", None)  # nothing is left to be measured
    SMOKES[name](places)
    assert {path: path.read_text() for path in places.results.glob("*.csv")} == written
