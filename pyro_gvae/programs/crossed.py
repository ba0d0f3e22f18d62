"""Rows of a sample: P draws of the sampled latents for each joint code of the summed latents."""

from collections.abc import Collection
from typing import final

import torch
from torch import Tensor

from .factors import Layout
from .latents import Space
from .samples import Given, above_others


@final
class Crossed:
    """S P rows: row s P + p has the s-th joint code of the summed latents and the p-th draw of all others.

    A latent that the guide declares before a summed one does not depend on its code. It is drawn once for all of
    these codes, so that the probabilities of the codes add to 1 over the rows.

    Args:
        layout: the latents and plates of the programs.
        summed: names of the summed latents.
        num_particles: P.
    """

    def __init__(self, layout: Layout, summed: frozenset[str], num_particles: int) -> None:
        self.layout = layout
        self.space = Space(tuple(latent for latent in layout.space.latents if latent.name in summed))
        self.num_particles = num_particles

    @property
    def num_rows(self) -> int:
        """S P."""
        return self.space.num_codes * self.num_particles

    def given(self) -> Given:
        """Return the codes of the rows, and which rows share draws."""
        numbers = torch.arange(self.space.num_codes, device=self.layout.device)
        codes = self.space.codes(numbers.repeat_interleave(self.num_particles), self.layout.dtype)
        spread = {name: own.unsqueeze(1).expand(-1, self.layout.batch_size, -1, -1) for name, own in codes.items()}
        return Given(spread, {}, self.sources)

    def sources(self, declared: Collection[str]) -> Tensor:
        """Return for each row the first row of the same draw with the same codes of the declared latents, (S P,)."""
        rows = torch.arange(self.num_rows, device=self.layout.device)
        numbers, particles = rows // self.num_particles, rows % self.num_particles
        first, place = torch.zeros_like(numbers), 1
        for latent in reversed(self.space.latents):
            if latent.name in declared:
                first = first + numbers % latent.num_codes * place
            numbers = numbers // latent.num_codes
            place *= latent.num_codes
        return first * self.num_particles + particles

    def above_others(self, values: Tensor) -> Tensor:
        """Subtract from values (S P, ...) the mean of the other draws for the same code, if there are any."""
        rows = values.unflatten(0, (-1, self.num_particles)).transpose(0, 1)  # (P, S, ...)
        return above_others(rows).transpose(0, 1).flatten(0, 1)
