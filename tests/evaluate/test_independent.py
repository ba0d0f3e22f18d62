"""A distribution without a code: no other parameters of the family fit its training data better."""

import math

import pytest
import torch

from pyro_gvae.evaluate import independent as module
from pyro_gvae.evaluate.independent import independent, independent_log_prob
from pyro_gvae.models.observations import BernoulliObservation, Observation, as_observation
from pyro_gvae.models.table import Column, TableObservation

COLUMNS = [
    Column("sex", "binary", ("f", "m")),
    Column("city", "categorical", ("a", "b", "c")),
    Column("height", "real", (), 170.0, 9.0),
    Column("visits", "count", (), 1.0, 0.5),
    Column("tea", "word", (), 4.0, 2.0),
    Column("rose", "word", (), 0.0, 1.0),
]


def data(name: str) -> tuple[Observation, torch.Tensor]:
    """Return an observation and 200 data that it allows."""
    torch.manual_seed(0)
    grey = torch.rand(200, 3).pow(torch.tensor([0.3, 1.0, 3.0]))
    if name == "table":
        rows = [torch.rand(200) < 0.3, torch.randint(0, 3, (200,)), torch.randn(200), torch.randint(0, 9, (200,))]
        rows += [torch.randint(0, 9, (200,)), torch.randint(0, 4, (200,))]  # of words
        x = torch.stack([row.float() for row in rows], 1)
        x[::7, 1] = math.nan
        return TableObservation(COLUMNS).double(), x.double()
    values = {"bernoulli": grey.round(), "categorical": (3 * grey).round(), "multinomial": (9 * grey).round()}
    options = {"num_levels": 4} if name == "categorical" else {}
    return as_observation(name, **options).double(), values.get(name, grey).double()


@pytest.mark.parametrize(
    "name", ["bernoulli", "continuous-bernoulli", "gaussian", "categorical", "multinomial", "table"]
)
def test_no_other_parameters_fit_better(name, monkeypatch):
    monkeypatch.setattr(module, "PSEUDO_COUNT", 0.0)
    observation, x = data(name)
    found = independent(observation, x)
    best = found.log_prob(x).mean()
    torch.manual_seed(1)
    for _ in range(20):
        found.natural = found.natural + 0.02 * torch.randn_like(found.natural)
        assert found.log_prob(x).mean() <= best + 1e-9
    assert independent_log_prob(observation, x, x) == pytest.approx(best.item())


def test_a_pixel_that_training_never_shows_is_possible():
    assert independent_log_prob(BernoulliObservation(), torch.zeros(9, 2), torch.ones(1, 2)) == pytest.approx(
        2 * math.log(0.05)
    )


def test_a_family_of_ones_own_has_no_baseline():
    class Own(Observation):
        def forward(self, natural):
            return BernoulliObservation()(natural)

    assert independent_log_prob(Own(), torch.zeros(9, 2), torch.ones(1, 2)) is None
