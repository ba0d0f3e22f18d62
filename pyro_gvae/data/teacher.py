"""A data set sampled from a known discrete model."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot

from ..models.categorical_vae import CategoricalVAE
from ..runtime.rng import derived_seed
from .dataset import Dataset


def teacher(
    *,
    image_shape: tuple[int, int] = (8, 8),
    num_latents: int = 4,
    num_categories: int = 8,
    hidden: Sequence[int] = (32,),
    contrast: float = 2.0,
    sizes: tuple[int, int] = (2000, 500),
    seed: int = 0,
) -> Dataset:
    """Sample binary images from a known ``CategoricalVAE``, so that the true log-likelihood can be computed.

    Codes are uniform, z_n ~ U{1..K}, and pixels are x ~ Bernoulli(sigmoid(decoder(z))). The decoder is a random
    MLP. Its last layer is centred and rescaled so that over the codes its logits have mean 0 and standard deviation
    ``contrast``; without that, every code would give nearly the same noise.

    Args:
        image_shape: (H, W), D = H * W.
        num_latents: N.
        num_categories: K.
        hidden: widths as in ``CategoricalVAE``.
        contrast: standard deviation of the decoder's logits over the codes.
        sizes: how many images to sample for training and for testing.
        seed: seed of the teacher's weights and of the images.

    Returns:
        A data set whose ``teacher`` is the true model with frozen parameters. Only its prior and decoder are
        true: the encoder is untrained, so compute the evidence as the sum over all codes.

    Example:
        >>> data = teacher(sizes=(100, 10))
        >>> data.train.shape, data.teacher.num_latents
        (torch.Size([100, 64]), 4)
    """

    def codes(count: int) -> Tensor:
        drawn = torch.randint(num_categories, (count, num_latents))
        return one_hot(drawn, num_categories).to(torch.get_default_dtype())  # (count, N, K)

    with torch.random.fork_rng(devices=[]), torch.no_grad():
        # Seed only the CPU's generator: torch.manual_seed would also seed the GPUs, whose states are not restored here.
        torch.default_generator.manual_seed(derived_seed("teacher", seed))
        vae = CategoricalVAE(math.prod(image_shape), num_latents, num_categories, hidden, name="teacher")
        logits = vae.decoder(codes(1000))  # (1000, D)
        centre = logits.mean(0)  # (D,)
        factor = contrast / (logits - centre).square().mean().sqrt()
        *_, last = (layer for layer in vae.decoder.modules() if isinstance(layer, nn.Linear))
        last.weight.mul_(factor)
        last.bias.sub_(centre).mul_(factor)
        images = vae.decoder(codes(sum(sizes))).sigmoid().bernoulli().float()  # (M + M', D)
    train, test = images.split(sizes)
    return Dataset("teacher", train, test, image_shape, teacher=vae.requires_grad_(False))
