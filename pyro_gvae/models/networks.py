"""Build encoders x -> logits (..., N, K), and decoders z (..., N, K) -> natural parameters of the observation."""

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import NamedTuple, final

from torch import Tensor, nn
from torch.nn.functional import linear
from typing_extensions import override

ImageShape = tuple[int, int]  # height and width


def mlp(widths: Sequence[int]) -> list[nn.Module]:
    """Return linear layers of the given widths with a ReLU between them, and none after the last."""
    layers: list[nn.Module] = []
    for width, next_width in pairwise(widths):
        layers += [nn.Linear(width, next_width), nn.ReLU()]
    return layers[:-1]


def mlp_encoder(data_dim: int, hidden: Sequence[int], num_latents: int, num_categories: int) -> nn.Sequential:
    """Build an encoder x (..., D) -> logits (..., N, K) with hidden layers of the given widths.

    Args:
        data_dim: D.
        hidden: widths of the hidden layers.
        num_latents: N.
        num_categories: K.

    Returns:
        A module that `CategoricalVAE` takes as `encoder`.

    Example:
        >>> import torch
        >>> tuple(mlp_encoder(64, (32,), 4, 8)(torch.zeros(5, 64)).shape)
        (5, 4, 8)
    """
    layers = mlp([data_dim, *hidden, num_latents * num_categories])
    return nn.Sequential(*layers, nn.Unflatten(-1, (num_latents, num_categories)))


def mlp_decoder(num_latents: int, num_categories: int, hidden: Sequence[int], out_dim: int) -> nn.Sequential:
    """Build a decoder z (..., N, K) -> natural parameters (..., out_dim) with hidden layers of the given widths.

    Args:
        num_latents: N.
        num_categories: K.
        hidden: widths of the hidden layers.
        out_dim: D times the number of natural parameters per pixel.

    Returns:
        A module that `CategoricalVAE` takes as `decoder`.

    Example:
        >>> import torch
        >>> tuple(mlp_decoder(4, 8, (32,), 64)(torch.zeros(5, 4, 8)).shape)
        (5, 64)
    """
    return nn.Sequential(nn.Flatten(-2), *mlp([num_latents * num_categories, *hidden, out_dim]))


@final
class BroadcastMLP(nn.Module):
    """Apply an MLP to several inputs whose batch dimensions broadcast.

    The result is that of an MLP on the concatenated inputs. But its first layer is computed as a sum of one linear map
    per input, so data (B, D) and codes (S, 1, K) are combined only after it, and neither is repeated for the other.

    Args:
        inputs: the last dimension of each input.
        widths: widths of the hidden layers and of the output.

    Example:
        >>> import torch
        >>> layers = BroadcastMLP([64, 10], [32, 5])
        >>> tuple(layers(torch.zeros(7, 64), torch.zeros(10, 1, 10)).shape)
        (10, 7, 5)
    """

    def __init__(self, inputs: Sequence[int], widths: Sequence[int]) -> None:
        super().__init__()
        self.inputs = tuple(inputs)
        self.first = nn.Linear(sum(inputs), widths[0])
        self.rest = nn.Sequential(*(nn.ReLU() for _ in widths[1:2]), *mlp(widths))

    @override
    def forward(self, *values: Tensor) -> Tensor:
        parts = [linear(value, weight) for value, weight in zip(values, self._weights(), strict=True)]
        out: Tensor = self.rest(sum(parts[1:], parts[0]) + self.first.bias)
        return out

    def _weights(self) -> tuple[Tensor, ...]:
        return self.first.weight.split(self.inputs, dim=1)


def relu_logits(encoder: nn.Module) -> nn.Sequential:
    """Append a ReLU to an encoder's logits: each probability is then at least 1 / (1 + (K - 1) exp(largest logit)).

    This is the encoder of Kravets 2023 (*Variational Autoencoder with Discrete Distribution using Gumbel Softmax*,
    Towards Data Science). Other encoders here have unconstrained logits.

    Example:
        >>> import torch
        >>> encoder = relu_logits(mlp_encoder(64, (32,), 4, 8))
        >>> bool((encoder(torch.randn(5, 64)) >= 0).all())
        True
    """
    return nn.Sequential(encoder, nn.ReLU())


@final
class Images(nn.Module):
    """Apply layers for images (B, C, H, W) to any number of leading dimensions: (..., C, H, W)."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)

    @override
    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layers(x.reshape(-1, *x.shape[-3:]))
        return out.reshape(*x.shape[:-3], *out.shape[1:])


def conv_encoder(
    image_shape: ImageShape,
    num_latents: int,
    num_categories: int,
    *,
    channels: Sequence[int] = (32, 64),
    hidden: Sequence[int] = (256,),
) -> nn.Sequential:
    """Build an encoder x (..., D) -> logits (..., N, K): convolutions that each halve the image, then an MLP.

    Args:
        image_shape: height and width of an image, D = H * W.
        num_latents: N.
        num_categories: K.
        channels: output channels of each 3 x 3 convolution with stride 2; without any, the encoder is an MLP.
        hidden: widths of the MLP's hidden layers.

    Returns:
        A module that `CategoricalVAE` takes as `encoder`.

    Raises:
        ValueError: if a side of `image_shape` is below 1.

    Example:
        >>> import torch
        >>> tuple(conv_encoder((8, 8), 4, 10)(torch.zeros(5, 64)).shape)
        (5, 4, 10)
    """
    sizes = _sizes(image_shape, len(channels))
    layers: list[nn.Module] = []
    for inner, outer in pairwise([1, *channels]):
        layers += [nn.Conv2d(inner, outer, 3, stride=2, padding=1), nn.ReLU()]
    flat = [1, *channels][-1] * sizes[-1][0] * sizes[-1][1]
    return nn.Sequential(
        nn.Unflatten(-1, (1, *image_shape)),
        Images(*layers),
        nn.Flatten(-3),
        mlp_encoder(flat, hidden, num_latents, num_categories),
    )


def conv_decoder(
    image_shape: ImageShape,
    num_latents: int,
    num_categories: int,
    *,
    channels: Sequence[int] = (64, 32),
    hidden: Sequence[int] = (256,),
    natural_per_pixel: int = 1,
) -> nn.Sequential:
    """Build a decoder z (..., N, K) -> natural parameters (..., D): an MLP, then convolutions that double the image.

    Args:
        image_shape: height and width of an image, D = H * W.
        num_latents: N.
        num_categories: K.
        channels: channels of the smallest image and of each later image except the last.
        hidden: widths of the MLP's hidden layers.
        natural_per_pixel: natural parameters per pixel, which are adjacent: the number of levels for a "categorical"
            observation, 1 for the others.

    Returns:
        A module that `CategoricalVAE` takes as `decoder`.

    Example:
        >>> import torch
        >>> tuple(conv_decoder((28, 28), 4, 10)(torch.zeros(7, 1, 4, 10)).shape)
        (7, 1, 784)
    """
    sizes = _sizes(image_shape, len(channels))[::-1]
    layers: list[nn.Module] = []
    for (inner, outer), size in zip(pairwise([*channels, natural_per_pixel]), sizes[1:], strict=True):
        # h pixels become 2 h - 1 or 2 h, so that odd and even sizes match those of the encoder.
        odd = (1 - size[0] % 2, 1 - size[1] % 2)
        layers += [nn.ReLU(), nn.ConvTranspose2d(inner, outer, 3, stride=2, padding=1, output_padding=odd)]
    smallest = ([*channels, natural_per_pixel][0], *sizes[0])
    return nn.Sequential(
        mlp_decoder(num_latents, num_categories, hidden, smallest[0] * smallest[1] * smallest[2]),
        nn.Unflatten(-1, smallest),
        Images(*layers),
        ChannelsLast(),
    )


@final
class ChannelsLast(nn.Module):
    """Map (..., C, H, W) to (..., H * W * C)."""

    @override
    def forward(self, x: Tensor) -> Tensor:
        return x.movedim(-3, -1).flatten(-3)


def _sizes(image_shape: ImageShape, halvings: int) -> list[ImageShape]:
    """Return the height and width of the image at first and after each halving, rounded up."""
    height, width = image_shape
    if min(image_shape) < 1:
        raise ValueError(f"Expected an image_shape of at least (1, 1), but found {image_shape}.")
    return [(-(-height // 2**count), -(-width // 2**count)) for count in range(halvings + 1)]


class Networks(NamedTuple):
    """An encoder and a decoder for `CategoricalVAE`."""

    encoder: nn.Module
    decoder: nn.Module


def mlp_networks(
    image_shape: ImageShape,
    num_latents: int,
    num_categories: int,
    *,
    hidden: Sequence[int] = (512, 256),
    natural_per_pixel: int = 1,
) -> Networks:
    """Build the MLPs that `CategoricalVAE` uses by default.

    Args:
        image_shape: height and width of an image, D = H * W.
        num_latents: N.
        num_categories: K.
        hidden: widths of the encoder's hidden layers; the decoder uses them in reverse order.
        natural_per_pixel: natural parameters per pixel.

    Returns:
        The encoder and the decoder.

    Example:
        >>> import torch
        >>> networks = mlp_networks((8, 8), num_latents=4, num_categories=8, hidden=(32,))
        >>> networks.decoder(networks.encoder(torch.zeros(5, 64)).softmax(-1)).shape
        torch.Size([5, 64])
    """
    data_dim = image_shape[0] * image_shape[1]
    return Networks(
        mlp_encoder(data_dim, hidden, num_latents, num_categories),
        mlp_decoder(num_latents, num_categories, tuple(hidden)[::-1], data_dim * natural_per_pixel),
    )


def conv_networks(
    image_shape: ImageShape,
    num_latents: int,
    num_categories: int,
    *,
    hidden: Sequence[int] = (256,),
    natural_per_pixel: int = 1,
) -> Networks:
    """Build an encoder of two convolutions with 32 and 64 channels and an MLP, and the mirrored decoder.

    Args:
        image_shape: height and width of an image, D = H * W.
        num_latents: N.
        num_categories: K.
        hidden: widths of the MLP's hidden layers in the encoder; the decoder uses them in reverse order.
        natural_per_pixel: natural parameters per pixel.

    Returns:
        The encoder and the decoder.

    Example:
        >>> from pyro_gvae import CategoricalVAE
        >>> encoder, decoder = conv_networks((8, 8), num_latents=4, num_categories=8)
        >>> vae = CategoricalVAE(64, 4, 8, encoder=encoder, decoder=decoder)
    """
    sizes = (image_shape, num_latents, num_categories)
    decoder = conv_decoder(*sizes, hidden=tuple(hidden)[::-1], natural_per_pixel=natural_per_pixel)
    return Networks(conv_encoder(*sizes, hidden=hidden), decoder)


#: Name -> constructor of matching encoder and decoder. All constructors take the same arguments.
NETWORKS: dict[str, Callable[..., Networks]] = {"mlp": mlp_networks, "conv": conv_networks}
