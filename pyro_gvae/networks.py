"""Encoders x -> logits (..., N, K) and decoders z (..., N, K) -> natural parameters of the observation."""

from collections.abc import Sequence
from itertools import pairwise

from torch import nn


def mlp(widths: Sequence[int]) -> list[nn.Module]:
    """Linear layers of the given widths with a ReLU between, none after the last."""
    layers: list[nn.Module] = []
    for width, next_width in pairwise(widths):
        layers += [nn.Linear(width, next_width), nn.ReLU()]
    return layers[:-1]


def mlp_encoder(data_dim: int, hidden: Sequence[int], num_latents: int, num_categories: int) -> nn.Sequential:
    """x (..., D) -> logits (..., N, K), through hidden layers of the given widths.

    Example:
        >>> import torch
        >>> tuple(mlp_encoder(64, (32,), 4, 8)(torch.zeros(5, 64)).shape)
        (5, 4, 8)
    """
    layers = mlp([data_dim, *hidden, num_latents * num_categories])
    return nn.Sequential(*layers, nn.Unflatten(-1, (num_latents, num_categories)))


def mlp_decoder(num_latents: int, num_categories: int, hidden: Sequence[int], out_dim: int) -> nn.Sequential:
    """z (..., N, K) -> natural parameters (..., out_dim), through hidden layers of the given widths.

    Example:
        >>> import torch
        >>> tuple(mlp_decoder(4, 8, (32,), 64)(torch.zeros(5, 4, 8)).shape)
        (5, 64)
    """
    return nn.Sequential(nn.Flatten(-2), *mlp([num_latents * num_categories, *hidden, out_dim]))
