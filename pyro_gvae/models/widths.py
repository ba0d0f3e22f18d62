"""Guess the widths of hidden layers from the number of inputs, and describe the networks of a program in words."""

import math

from torch import nn

#: The narrowest and the widest hidden layer that is guessed.
LEAST, MOST = 32, 256
#: Parts of a program that are described by other settings.
NOT_SHOWN = frozenset({"observation", "prior"})


def guessed_hidden(num_inputs: int) -> tuple[int, ...]:
    """Return one hidden layer: twice as many units as the encoder has inputs, as a power of two from 32 to 256.

    Args:
        num_inputs: the number of inputs of the encoder.

    Example:
        >>> [guessed_hidden(num_inputs) for num_inputs in (5, 30, 64, 784)]
        [(32,), (64,), (128,), (256,)]
    """
    return (min(MOST, max(LEAST, 2 ** round(math.log2(2 * num_inputs)))),)


def networks_in_words(program: nn.Module) -> str:
    """Describe the networks of a program by the widths of their layers, or the channels of their convolutions.

    Example:
        >>> from .categorical_vae import CategoricalVAE
        >>> networks_in_words(CategoricalVAE(data_dim=64, num_latents=4, num_categories=8, hidden=(128,)))
        'encoder MLP 64-128-32; decoder MLP 32-128-64'
    """
    described = []
    for name, part in program.named_children():
        alike = part if isinstance(part, nn.ModuleList) else [part]  # a network between each two layers of codes
        texts = filter(None, dict.fromkeys(map(_in_words, alike)))
        described += [f"{name.replace('_', ' ')} {text}" for text in texts if name not in NOT_SHOWN]
    return "; ".join(described)


def _in_words(network: nn.Module) -> str:
    """Describe one network: runs of layers of one kind, each with its sizes from input to output."""
    runs: list[tuple[str, list[int]]] = []
    for layer in network.modules():
        match layer:
            case nn.Linear():
                kind, sizes = "MLP", (layer.in_features, layer.out_features)
            case nn.Conv2d() | nn.ConvTranspose2d():
                kind, sizes = "convolutions", (layer.in_channels, layer.out_channels)
            case _:
                continue
        if not runs or runs[-1][0] != kind:
            runs.append((kind, [sizes[0]]))
        runs[-1][1].append(sizes[1])
    return ", ".join(f"{kind} {'-'.join(map(str, sizes))}" for kind, sizes in runs)
