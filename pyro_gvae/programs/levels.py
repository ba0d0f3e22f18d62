"""Compute log p(x, z) of a slice of codes, level by level, for latents in nested plates."""

import itertools
from typing import NamedTuple

import torch
from torch import Tensor

from ..handlers.sites import Run
from .cells import first_of, summed_over
from .factors import Layout, Reading, add
from .joint import count, pieces, refuse_continuous
from .shared import common_scale
from .site import Codes
from .statements import read


class LevelScores(NamedTuple):
    """The parts of log p(x, z) of a slice of codes, level by level."""

    tables: tuple[Tensor, ...]  # (s, cells) of each level; the sum over cells and levels is log p(x, z)
    scale: float | Tensor  # of all statements, outside of a sum over codes: a number, or that of each outermost cell


def level_scores(model: Run, layout: Layout, codes: Codes) -> LevelScores:
    """Run the model on joint codes, for latents in nested plates.

    Raises:
        ValueError: if the plates of two discrete latents are not nested, or if a latent is continuous.
    """
    for outer, inner in itertools.pairwise(layout.levels):
        if not inner.holds(outer.shape):
            raise ValueError(
                f"Expected plates of discrete latents to be nested, but found '{outer.names[0]}' and "
                f"'{inner.names[0]}', neither of which is inside the plates of the other, so that neither can be "
                "summed first. Try exact.elbo, which is a lower bound of log p(x)."
            )
    parts = [_level_scores(layout, part, read(model, layout, part, {})) for part in pieces(layout, codes)]
    tables = zip(*(part.tables for part in parts), strict=True)
    return LevelScores(tuple(torch.cat(table) for table in tables), parts[0].scale)


def _level_scores(layout: Layout, codes: Codes, found: Reading) -> LevelScores:
    refuse_continuous(found)
    scales = [one.scales for one in found.statements()]
    scale = common_scale(scales, layout.batch_shape, layout.levels[0].shape)
    terms: list[list[Tensor]] = []
    for level in layout.levels:
        sites = [found.score_of(name, codes) for name in level.names]
        terms.append([first_of(site, layout.batch_shape, level.shape) for site in sites])
    for factor in found.others().values():
        # The latents that it depends on are in no other plates, so they belong to this level or one further out.
        i = next(i for i, level in enumerate(layout.levels) if level.holds(factor.own_shape))
        terms[i].append(summed_over(factor.unscaled(), layout.batch_shape, layout.levels[i].shape))
    return LevelScores(tuple(add(term).expand(count(codes), -1) for term in terms), scale)
