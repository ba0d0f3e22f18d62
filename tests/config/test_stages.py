"""Training plans as text: estimators for single sites, and their options."""

import json

import pytest

from pyro_gvae.config.compare import CompareConfig
from pyro_gvae.config.stages import parse_stages
from pyro_gvae.config.train import TrainConfig

PER_SITE = "per-site[y=exact,layer.z=gumbel-softmax[kl=categorical,temperature=0.5],default=reinforce-loo]"


def test_estimators_of_sites_are_options_in_brackets():
    first, second = parse_stages(f"{PER_SITE}:20,exact[slice_size=9]:3")
    assert str(first) == f"{PER_SITE}:20epochs" and str(second) == "exact[slice_size=9]:3epochs"
    assert first.parts["layer.z"] == ("gumbel-softmax", {"kl": "categorical", "temperature": 0.5})
    assert list(first.parts) == ["y", "layer.z", "default"] and not second.parts


def test_options_are_added_to_the_sites_that_lack_them():
    [stage] = parse_stages("per-site[y=exact,z=reinmax]:1")
    added = stage.with_options(lambda named: {"temperature": 1.5} if named.name == "reinmax" else {})
    assert str(added) == "per-site[y=exact,z=reinmax[temperature=1.5]]:1epochs"


def test_json_keeps_them():
    for config in (TrainConfig(stages=f"{PER_SITE}:20"), CompareConfig(estimators=(PER_SITE, "exact"))):
        assert type(config).from_json(json.loads(json.dumps(config.as_json()))) == config


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("per-site:1", r"Expected estimators of sites, but found none in 'per-site:1'"),
        ("per-site[y=exat]:1", r"Expected an estimator among .*, but found 'exat'"),
        ("per-site[y=per-site[z=exact]]:1", r"Expected an estimator among .*, but found 'per-site'"),
        ("per-site[y=exact:1", r"Expected a name or name\[option=value"),
        ("per-site[y=exact[a=1]:1", r"Expected a name or name\[option=value"),
        ("per-site[y=exact,y=exact]:1", r"Expected a name or name\[option=value"),
    ],
)
def test_invalid_plans_are_refused(text, sentence):
    with pytest.raises(ValueError, match=sentence):
        TrainConfig(stages=text)
