"""Configurations: invalid settings are refused on construction, and JSON keeps valid ones."""

import json
from dataclasses import FrozenInstanceError, replace
from pathlib import Path

import pytest

from pyro_gvae.config.compare import CompareConfig


@pytest.mark.parametrize(
    ("setting", "sentence"),
    [
        ({"num_latents": 0}, "Expected num_latents of at least 1, but found 0"),
        ({"num_categories": 1}, "Expected num_categories of at least 2, but found 1"),
        ({"epochs": 0}, "Expected epochs of at least 1"),
        ({"batch_size": -3}, "Expected batch_size of at least 1, but found -3"),
        ({"evaluations": 0}, "Expected evaluations of at least 1"),
        ({"hidden": (16, 0)}, "Expected hidden of at least 1, but found 0"),
        ({"seeds": ()}, r"Expected one or more different seeds, but found \[\]"),
        ({"seeds": (2, 2)}, r"Expected one or more different seeds, but found \[2, 2\]"),
        ({"seeds": (2**32,)}, r"Expected a seed below 2\^32, but found 4294967296"),
        ({"estimators": ("exact", "exact")}, "Expected one or more different estimators"),
        ({"learning_rate": 0.0}, "Expected a positive number or a schedule as learning_rate, but found 0.0"),
        ({"temperature": float("nan")}, "Expected a positive number or a schedule as temperature, but found nan"),
        (
            {"prior_temperature": float("inf")},
            "Expected a positive number or a schedule as prior_temperature, but found inf",
        ),
        ({"estimators": ("exat",)}, "Expected an estimator among .*exact.*, but found 'exat'"),
        ({"estimators": ("exact:0",)}, "Expected epochs, steps or seconds, but found '0'"),
        ({"sizes": ("8-4",)}, "Expected a size KxN, but found '8-4'. Try 8x4, which means K = 8 and N = 4"),
        ({"sizes": ("1x4",)}, "Expected num_categories of at least 2, but found 1"),
        ({"sizes": ("8x4", "8x4")}, "Expected one or more different sizes"),
        ({"temperatures": (0.5, -1.0)}, "Expected a positive number as temperatures, but found -1.0"),
        ({"learning_rates": (1e-3, 0.0)}, "Expected a positive number or a schedule as learning_rate, but found 0.0"),
        ({"workers": 0}, "Expected workers of at least 1, but found 0"),
        ({"backend": "dask"}, "Expected a scheduler with the backend dask, but found one without the other"),
        ({"scheduler": "tcp://localhost:1"}, "Expected a scheduler with the backend dask"),
        ({"max_memory": -1.0}, "Expected a positive number as max_memory, but found -1.0"),
    ],
)
def test_invalid_settings_are_refused(setting, sentence):
    with pytest.raises(ValueError, match=sentence):
        CompareConfig(**setting)


def test_json_keeps_every_setting():
    config = CompareConfig(data_dir=Path("somewhere"), hidden=(32, 16))
    written = json.loads(json.dumps(config.as_json()))
    assert written["data_dir"] == "somewhere" and written["hidden"] == [32, 16] and written["output"] is None
    assert written.keys() == CompareConfig.__dataclass_fields__.keys()


def test_a_configuration_comes_back_from_json():
    config = CompareConfig(data_dir=Path("somewhere"), hidden=(32, 16), seeds=(3,), max_memory=1.5)
    written = json.loads(json.dumps(config.as_json() | {"versions": {"torch": "2"}}))
    assert CompareConfig.from_json(written) == replace(config, estimators=config.each_estimator())


def test_a_configuration_is_frozen():
    with pytest.raises(FrozenInstanceError):
        CompareConfig().epochs = 3


@pytest.mark.parametrize("epochs", [1, 2, 60])
def test_default_plans_have_equally_many_epochs(epochs):
    config = CompareConfig(epochs=epochs)
    totals = [sum(stage.amount.number for stage in config.plan(one)) for one in config.each_estimator()]
    assert totals == [epochs] * (3 if epochs == 1 else 4)
