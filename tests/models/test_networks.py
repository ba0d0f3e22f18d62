"""Encoders and decoders of every shape: in CategoricalVAE, with any leading dimensions, under every kind of loss."""

import itertools

import pytest
import torch
from torch import nn

from pyro_gvae import exact
from pyro_gvae.estimators import estimator
from pyro_gvae.models.categorical_vae import CategoricalVAE
from pyro_gvae.models.hierarchical_categorical_vae import HierarchicalCategoricalVAE
from pyro_gvae.models.networks import NETWORKS, conv_decoder, conv_encoder, mlp_encoder, relu_logits
from pyro_gvae.models.widths import networks_in_words
from pyro_gvae.train.step import make_step

SHAPES = [(28, 28), (8, 8), (5, 7), (1, 1), (2, 9)]
N, K = 2, 3


@pytest.mark.parametrize("image_shape", SHAPES)
@pytest.mark.parametrize("channels", [(), (4,), (4, 6), (2, 3, 4)])
def test_convolutions_take_any_shape(image_shape, channels):
    dim = image_shape[0] * image_shape[1]
    encoder = conv_encoder(image_shape, N, K, channels=channels, hidden=(5,))
    decoder = conv_decoder(image_shape, N, K, channels=channels[::-1], hidden=(5,), natural_per_pixel=2)
    for leading in [(), (4,), (4, 1), (2, 3, 4)]:
        assert encoder(torch.zeros(*leading, dim)).shape == (*leading, N, K)
        assert decoder(torch.zeros(*leading, N, K)).shape == (*leading, dim * 2)


@pytest.mark.parametrize("name", NETWORKS)
def test_leading_dimensions_are_only_more_rows(name):
    encoder, decoder = NETWORKS[name]((5, 7), N, K, hidden=(5,))
    x, z = torch.randn(3, 4, 35), torch.randn(3, 4, N, K)
    for i, j in itertools.product(range(3), range(4)):
        torch.testing.assert_close(encoder(x)[i, j], encoder(x[i, j]))
        torch.testing.assert_close(decoder(z)[i, j], decoder(z[i, j]))


def test_parameters_of_one_pixel_lie_beside_each_other():
    """Each bias of the last layer belongs to one parameter of a pixel, the same in all pixels."""
    decoder = conv_decoder((4, 6), N, K, natural_per_pixel=3)
    last = [module for module in decoder.modules() if isinstance(module, nn.ConvTranspose2d)][-1]
    nn.init.zeros_(last.weight)
    with torch.no_grad():
        last.bias.copy_(torch.tensor([1.0, 2.0, 3.0]))
    out = decoder(torch.randn(N, K)).unflatten(-1, (24, 3))
    assert torch.equal(out, torch.tensor([1.0, 2.0, 3.0]).expand(24, 3))


def test_a_pixel_is_where_it_was():
    """Images are neither transposed nor flipped on input or output."""
    encoder = conv_encoder((6, 8), N, K, channels=(3,), hidden=())
    nn.init.constant_(encoder[1].layers[0].bias, 10.0)  # so that the ReLU passes everything
    x = torch.randn(48, requires_grad=True)
    encoder[1](encoder[0](x))[:, 0, 3].sum().backward()  # (C, 3, 4), the upper right
    seen = x.grad.reshape(6, 8) != 0
    assert seen[:2, 5:].all() and not seen[2:].any() and not seen[:, :5].any()

    decoder = conv_decoder((6, 8), N, K, channels=(3,), hidden=())
    small = torch.zeros(3, 3, 4)
    small[:, 0, 3] = 1.0
    dark, lit = (decoder[3](decoder[2](image)).reshape(6, 8) for image in (torch.zeros(3, 3, 4), small))
    seen = dark != lit
    assert seen[:2, 5:].all() and not seen[2:].any() and not seen[:, :5].any()


@pytest.mark.usefixtures("recorded")
@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize(
    ("options", "estimator_name"),
    [({}, "exact"), ({"observation": "categorical", "num_levels": 4}, "gumbel-softmax")],
)
def test_networks_train_in_recorded_steps(name, options, estimator_name, recwarn):
    torch.manual_seed(0)
    networks = NETWORKS[name]((5, 7), N, K, hidden=(6,), natural_per_pixel=options.get("num_levels", 1))
    vae = CategoricalVAE(35, N, K, encoder=networks.encoder, decoder=networks.decoder, **options)
    x = torch.rand(6, 35).round()
    step = make_step(vae, estimator(estimator_name), lr=1e-2)
    losses = torch.stack([step(x) for _ in range(40)])
    assert losses[-5:].mean() < losses[:5].mean() and not recwarn
    assert (exact.elbo(vae, x) <= exact.log_evidence(vae, x)).all()


def test_mlps_are_those_that_the_vae_makes():
    torch.manual_seed(0)
    encoder, decoder = NETWORKS["mlp"]((5, 7), N, K, hidden=(9, 4))
    torch.manual_seed(0)
    vae = CategoricalVAE(35, N, K, (9, 4))
    for mine, its in ((encoder, vae.encoder), (decoder, vae.decoder)):
        assert all(torch.equal(a, b) for a, b in zip(mine.parameters(), its.parameters(), strict=True))


def test_relu_logits():
    encoder = mlp_encoder(35, (9,), N, K)
    x = torch.randn(20, 35)
    torch.testing.assert_close(relu_logits(encoder)(x), encoder(x).clamp_min(0))
    assert (encoder(x) < 0).any()


def test_an_empty_image_is_refused():
    with pytest.raises(ValueError, match=r"Expected an image_shape of at least \(1, 1\), but found \(0, 3\)"):
        conv_encoder((0, 3), N, K)


def test_networks_are_described_from_input_to_output():
    encoder, decoder = NETWORKS["conv"]((5, 7), N, K, hidden=(9, 8))
    found = networks_in_words(CategoricalVAE(35, N, K, encoder=encoder, decoder=decoder, prior="autoregressive"))
    assert found == "encoder convolutions 1-32-64, MLP 256-9-8-6; decoder MLP 6-8-9-256, convolutions 64-32-1"
    layers = networks_in_words(HierarchicalCategoricalVAE(35, num_layers=3, num_latents=N, num_categories=K, hidden=()))
    assert layers == "encoder MLP 35-6; decoder MLP 6-35; up MLP 6-6; down MLP 6-6"  # all alike are named once
