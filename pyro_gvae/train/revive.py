"""Give unused categories new weights during training, so that they can be used again."""

import copy
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..distributions.parameters import halve
from ..models.categorical_vae import CategoricalVAE
from ..programs.modes import judging
from ..runtime.rng import derived_seed
from .training import Training

#: Noise in a copied row, relative to the root mean square of its elements; without it, both rows would stay equal.
NOISE = 0.1


class Rows(NamedTuple):
    """The layers that have a row or a column for each category of each latent."""

    encoder: nn.Linear
    decoder: nn.Linear


def rows_of(vae: Any) -> Rows:
    """Return the layers next to the code.

    Raises:
        ValueError: if the program has no layers with a row for each category.
    """
    if isinstance(vae, CategoricalVAE):
        of_encoder, of_decoder = (
            [one for one in network.modules() if isinstance(one, nn.Linear)] for network in (vae.encoder, vae.decoder)
        )
        if of_encoder and of_decoder:
            last, first, size = of_encoder[-1], of_decoder[0], vae.prior_logits.numel()
            has_rows = last.out_features == size == first.in_features and last.bias is not None
            if has_rows and _takes_codes(vae, first):
                return Rows(last, first)
    raise ValueError(
        "Expected a CategoricalVAE whose encoder ends in a linear layer with a bias and whose decoder begins with one "
        f"that takes codes as they are, whose rows are those of categories, but found {type(vae).__name__} without "
        "them. Try revive=None and prune=None, or unimix."
    )


@judging
@torch.no_grad()
def _takes_codes(vae: CategoricalVAE, layer: nn.Linear) -> bool:
    """Return whether a layer takes codes as they are, and not for example as 2 z - 1, or in another order."""
    taken: list[Tensor] = []
    latents, categories = vae.prior_logits.shape
    # For each category of each latent, the code that has it and the first category of all other latents.
    codes = torch.zeros(latents, categories, latents, categories, dtype=layer.weight.dtype, device=layer.weight.device)
    codes[..., 0] = 1.0
    for latent in range(latents):
        codes[latent, :, latent] = torch.eye(categories).to(codes)
    codes = codes.flatten(0, 1)  # (N K, N, K)
    with layer.register_forward_pre_hook(lambda _, inputs: taken.append(inputs[0])):
        vae.decoder(codes)
    return codes.is_meta or (len(taken) == 1 and taken[0].flatten().tolist() == codes.flatten().tolist())


def check_revivable(vae: Any) -> None:
    """Refuse a program whose categories cannot be split.

    Raises:
        ValueError: if its networks have no row for each category, or its prior cannot be split.
    """
    rows_of(vae)
    if vae.prior is not None:
        copy.deepcopy(vae.prior).split(0, 0, 1)


@judging
@torch.no_grad()
def revive(vae: CategoricalVAE, x: Tensor, threshold: float, *, seed: int = 0, noise: float = NOISE) -> int:
    """Split the most used category of a latent in two for each category that data hardly use.

    The unused category k gets the encoder's row, the decoder's column and the prior's probability of the most used
    category j, with a little noise, and both get half of j's probability. Without the noise, the decoder's output does
    not change, and the ELBO falls only by what k contributed; under a uniform prior, it rises by log 2 for each datum
    of j. A prior of dependent digits is split for all values of the other digits: see
    :meth:`~pyro_gvae.distributions.coupled.CodePrior.split`.

    Args:
        vae: the program, which is changed in place.
        x: data (B, D) on which the use of categories is measured.
        threshold: the mean of q(z_n = k | x) over data below which k is unused.
        seed: the seed of the noise.
        noise: its size, relative to the root mean square of a row.

    Returns:
        The number of categories that got new rows.

    Raises:
        ValueError: if the encoder does not end in a linear layer, or the decoder does not begin with one, or a custom
            prior cannot split its categories.

    Example:
        >>> vae = CategoricalVAE(data_dim=6, num_latents=2, num_categories=3, hidden=(5,))
        >>> revive(vae, torch.ones(4, 6), threshold=0.001)
        0
    """
    encoder, decoder = rows_of(vae)
    use = vae.guide_logits(x).softmax(-1).mean(0)  # (N, K)
    generator = torch.Generator().manual_seed(seed)

    def copy(rows: Tensor, source: int, to: int) -> None:
        row = rows[source]
        random = torch.randn(row.shape, generator=generator).to(row)
        rows[to] = row + noise * row.square().mean().sqrt() * random

    unused = (use < threshold).nonzero().tolist()
    for n, k in unused:
        j = int(use[n].argmax())
        source, to = n * vae.num_categories + j, n * vae.num_categories + k
        copy(encoder.weight, source, to)
        copy(decoder.weight.T, source, to)
        halve(encoder.bias, source, to)
        if vae.prior is not None:
            vae.prior.split(n, j, k)
        elif isinstance(vae.prior_logits, nn.Parameter):
            halve(vae.prior_logits[n], j, k)
        use[n, j] /= 2
        use[n, k] = use[n, j]
    return len(unused)


def revive_if_due(training: Training) -> None:
    """Revive categories at the beginning of each epoch but the first, if the configuration says so.

    The result depends only on weights, data and step, so that a resumed run and all processes do the same.
    """
    config, step = training.config, training.state.step
    if config.revive is None or step == 0 or step % training.per_epoch:
        return
    sample: Any = training.watched
    revive(training.vae, sample, config.revive, seed=derived_seed("revive", config.seed, step))
