"""A first look at a pair, by one run of each program on one code: its latents, and how they are summed."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..handlers.sites import Run, Sites
from ..runtime.compat.enumeration import in_markov
from .latents import READ_ALL, Roles
from .modes import without_trace
from .runs import Runs
from .statements import Draw, Reader, first_shared_value, first_value, latent_of


class Look(NamedTuple):
    """What one run of each program on one code shows."""

    guide: Reader  # which has read nothing where the guide is not asked
    model: Reader
    given: dict[str, Tensor]  # continuous latents of the guide
    with_guide: bool
    roles: Roles

    @property
    def needs_axes(self) -> bool:
        """Whether each discrete latent needs an axis of its own: those of a chain, and those of the model alone."""
        found = [reader.messages[name] for reader in (self.guide, self.model) for name in reader.discrete]
        return bool(self.alone) or any(map(in_markov, found))

    @property
    def alone(self) -> frozenset[str]:
        """The discrete latents that the model has, and the guide lacks; none if the guide is not asked."""
        names = self.model.discrete.keys() - self.guide.discrete.keys()
        return frozenset(names) if self.with_guide else frozenset()

    @property
    def is_shared(self) -> bool:
        """Whether several data share a discrete latent of the model."""
        shapes = {tuple(site.batch_shape) for site in self.model.discrete.values()}
        longest = max(map(len, shapes), default=0)
        return len({(1,) * (longest - len(shape)) + shape for shape in shapes}) > 1

    @property
    def num_codes(self) -> int:
        """The number of joint codes."""
        return math.prod(latent_of(name, site).num_codes for name, site in self.model.discrete.items())


def look(runs: Runs, *, with_guide: bool = True, roles: Roles = READ_ALL) -> Look:
    """Run each program once, on one code, and leave random numbers as they were.

    Args:
        runs: the pair with its data bound.
        with_guide: whether the guide is read; the evidence is the model's alone.
        roles: which latents are read as codes, and which are scored.
    """
    with torch.no_grad(), without_trace():
        runs = runs.again()
        guide = Reader(first_value, any_draw({}), roles.read)
        if with_guide:
            guide.run(runs.guide)
        given = {name: msg["value"] for name, msg in guide.continuous().items()}
        return Look(guide, _run_on_one_code(runs.model, given, roles.read), given, with_guide, roles)


def _run_on_one_code(model: Run, given: Mapping[str, Tensor], read: Sites) -> Reader:
    """Run the model on a code that all data share, which it decodes once, or else on one in the shape of a sample."""
    try:
        reader = Reader(first_shared_value, any_draw(given), read)
        reader.run(model)
    except (RuntimeError, ValueError, IndexError):
        reader = Reader(first_value, any_draw(given), read)
        reader.run(model)
    return reader


def any_draw(given: Mapping[str, Tensor]) -> Draw:
    """Return values of continuous latents as they are given, or else any draw of them."""

    def draw(name: str, fn: Any) -> Tensor:
        value: Tensor = given[name] if name in given else fn.sample()
        return value

    return draw
