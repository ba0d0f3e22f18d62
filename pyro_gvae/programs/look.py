"""Take a first look at a pair, by one run of each program on one code: find its latents, and refuse invalid pairs."""

import math
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..handlers.chosen import Sites
from ..handlers.one_hot_messenger import coupled_guide, in_guide_alone, in_model_alone, no_discrete_site
from ..handlers.sites import Messages, Run, kind_of
from ..runtime.compat.enumeration import in_markov
from .cells import Cells
from .latents import READ_ALL, Roles, first_shared_value, first_value, latent_of
from .modes import without_trace
from .runs import Runs, two_plates
from .statements import Draw, Reader


class Look(NamedTuple):
    """The result of one run of each program on one code."""

    guide: Reader  # has read nothing if the guide is not used
    model: Reader
    given: dict[str, Tensor]  # continuous latents of the guide
    with_guide: bool
    roles: Roles
    repeats: bool = False  # whether the guide drew nothing and changed nothing: another run would say the same

    @property
    def says_all(self) -> bool:
        """Whether this run of the guide has shown what any run of it says, without its gradient.

        So it is where the guide has no latent but a discrete one, since no other value can then depend on its code.
        """
        return self.repeats and len(self.guide.messages) == len(self.guide.discrete) == 1

    @property
    def labels(self) -> dict[str, Messages]:
        """The discrete statements that the model observes."""
        messages = self.model.messages.items()
        return {name: msg for name, msg in messages if msg["is_observed"] and kind_of(msg["fn"]) is not None}

    @property
    def needs_axes(self) -> bool:
        """Whether each discrete latent needs its own axis.

        So it is if some are in a chain or in the model alone, or in plates of different sizes at the same dimension,
        whose data would otherwise have the product of their codes.
        """
        found = [reader.messages[name] for reader in (self.guide, self.model) for name in reader.discrete]
        return bool(self.alone) or any(map(in_markov, found)) or self._cells.are_side_by_side

    @property
    def alone(self) -> frozenset[str]:
        """The discrete latents that the model has and the guide lacks; none if the guide is not used."""
        names = self.model.discrete.keys() - self.guide.discrete.keys()
        return frozenset(names) if self.with_guide else frozenset()

    @property
    def is_shared(self) -> bool:
        """Whether several data share a discrete latent of the model."""
        return len({self._cells.own_shape(site.batch_shape) for site in self.model.discrete.values()}) > 1

    @property
    def _cells(self) -> Cells:
        return Cells.of([site.batch_shape for site in self.model.discrete.values()])

    @property
    def num_codes(self) -> int:
        """The number of joint codes."""
        return math.prod(latent_of(name, site).num_codes for name, site in self.model.discrete.items())


def look(runs: Runs, *, with_guide: bool = True, roles: Roles = READ_ALL) -> Look:
    """Run each program once, on one code, and leave random states as they were.

    Args:
        runs: the pair with its data bound.
        with_guide: whether the guide is read; the evidence needs only the model.
        roles: which latents are read as codes, and which are scored.
    """
    with torch.no_grad(), without_trace() as is_untouched:
        runs = runs.again()
        guide = Reader(first_value, any_draw({}), roles.read)
        if with_guide:
            guide.run(runs.guide)
        repeats = with_guide and is_untouched()
        given = {name: msg["value"] for name, msg in guide.continuous().items()}
        return Look(guide, _run_on_one_code(runs.model, given, roles.read), given, with_guide, roles, repeats)


def _run_on_one_code(model: Run, given: Mapping[str, Tensor], read: Sites) -> Reader:
    """Run the model on one code that all data share, so that it is decoded once; if that fails, on one per datum."""
    try:
        reader = Reader(first_shared_value, any_draw(given), read)
        reader.run(model)
    except (RuntimeError, ValueError, IndexError):
        reader = Reader(first_value, any_draw(given), read)
        reader.run(model)
    return reader


def any_draw(given: Mapping[str, Tensor]) -> Draw:
    """Return a function that gives a continuous latent its given value, or else any draw."""

    def draw(name: str, fn: Any) -> Tensor:
        value: Tensor = given[name] if name in given else fn.sample()
        return value

    return draw


def check(seen: Look, alone: Collection[str]) -> None:
    """Refuse pairs whose latents do not fit together.

    Args:
        seen: the result of a first look.
        alone: discrete latents that the guide may lack.
    """
    if seen.with_guide:
        _check_pair(seen.guide, seen.model, alone)
    _check_plates([*seen.guide.messages.values(), *seen.model.messages.values()])
    if not (seen.model.discrete or seen.labels) and seen.roles == READ_ALL:
        raise no_discrete_site()
    _check_model(seen.model, seen.given, seen.with_guide)


def _check_plates(messages: list[Messages]) -> None:
    sizes: dict[str, int] = {}
    for msg in messages:
        for frame in msg["cond_indep_stack"]:
            if frame.vectorized and sizes.setdefault(frame.name, frame.size) != frame.size:
                raise two_plates(frame.name, sizes[frame.name], frame.size)


def _check_pair(guide: Reader, model: Reader, alone: Collection[str]) -> None:
    for name, msg in guide.messages.items():
        if msg["is_observed"]:
            raise ValueError(
                f"Expected the guide to observe nothing, but found that it observes '{name}'. Try obs= in the model."
            )
        if name not in model.messages and name in guide.discrete:
            raise in_guide_alone(name)
        if name not in model.messages and not msg["infer"].get("is_auxiliary"):
            raise ValueError(
                f"Expected the latents of the guide to have the same name in the model, but found '{name}' in the "
                'guide alone. Try infer={"is_auxiliary": True} if this is intended.'
            )
    for name, found in guide.discrete.items():
        if found.prior is not None:
            raise coupled_guide(name)
    for name, found in model.discrete.items():
        if name in alone:
            continue
        if name not in guide.discrete:
            raise in_model_alone(name)
        expected, own = latent_of(name, found), latent_of(name, guide.discrete[name])
        same = (expected.kind, expected.shape, expected.num_categories) == (own.kind, own.shape, own.num_categories)
        if not same or found.batch_shape != guide.discrete[name].batch_shape:
            raise ValueError(
                f"Expected model and guide to have codes of the same shape, but found "
                f"{expected.num_latents} {expected.kind.value} of {expected.num_categories} categories with batch "
                f"shape {tuple(found.batch_shape)} in the model and {own.num_latents} {own.kind.value} of "
                f"{own.num_categories} with {tuple(guide.discrete[name].batch_shape)} in the guide at '{name}'."
            )


def _check_model(model: Reader, given: Mapping[str, Tensor], with_guide: bool) -> None:
    if all(name in model.discrete for name in model.messages):
        found = ", ".join(f"'{name}'" for name in model.discrete)
        raise ValueError(f"Expected the model to observe data, but found only latents: {found}. Try obs=x.")
    drawn = [name for name in model.continuous() if name not in given]
    if drawn and with_guide:
        raise ValueError(
            f"Expected the guide to have all continuous latents of the model, but found '{drawn[0]}' in the model "
            "alone. Try adding it to the guide, or conditioning on it."
        )
    if drawn:
        raise is_continuous(drawn[0])


def is_continuous(name: str) -> ValueError:
    """Return the error for computing the evidence of a model with a continuous latent."""
    return ValueError(
        f"Expected a model whose latents are all discrete, but found '{name}', over which no sum can be taken. Try "
        "exact.elbo, which draws it, the collapsed importance-weighted bound "
        "(pyro_gvae.evaluate.collapsed.collapsed_importance_weighted), or conditioning on it."
    )


def mixes_data(name: str, other: str, plates: frozenset[str]) -> ValueError:
    """Return the error for a statement outside of the plates of a latent that it depends on."""
    return ValueError(
        f"Expected every statement that depends on '{other}' to be inside of its plate(s) {sorted(plates)}, but found "
        f"'{name}' outside of them: it belongs to no single datum, and the sum would be over the codes of all data at "
        "once. Try moving it into the plate, or, for a plate of latents, one site with .to_event(1)."
    )
