"""Weights of a page in half precision, and what that changes, in nats."""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from ..models.base import VAE
from ..programs.modes import judging
from ..runtime.rng import own_randomness
from .arrays import Arrays, in_half_precision
from .tiles import Tiles, tiles

#: The change of an ELBO, in nats, from which a page and its command warn.
MOST_NATS = 0.05
#: Codes that are drawn for each datum.
NUM_CODES = 16


def round_models(models: Sequence[tuple[str, VAE]], described: list[dict[str, Any]], x: Tensor, store: Arrays) -> float:
    """Round all weights of a page to half precision, and record in each model what that changes.

    Args:
        models: names and models.
        described: what the page has of each; `rounding` is added.
        x: the data that the page shows, (B, D).
        store: the arrays of the page.

    Returns:
        The largest change of a datum's ELBO, in nats, of all models.
    """
    store.round_weights()
    for (name, vae), part in zip(models, described, strict=True):
        networks = {"encoder": part["guide"], "decoder": part["decoder"], "prior": part["log_prior"]}
        held = {network for network, graph in networks.items() if graph is not None}
        part["rounding"] = nats_by_rounding(vae, x.to(next(vae.parameters())), held)
        if part["rounding"] > MOST_NATS:
            warnings.warn(
                f"Expected weights that keep their meaning in half precision, which a page of this size needs, but "
                f"found that it changes the ELBO of a datum under {name} by up to {part['rounding']:.2g} nats. Try "
                "smaller networks, or one model instead of several.",
                RuntimeWarning,
                stacklevel=3,
            )
    return max(float(part["rounding"]) for part in described)


@judging
@torch.no_grad()
def nats_by_rounding(vae: VAE, x: Tensor, held: set[str]) -> float:
    """Return by how much the ELBO of a datum changes if weights are rounded to half precision: the largest of all data.

    Each ELBO is a mean over codes that are drawn from the encoder, the same before and after.

    Args:
        vae: a model that a page can show; its weights are the same afterwards.
        x: data (B, D).
        held: those of "encoder", "decoder" and "prior" whose weights the page has. Otherwise it has the probabilities
            of encoder and prior, which are not rounded, or a table of what the decoder returns, which is.

    Example:
        >>> from pyro_gvae import CategoricalVAE
        >>> vae = CategoricalVAE(data_dim=6, num_latents=2, num_categories=3, hidden=(5,))
        >>> 0 < nats_by_rounding(vae, torch.ones(4, 6), {"encoder", "decoder"}) < 0.01
        True
    """
    code = tiles(vae)
    with own_randomness(0):
        codes = torch.distributions.OneHotCategorical(logits=code.guide(x)).sample((NUM_CODES,))  # (P, B, N, K)
    before = _elbo(vae, code, x, codes)
    with _rounded(vae, held):
        after = _elbo(vae, code, x, codes)
    return (after - before).abs().max().item()


def _elbo(vae: VAE, code: Tiles, x: Tensor, codes: Tensor) -> Tensor:
    """Return the mean of log p(x, z) - log q(z | x) over codes (P, B, N, K), which is (B,)."""
    log_q = (code.guide(x) * codes).sum((-1, -2))
    log_p = (code.log_prior * codes).sum((-1, -2)) if code.prior is None else code.prior.log_prob(codes)
    likelihood = torch.stack([vae.observation(code.decoder(part)).log_prob(x) for part in codes])
    return (likelihood + log_p - log_q).mean(0)


@contextmanager
def _rounded(vae: VAE, held: set[str]) -> Iterator[None]:
    """Round the matrices of networks, as a page does; vectors stay as they are."""
    networks = [vae.get_submodule(name) for name in held]
    weights = [weight for network in networks for weight in network.parameters() if weight.dim() > 1]
    exact = [weight.clone() for weight in weights]
    decoder = vae.get_submodule("decoder")
    table = None if "decoder" in held else decoder.register_forward_hook(lambda _, args, result: _half(result))
    try:
        for weight in weights:
            weight.copy_(_half(weight))
        yield
    finally:
        for weight, value in zip(weights, exact, strict=True):
            weight.copy_(value)
        if table is not None:
            table.remove()


def _half(values: Tensor) -> Tensor:
    return torch.from_numpy(in_half_precision(values.detach().float().numpy())).to(values.dtype)
