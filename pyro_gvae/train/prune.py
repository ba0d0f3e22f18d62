"""Latents that tell nothing of data, and categories that data do not use, removed from a trained program."""

import copy
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..evaluate.code_statistics import latent_statistics
from ..models.categorical_vae import CategoricalVAE
from ..programs.modes import judging
from .revive import rows_of


class Pruned(NamedTuple):
    """A smaller program, and what is left of the codes of the one that it was made of.

    Attributes:
        vae: the smaller program, of N' latents of K' categories.
        latents: the latents that are left, (N',).
        categories: the categories that are left of each, (N', K').
        fixed: the category that each latent of the larger program has where it is removed, (N,).
    """

    vae: CategoricalVAE
    latents: Tensor
    categories: Tensor
    fixed: Tensor

    def larger(self, codes: Tensor) -> Tensor:
        """Return the digits (..., N) in the larger program that codes (..., N', K') stand for."""
        numbers = self.fixed.expand(*codes.shape[:-2], -1).clone()
        own = self.categories.expand(*codes.shape[:-2], -1, -1).gather(-1, codes.argmax(-1, keepdim=True)).squeeze(-1)
        numbers[..., self.latents] = own
        return numbers


@judging
@torch.no_grad()
def prune(vae: CategoricalVAE, x: Tensor, *, information: float = 0.01, usage: float = 0.001) -> Pruned:
    r"""Remove latents of little mutual information with data, and categories that data hardly use.

    A latent is removed where :math:`\mathrm{I}(x; z_n)` under the guide is below a threshold; for the decoder, it then
    has its most used category. All latents that are left have K' categories, the most that one of them uses, and each
    keeps those that it uses most. On the codes that are left, decoder and logits of the encoder are what they were, and
    the prior is that given that the code is one of these. Training can go on with the smaller program.

    Args:
        vae: the program, which is not changed.
        x: data (B, D), of which information and use are taken.
        information: in nats.
        usage: the mean of q(z_n = k | x) over data below which k is unused.

    Returns:
        The smaller program, and which latents and categories it has.

    Raises:
        ValueError: if no latent is left, the prior is not one of independent digits, or the networks have no rows for
            categories.

    Example:
        >>> vae = CategoricalVAE(data_dim=6, num_latents=3, num_categories=4, hidden=(5,))
        >>> found = prune(vae, torch.rand(50, 6).round(), information=0.0, usage=0.5)
        >>> found.vae.num_latents, found.vae.num_categories
        (3, 2)
    """
    rows_of(vae)
    log_q = vae.encoder(x).log_softmax(-1)  # (B, N, K)
    use = log_q.exp().mean(0)
    latents = (latent_statistics(log_q).mutual_information >= information).nonzero().squeeze(-1)
    if not len(latents):
        raise ValueError(
            f"Expected a latent of {information:g} nats of information on data or more, but found none. Try a lower "
            "threshold, or a program that has learned more."
        )
    size = max(2, int((use[latents] >= usage).sum(-1).max()))
    categories = use[latents].topk(size, -1).indices.sort(-1).values  # (N', K')
    columns = (latents.unsqueeze(-1) * vae.num_categories + categories).flatten()
    fixed = use.argmax(-1)
    removed = [n for n in range(vae.num_latents) if n not in latents.tolist()]
    constant = torch.tensor([n * vae.num_categories + int(fixed[n]) for n in removed], dtype=torch.long).to(x.device)
    smaller = CategoricalVAE(
        vae.data_dim,
        len(latents),
        size,
        observation=copy.deepcopy(vae.observation),
        learn_prior=isinstance(vae.prior_logits, nn.Parameter),
        temperature=vae.temperature.item(),
        prior_temperature=vae.prior_temperature.item(),
        encoder=_encoder(vae, columns, (len(latents), size)),
        decoder=_decoder(vae, columns, constant),
        name=vae.name,
    ).to(vae.prior_logits)
    smaller.prior_logits.copy_(vae.prior_logits[latents].gather(-1, categories))
    return Pruned(smaller.train(vae.training), latents, categories, fixed)


def _encoder(vae: CategoricalVAE, rows: Tensor, shape: tuple[int, int]) -> nn.Module:
    """Return the encoder with some of its last layer's rows."""
    last = rows_of(vae).encoder
    fewer = nn.Linear(last.in_features, len(rows)).to(last.weight)
    fewer.weight.copy_(last.weight[rows])
    fewer.bias.copy_(last.bias[rows])
    before = vae.num_latents, vae.num_categories
    network = _replaced(vae.encoder, {id(last): fewer})
    shapes = [one for one in network.modules() if isinstance(one, nn.Unflatten)]
    if not shapes or tuple(shapes[-1].unflattened_size) != before:
        raise ValueError(
            f"Expected an encoder that ends in nn.Unflatten(-1, {before}), whose shape is changed, but found none. Try "
            "it as the last layer."
        )
    shapes[-1].unflattened_size = shape
    return network


def _decoder(vae: CategoricalVAE, columns: Tensor, constant: Tensor) -> nn.Module:
    """Return the decoder with some of its first layer's columns; constant ones are added to its bias."""
    first = rows_of(vae).decoder
    fewer = nn.Linear(len(columns), first.out_features).to(first.weight)
    fewer.weight.copy_(first.weight[:, columns])
    fewer.bias.copy_(first.weight[:, constant].sum(-1) + (0.0 if first.bias is None else first.bias))
    return _replaced(vae.decoder, {id(first): fewer})


def _replaced(network: nn.Module, layers: dict[int, nn.Module]) -> nn.Module:
    """Return a copy of a network with other layers, by the identity of those that they replace."""
    return copy.deepcopy(network, dict(layers))
