"""The program of a configuration: its class and sizes, and the initial weights of its seed."""

from dataclasses import replace

import pytest
import torch

from pyro_gvae.config.models import MODELS
from pyro_gvae.config.train import TrainConfig
from pyro_gvae.data.datasets import load
from pyro_gvae.models.bernoulli_vae import BernoulliVAE
from pyro_gvae.models.categorical_vae import CategoricalVAE
from pyro_gvae.models.conditional_vae import ConditionalVAE
from pyro_gvae.models.gaussian_mixture_vae import GaussianMixtureVAE
from pyro_gvae.models.hierarchical_categorical_vae import HierarchicalCategoricalVAE
from pyro_gvae.models.joint_vae import JointVAE
from pyro_gvae.models.semi_supervised_vae import SemiSupervisedVAE
from pyro_gvae.train.setup import initial_model, load_data, with_classes, with_widths

SIZES = {
    "categorical": ({"num_latents": 3, "num_categories": 5}, lambda: CategoricalVAE(64, 3, 5, (7,))),
    "bernoulli": ({"num_latents": 3, "num_categories": 2}, lambda: BernoulliVAE(64, 3, (7,))),
    "hierarchical": (
        {"num_layers": 3, "num_latents": 2, "num_categories": 5},
        lambda: HierarchicalCategoricalVAE(64, 3, 2, 5, (7,)),
    ),
    "joint": ({"num_latents": 2, "num_categories": 5, "latent_dim": 4}, lambda: JointVAE(64, 2, 5, 4, (7,))),
    "gaussian-mixture": (
        {"num_latents": 1, "num_categories": 5, "latent_dim": 4},
        lambda: GaussianMixtureVAE(64, 5, 4, (7,)),
    ),
    "semi-supervised": (
        {"num_categories": 0, "num_latents": 1, "latent_dim": 4},
        lambda: SemiSupervisedVAE(64, 10, 4, (7,)),
    ),
    "conditional": (
        {"num_latents": 2, "num_categories": 3},
        lambda: ConditionalVAE(64, 10, 2, 3, (7,)),
    ),
}


@pytest.mark.parametrize("model", MODELS)
def test_a_program_is_that_of_its_constructor(model):
    sizes, make = SIZES[model]
    config = TrainConfig(model=model, hidden=(7,), seed=3, **sizes)
    found = initial_model(config, load_data(config))
    torch.manual_seed(3)
    expected = make()
    assert type(found) is type(expected)
    for (name, one), (other, wanted) in zip(found.named_parameters(), expected.named_parameters(), strict=True):
        assert name == other and torch.equal(one, wanted)


@pytest.mark.parametrize(("dataset", "hidden"), [("digits", (128,)), ("wine", (64,)), ("diabetes", (32,))])
def test_widths_that_are_not_given_are_guessed_from_the_inputs(dataset, hidden):
    """An encoder of a table has more inputs than the table has columns: 26 for wine, 22 for diabetes."""
    config = TrainConfig(dataset=dataset)
    data = load_data(config)
    assert with_widths(config, data) == replace(config, hidden=hidden)
    assert with_widths(replace(config, hidden=()), data).hidden == ()
    guessed, given = (initial_model(one, data).state_dict() for one in (config, replace(config, hidden=hidden)))
    assert guessed.keys() == given.keys() and all(torch.equal(guessed[name], given[name]) for name in given)


@pytest.mark.parametrize("model", MODELS)
def test_pixels_of_levels_have_a_logit_each(model):
    sizes, _ = SIZES[model]
    config = TrainConfig(model=model, hidden=(7,), observation="categorical", num_levels=4, binarize="none", **sizes)
    found = initial_model(config, load_data(config))
    assert found.natural_dim == 4 * 64


@pytest.mark.parametrize("model", MODELS)
def test_programs_that_no_memory_holds_are_refused(model):
    config = TrainConfig(model=model, hidden=(1_000_000, 1_000_000), **SIZES[model][0])
    with pytest.raises(ValueError, match="Expected networks whose weights fit into half of"):
        initial_model(config, load("digits"))


def test_the_weight_of_labels_is_that_of_their_mean():
    config = TrainConfig(model="semi-supervised", num_latents=1, num_categories=0, latent_dim=2, labelled_share=0.25)
    data = load_data(config)
    known = int((data.train_labels >= 0).sum())
    assert known == pytest.approx(0.25 * len(data.train), rel=0.02) and (data.test_labels >= 0).all()
    assert initial_model(config, data).label_weight == pytest.approx(10 * len(data.train) / known)
    assert with_classes(config, data).num_categories == 10
    with pytest.raises(ValueError, match="Expected num_categories=10, the number of classes of 'digits', but found 3"):
        with_classes(replace(config, num_categories=3), data)
