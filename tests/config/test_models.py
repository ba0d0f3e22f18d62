"""The programs of the commands: their sizes, the settings that they refuse, and the same names everywhere."""

from typing import get_args

import pytest

from pyro_gvae.cli.arguments import parse
from pyro_gvae.config.compare import CompareConfig
from pyro_gvae.config.gradients import AdviseConfig, GradientsConfig
from pyro_gvae.config.models import MODELS, OF_BITS, OF_EVIDENCE, code_in_words
from pyro_gvae.config.names import EstimatorName, ModelName
from pyro_gvae.config.presets import PRESETS
from pyro_gvae.config.train import TrainConfig
from pyro_gvae.estimators import estimator
from pyro_gvae.estimators.claims import Objective
from pyro_gvae.train.setup import PROGRAMS

JOINT = {"model": "joint", "latent_dim": 2}


def test_each_program_has_a_name_facts_and_a_constructor():
    assert list(get_args(ModelName)) == list(MODELS) == list(PROGRAMS)


def test_estimators_of_bits_and_of_the_evidence_are_those_of_the_registry():
    made = {name: estimator(name) for name in get_args(EstimatorName)}
    assert {name for name, one in made.items() if one.num_categories == 2} == OF_BITS
    assert {name for name, one in made.items() if one.objective is Objective.EVIDENCE} == OF_EVIDENCE


@pytest.mark.parametrize("kind", [TrainConfig, GradientsConfig, AdviseConfig])
@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (
            {"model": "bernoulli"},
            "Expected num_categories=2 with model='bernoulli', whose latents are bits, but found 8",
        ),
        (
            {"model": "gaussian-mixture", "latent_dim": 2},
            "Expected num_latents=1 .* one discrete latent is the component",
        ),
        ({"model": "semi-supervised", "latent_dim": 2}, "Expected num_latents=1 .* discrete latent is the class"),
        ({"num_categories": 0}, "Expected num_categories of at least 2, but found 0"),
        ({"num_layers": 2}, "Expected one layer of codes with model='categorical', but found num_layers=2"),
        ({"model": "hierarchical", "num_layers": 101}, "Expected num_layers of at most 100, but found 101"),
        ({"model": "hierarchical", "num_layers": 0}, "Expected num_layers of at least 1, but found 0"),
        ({"latent_dim": 2}, "Expected no Gaussian latent with model='categorical', but found latent_dim=2"),
        (
            {"model": "joint"},
            "Expected a Gaussian latent with model='joint', but found latent_dim=0. Try latent_dim=10",
        ),
    ],
)
def test_sizes_that_a_program_lacks_are_refused(kind, settings, sentence):
    with pytest.raises(ValueError, match=sentence):
        kind(**settings)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({**JOINT, "networks": "conv"}, "Expected networks='mlp' with model='joint', .* but found 'conv'"),
        ({**JOINT, "prior": "tree"}, "Expected prior='uniform' with model='joint', .* but found 'tree'"),
        ({"prior": "tree", "learn_prior": True}, "Expected learn_prior=False with prior='tree'"),
        ({"labelled_share": 0.1}, "Expected labelled_share=1.0 with model='categorical', .* but found 0.1"),
        ({"labelled_share": 1.5}, "Expected a labelled_share above 0 and of at most 1, but found 1.5"),
        ({"label_weight": 2.0, "model": "conditional"}, "Expected label_weight=10.0 with model='conditional'"),
        ({**JOINT, "learn_prior": True}, "Expected learn_prior=False with model='joint', .* but found True"),
    ],
)
def test_networks_and_priors_that_a_program_lacks_are_refused(settings, sentence):
    with pytest.raises(ValueError, match=sentence):
        TrainConfig(**settings)


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        (TrainConfig(stages="exact:1,disarm:1"), "Expected latents of K=2 categories for 'disarm', but found K=8"),
        (TrainConfig(stages="exact-evidence:1", **JOINT), "for 'exact-evidence', but found model='joint', .* integral"),
        (TrainConfig(stages="per-site[y=exact-evidence]:1", **JOINT), "for 'exact-evidence', but found model='joint'"),
        (CompareConfig(estimators=("disarm",), sizes=("2x4", "3x4")), "for 'disarm', but found K=3"),
    ],
)
def test_estimators_that_a_program_cannot_have_are_refused(config, sentence):
    with pytest.raises(ValueError, match=sentence):
        config.check_estimators()


def test_estimators_that_a_program_can_have_are_not():
    TrainConfig(stages="disarm:1,exact-evidence:1", num_categories=2).check_estimators()
    TrainConfig(stages="exact:1,gumbel-softmax:1", **JOINT).check_estimators()
    TrainConfig(stages="disarm:1")  # allowed, because `fit` may be given a program of one's own


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("option", [["--model", "{}"], ["--model={}"]])
def test_a_program_brings_its_sizes(model, option):
    found = parse(["train", *(word.format(model) for word in option)])
    stages = f"{MODELS[model].soft}:100"
    assert found.model == model and found == TrainConfig(model=model, stages=stages, **MODELS[model].sizes)
    changed = parse(["train", "--hidden", "9", *(word.format(model) for word in option), "--learning-rate", "0.5"])
    assert changed.hidden == (9,) and changed.learning_rate == 0.5 and changed.num_latents == found.num_latents
    for command in ("gradients", "advise"):
        measured = parse([command, *(word.format(model) for word in option)])
        assert all(getattr(measured, size) == getattr(found, size) for size in ("model", *MODELS[model].sizes))
        assert measured.training().model == model
        assert command == "advise" or measured.kl == MODELS[model].soft_kl
    compared = parse(["compare", *(word.format(model) for word in option)])
    assert (compared.model, compared.num_layers, compared.latent_dim) == (model, found.num_layers, found.latent_dim)
    compared.check_estimators()
    assert compared.each_estimator()[-1] == f"{MODELS[model].soft}:50,exact:10"


def test_a_preset_keeps_what_another_program_can_have():
    article = PRESETS["article"]
    found = parse(["train", "--preset", "article", "--model", "hierarchical"])
    assert (found.num_latents, found.num_categories, found.num_layers) == (20, 10, 2)
    assert article.relu_logits and not found.relu_logits and found.temperature == article.temperature
    assert parse(["train", "--model", "bernoulli", "--preset=article"]).num_categories == 2
    assert parse(["train", "--preset", "article", "--model", "categorical"]) == article


@pytest.mark.parametrize(
    ("latents", "words"),
    [
        (("categorical", 4, 8, 1, 0), "4 categorical latents of 8 categories"),
        (("bernoulli", 12, 2, 1, 0), "12 bits"),
        (("hierarchical", 2, 8, 3, 0), "3 layers of 2 categorical latents of 8 categories"),
        (("joint", 1, 10, 1, 5), "1 categorical latent of 10 categories and a Gaussian of dimension 5"),
        (("semi-supervised", 1, 3, 1, 5), "one of 3 classes and a Gaussian of dimension 5"),
        (("conditional", 2, 3, 1, 0), "2 categorical latents of 3 categories, beside the class that is given"),
        (("gaussian-mixture", 1, 10, 1, 5), "one of 10 components and a Gaussian of dimension 5 that depends on it"),
    ],
)
def test_codes_in_words(latents, words):
    assert code_in_words(*latents) == words
