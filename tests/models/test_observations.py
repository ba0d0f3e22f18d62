"""Observations: their checks of data and their pixels; a new one needs one class and one row."""

import math
from typing import final

import pytest
import torch
from torch import nn

from pyro_gvae import exact
from pyro_gvae.config.train import TrainConfig
from pyro_gvae.distributions.observations import Gaussian
from pyro_gvae.evaluate.generate import pictured
from pyro_gvae.models import observations
from pyro_gvae.models.categorical_vae import CategoricalVAE
from pyro_gvae.models.observations import (
    OBSERVATIONS,
    BernoulliObservation,
    CategoricalObservation,
    GaussianObservation,
    Observation,
    as_observation,
)
from pyro_gvae.train.fit import fit
from pyro_gvae.train.setup import initial_model, load_data

D = 6
PIXELS = torch.linspace(0, 1, D).expand(3, D)


@pytest.mark.parametrize("name", OBSERVATIONS)
def test_data_of_a_family_are_those_that_its_distribution_scores(name):
    """The check of a module must agree with the support of the distribution that it builds."""
    observation = as_observation(name)
    distribution = observation(torch.zeros(D * observation.natural_per_pixel))
    assert distribution.event_shape == (D,)
    data = observation.from_pixels(PIXELS)
    for value in (*observation.data_range, -1.0, 0.5, 1.0, 2.0, 256.0, math.nan):
        x = data.clone()
        x[1, 2] = value
        if distribution.support.check(x).all():
            observation.check(x)
        else:
            with pytest.raises(ValueError, match=r"Expected my pixels .*, but found values from .* than "):
                observation.check(x, "my pixels")
    with pytest.raises(ValueError, match="found values from 0 to inf"):
        observation.check(torch.tensor([0.0, math.inf]))


@pytest.mark.parametrize("name", OBSERVATIONS)
def test_pixels_are_shown_as_they_were(name):
    observation = as_observation(name)
    shown = observation.to_pixels(observation.from_pixels(PIXELS))
    torch.testing.assert_close(shown, PIXELS, atol=0.5 / 255, rtol=0)
    torch.manual_seed(0)
    built = observation(3 * torch.randn(50, D * observation.natural_per_pixel))
    for x in (built.mean, built.sample()):
        pixels = observation.to_pixels(x)
        assert pixels.shape == x.shape and pixels.is_floating_point()
        assert pixels.min() >= 0 and pixels.max() <= 1


def test_a_model_takes_a_module_as_it_takes_a_name():
    def made(observation, **options):
        torch.manual_seed(0)
        return CategoricalVAE(D, 2, 3, (7,), observation, **options).state_dict()

    for named, module in [
        (made("gaussian", scale=0.3), made(GaussianObservation(0.3))),
        (made("categorical", num_levels=4), made(CategoricalObservation(4))),
        (made("gaussian", scale=None, num_levels=256), made(GaussianObservation())),
    ]:
        assert named.keys() == module.keys()
        assert all(torch.equal(named[key], module[key]) for key in named)


def test_a_scale_is_learned_before_the_networks_weights():
    """The order of the parameters is that of the optimizer's state, so it must not change."""
    names = [name for name, _ in CategoricalVAE(D, 2, 3, (7,), "gaussian", learn_prior=True).named_parameters()]
    assert names[:3] == ["prior_logits", "observation.log_scale", "encoder.0.weight"]
    fixed = CategoricalVAE(D, 2, 3, (7,), "gaussian", scale=0.5)
    assert "observation.log_scale" not in dict(fixed.named_parameters())
    assert fixed.state_dict()["observation.log_scale"].exp().item() == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("observation", "options", "sentence"),
    [
        ("poisson", {}, "Expected an observation among bernoulli, .*, but found 'poisson'"),
        (
            "gaussian",
            {"num_levels": 4},
            "no num_levels for the observation 'gaussian', but found num_levels=4",
        ),
        ("gaussian", {"rate": None}, "Expected no rate for the observation 'gaussian'"),
        (
            BernoulliObservation(),
            {"scale": 0.1},
            "Expected a module without options, but found scale=0.1",
        ),
    ],
)
def test_options_that_an_observation_has_not_are_refused(observation, options, sentence):
    with pytest.raises(ValueError, match=sentence):
        as_observation(observation, **options)


def test_the_base_is_abstract():
    with pytest.raises(TypeError, match="abstract"):
        Observation()


@final
class Centred(Observation):
    """A family for this test: pixels in [-1, 1] with normal noise around the tanh of the decoder's output."""

    data_range = (-1.0, 1.0)
    expected = "in [-1, 1]"

    def __init__(self, noise=0.5):
        super().__init__()
        self.log_noise = nn.Parameter(torch.tensor(math.log(noise)))

    def forward(self, natural):
        return Gaussian(natural.tanh(), self.log_noise.exp())

    def from_pixels(self, pixels):
        return 2 * pixels - 1

    def to_pixels(self, x):
        return ((x + 1) / 2).clamp(0, 1)


def test_a_new_family_is_one_class_and_one_row(monkeypatch):
    monkeypatch.setitem(observations.OBSERVATIONS, "centred", Centred)
    config = TrainConfig(
        observation="centred",
        binarize="none",
        stages="gumbel-softmax:10steps,exact:40steps",
        num_latents=1,
        num_categories=5,
        hidden=(8,),
        learning_rate=0.02,
    )
    data = load_data(config)
    assert (data.train.min(), data.train.max()) == data.value_range == (-1, 1)
    vae = initial_model(config, data)
    history = fit(vae, data, config, progress=False).history
    assert history[-1]["test_elbo"] > history[0]["test_elbo"] + 10
    assert vae.observation.log_noise.exp() != 0.5  # the noise was trained, too

    x, codes = data.test[:7], torch.eye(5).unsqueeze(-2)  # (K, 1, K)
    scores = torch.distributions.Normal(vae.decoder(codes).tanh().unsqueeze(1), vae.observation.log_noise.exp())
    joint = scores.log_prob(x).sum(-1) - math.log(5)  # (K, B)
    torch.testing.assert_close(exact.log_evidence(vae, x), joint.logsumexp(0))

    shown = pictured(vae, vae, data)
    assert all(pixels.min() >= 0 and pixels.max() <= 1 for pixels in shown.values())
    torch.testing.assert_close(shown["inputs"], load_data(TrainConfig(binarize="none")).test[:10])

    with pytest.raises(ValueError, match=r"Expected training data in \[-1, 1\], but found values from"):
        fit(vae, 3 * data.train, config, progress=False)
