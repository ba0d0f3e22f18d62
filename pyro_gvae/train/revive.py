"""New rows for the categories that data do not use, so that training does not go on without them."""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..models.categorical_vae import CategoricalVAE
from ..programs.modes import judging
from ..runtime.rng import derived_seed
from .training import Training

#: Of a copied row, relative to the root mean square of its elements: without noise, both would stay alike.
NOISE = 0.1


class Rows(NamedTuple):
    """The layers that have a row or a column for each category of each latent."""

    encoder: nn.Linear
    decoder: nn.Linear


def rows_of(vae: Any) -> Rows:
    """Return the layers next to the code.

    Raises:
        ValueError: if the program has none with a row for each category.
    """
    if isinstance(vae, CategoricalVAE) and vae.prior is not None:
        raise ValueError(
            f"Expected a prior of independent digits, one category of which can be split in two or left out, but found "
            f"a {type(vae.prior).__name__}. Try revive=None, or prior='independent'."
        )
    if isinstance(vae, CategoricalVAE):
        of_encoder, of_decoder = (
            [one for one in network.modules() if isinstance(one, nn.Linear)] for network in (vae.encoder, vae.decoder)
        )
        if of_encoder and of_decoder:
            last, first, size = of_encoder[-1], of_decoder[0], vae.prior_logits.numel()
            if last.out_features == size == first.in_features and last.bias is not None:
                return Rows(last, first)
    raise ValueError(
        "Expected a CategoricalVAE whose encoder ends in a linear layer with a bias and whose decoder begins with one, "
        f"to revive categories, but found {type(vae).__name__} without them. Try revive=None, or unimix."
    )


@judging
@torch.no_grad()
def revive(vae: CategoricalVAE, x: Tensor, threshold: float, *, seed: int = 0, noise: float = NOISE) -> int:
    """Split the most used category of a latent in two for each category that data hardly use.

    The unused category k gets the encoder's row, the decoder's column and the prior's probability of the most used
    category j, with a little noise, and both get half of j's probability. Without the noise the decoder says what it
    said, and the ELBO is not lower, but for what k had; under a uniform prior it is log 2 higher for each datum of j.

    Args:
        vae: the program, which is changed in place.
        x: data (B, D) whose use of categories counts.
        threshold: the mean of q(z_n = k | x) over data below which k is unused.
        seed: of the noise.
        noise: its size, relative to the root mean square of a row.

    Returns:
        The number of categories that got new rows.

    Raises:
        ValueError: if the encoder does not end in a linear layer, or the decoder does not begin with one.

    Example:
        >>> vae = CategoricalVAE(data_dim=6, num_latents=2, num_categories=3, hidden=(5,))
        >>> revive(vae, torch.ones(4, 6), threshold=0.001)
        0
    """
    encoder, decoder = rows_of(vae)
    use = vae.encoder(x).softmax(-1).mean(0)  # (N, K)
    generator = torch.Generator().manual_seed(seed)

    def copy(rows: Tensor, source: int, to: int) -> None:
        row = rows[source]
        random = torch.randn(row.shape, generator=generator).to(row)
        rows[to] = row + noise * row.square().mean().sqrt() * random

    def halve(logits: Tensor, source: int, to: int) -> None:
        logits[source] -= math.log(2)
        logits[to] = logits[source]

    unused = (use < threshold).nonzero().tolist()
    for n, k in (use < threshold).nonzero().tolist():
        j = int(use[n].argmax())
        source, to = n * vae.num_categories + j, n * vae.num_categories + k
        copy(encoder.weight, source, to)
        copy(decoder.weight.T, source, to)
        halve(encoder.bias, source, to)
        if isinstance(vae.prior_logits, nn.Parameter):
            halve(vae.prior_logits[n], j, k)
        use[n, j] /= 2
        use[n, k] = use[n, j]
    return len(unused)


def revive_if_due(training: Training) -> None:
    """Revive categories at the beginning of each epoch but the first, if the configuration says so.

    What is done depends on weights, data and step alone, so that a resumed run and all processes do the same.
    """
    config, step = training.config, training.state.step
    if config.revive is None or step == 0 or step % training.per_epoch:
        return
    sample: Any = training.watched
    revive(training.vae, sample, config.revive, seed=derived_seed("revive", config.seed, step))
