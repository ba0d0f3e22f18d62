"""Encode data with the probability and the number of each joint code."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ..data.columns import Data
from ..exact.plan import PerLatent
from ..exact.posteriors import posterior
from ..handlers.sites import Discrete
from ..models.base import VAE
from ..programs.latents import latent_of
from ..programs.modes import judging
from ..programs.runs import bind_pair
from ..programs.statements import Reader
from .generate import CodeKind, encode, in_order

#: The most joint codes that have numbers of 64 bits.
MOST_NUMBERED = 2**63 - 1


class Encoded(NamedTuple):
    """Codes of B data.

    Attributes:
        codes: one-hots (B, N, K), and values of continuous latents (B, L), as :func:`encode` returns them.
        probs: the probability of each joint code, (B,): under the exact posterior for the kind "exact", otherwise under
            the guide; None if the guide does not determine it.
    """

    codes: PerLatent
    probs: Tensor | None

    @property
    def one_hots(self) -> dict[str, Tensor]:
        """The codes of the discrete latents by name; "latent" if there is one."""
        named = self.codes if isinstance(self.codes, dict) else {"latent": self.codes}
        return {name: named[name] for name in sorted(named, key=in_order) if named[name].dim() == 3}

    def numbers(self) -> Tensor | None:
        """Return the number of each joint code, (B,), from 0; None if there are too many codes for 64 bits.

        The digits of the latents are in the order of the columns, and the last one varies fastest.

        Example:
            >>> Encoded(torch.eye(3).reshape(1, 3, 3), None).numbers()  # digits 0, 1, 2
            tensor([5])
        """
        digits = [digit for own in self.one_hots.values() for digit in own.unbind(1)]  # (B, K) each
        if math.prod(digit.shape[-1] for digit in digits) > MOST_NUMBERED:
            return None
        number = torch.zeros(len(digits[0]), dtype=torch.long, device=digits[0].device)
        for digit in digits:
            number = number * digit.shape[-1] + digit.argmax(-1)
        return number


@judging
@torch.no_grad()
def encoded(vae: VAE, x: Data, kind: CodeKind = "map", *, max_memory: float | None = None) -> Encoded:
    """Encode each datum as :func:`~pyro_gvae.evaluate.generate.encode` does, with the probability of its code.

    Args:
        vae: a ready-made program.
        x: data (B, D), or a tuple of data and labels for a program that takes labels.
        kind: how codes are chosen.
        max_memory: bytes that the exact sum may use.

    Raises:
        ValueError: as :func:`~pyro_gvae.evaluate.generate.encode`.

    Example:
        >>> from pyro_gvae import CategoricalVAE
        >>> vae = CategoricalVAE(data_dim=6, num_latents=2, num_categories=3, hidden=(5,))
        >>> bool((encoded(vae, torch.ones(4, 6)).probs >= 1 / 9).all())  # of the most probable of nine codes
        True
    """
    if kind == "exact":
        found = posterior(vae, x, num_codes=1, max_memory=max_memory)
        codes = found.codes
        best = {name: own.squeeze(1) for name, own in codes.items()} if isinstance(codes, dict) else codes.squeeze(1)
        return Encoded(best, found.probs.squeeze(1))
    chosen = encode(vae, x, kind, max_memory=max_memory)
    return Encoded(chosen, _probs(vae, x, chosen))


def _probs(vae: VAE, x: Data, chosen: PerLatent) -> Tensor | None:
    """Return the guide's probability of codes, given the values of continuous latents that they depend on."""
    logs: dict[str, Tensor] = {}

    def value(name: str) -> Tensor:
        return chosen[name] if isinstance(chosen, dict) else chosen

    def place(name: str, site: Discrete) -> Tensor:
        log_probs = site.log_probs
        code = value(name).to(log_probs)
        logs[name] = (log_probs * code).sum((-2, -1))  # (B,)
        return latent_of(name, site).value(code)

    Reader(place, lambda name, _: value(name)).run(bind_pair(vae, x).guide)
    discrete = [own for own in (chosen.values() if isinstance(chosen, dict) else [chosen]) if own.dim() == 3]
    if len(logs) < len(discrete):  # the guide lacks latents of the model
        return None
    return torch.stack(list(logs.values())).sum(0).exp()
