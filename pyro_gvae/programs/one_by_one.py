"""Read programs that do not take an axis for each discrete latent, by one run of each for every joint code.

The results are those of `programs/enumerator.py`. Shapes do not show here what a statement depends on, and neither does
autograd where a program branches on a value. So each statement gets the axes of all latents before it: K^T numbers for
the last one of a chain of T latents.
"""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from pyro.distributions.util import broadcast_shape, scale_and_mask
from torch import Tensor

from ..distributions.codes import numbered_codes
from ..handlers.sites import Discrete, Messages, Run, plates_of
from ..runtime.memory import in_words
from ..runtime.rng import random_states, set_random_states
from .axes import Axis, Term, plate_axes, term_of
from .enumerator import Both
from .latents import Latent, TooManyCodesError, comes_and_goes, first_value
from .look import mixes_data
from .statements import Draw, Reader, drawn_once
from .terms import Reading, Site, mask_of_site, score, site_of, weight_of

#: The most joint codes, each of which takes a run of both programs.
MOST_RUNS = 2**14
#: A relative or absolute difference of log-probabilities that rounding may cause.
ROUNDING = 1e-3

#: The numbers of the values of several latents, in order.
Numbers = tuple[int, ...]
#: Values of latents that are not enumerated, for given values of those that are.
GivenValues = Callable[[Numbers], Mapping[str, Tensor]]


class Enumerated(NamedTuple):
    """The latents that are enumerated.

    Attributes:
        latents: the latents, with those of the guide first.
        nesting: the number of batch dimensions that plates take.
        limit: bytes that the log-probabilities of a statement may take.
    """

    latents: Sequence[Latent]
    nesting: int
    limit: int

    @property
    def sizes(self) -> list[int]:
        """The number of values of each latent."""
        return [latent.num_codes for latent in self.latents]

    @property
    def axes(self) -> list[Axis]:
        """The axis of each latent."""
        return [Axis(False, number, latent.name) for number, latent in enumerate(self.latents)]

    def first(self, count: int) -> "Enumerated":
        """Return the first latents."""
        return self._replace(latents=self.latents[:count])


def read_both_one_by_one(
    model: Run, guide: Run | None, latents: Mapping[str, Latent], nesting: int, draw: Draw, limit: int
) -> Both:
    """Run both programs, or the model alone, for every joint code.

    Args:
        model: the model with its data bound.
        guide: the guide, or None.
        latents: the discrete latents of the model, by name.
        nesting: the number of batch dimensions that plates take.
        draw: draws a continuous latent of the guide. All codes have the same noise.
        limit: bytes that the log-probabilities of a statement may take.

    Raises:
        ValueError: if the log-probabilities do not fit, or a statement depends on a latent outside of its plates.
    """
    names = [] if guide is None else [name for name in _names(guide, {}, draw) if name in latents]
    order = [*names, *(name for name in latents if name not in names)]
    every = Enumerated([latents[name] for name in order], nesting, limit)
    values: dict[Numbers, dict[str, Tensor]] = {}

    def given(numbers: Numbers) -> Mapping[str, Tensor]:
        return values.get(numbers[: len(names)], {})

    q = Reading({}, {}, {}) if guide is None else _read(guide, every.first(len(names)), lambda _: {}, draw, values)
    return Both(q, _read(model, every, given, draw))


def read_given_one_by_one(
    program: Run, latents: Mapping[str, Latent], nesting: int, values: Mapping[str, Tensor], limit: int
) -> Reading:
    """Run a program for every joint code of the latents that have no given value.

    Args:
        program: the program with its data bound.
        latents: the discrete latents of the model, by name.
        nesting: the number of batch dimensions that plates take.
        values: values of the latents that are not enumerated.
        limit: bytes that the log-probabilities of a statement may take.

    Raises:
        ValueError: as :func:`read_both_one_by_one`.
    """
    draw = drawn_once({}, frozenset())
    found = _names(program, values, draw)
    rest = [latents[name] for name in latents if name in found and name not in values]
    return _read(program, Enumerated(rest, nesting, limit), lambda _: values, draw)


def _names(program: Run, values: Mapping[str, Tensor], draw: Draw) -> list[str]:
    """Return the discrete latents of a program in their order."""
    states = random_states()
    with torch.no_grad():
        reader = Reader(lambda name, found: values[name] if name in values else first_value(name, found), draw)
        reader.run(program)
    set_random_states(states)
    return list(reader.discrete)


class _Said(NamedTuple):
    """What a program said of one joint code."""

    sites: dict[str, Site]
    others: dict[str, Term]


def _read(
    program: Run,
    every: Enumerated,
    given: GivenValues,
    draw: Draw,
    values: dict[Numbers, dict[str, Tensor]] | None = None,
) -> Reading:
    """Run a program for every joint code; note the values of its continuous latents in `values`."""
    states = random_states()
    said: list[_Said] = []
    messages: dict[str, Messages] = {}
    first: Reader | None = None
    for numbers in itertools.product(*map(range, every.sizes)):
        own = given(numbers)
        place = _place({latent.name: number for latent, number in zip(every.latents, numbers, strict=True)}, own)
        if said:
            set_random_states(states)
        reader = Reader(place, lambda name, fn, own=own: own[name] if name in own else draw(name, fn))  # type: ignore[misc]
        reader.run(program)
        said.append(_said(reader, every))
        if first is None:
            first = reader
            _check_size(said[0], every)
        if values is not None:
            values[numbers] = {name: msg["value"] for name, msg in reader.continuous().items()}
        messages |= {name: msg for name, msg in reader.messages.items() if name not in messages}
        for name in sorted(reader.discrete.keys() ^ first.discrete.keys()):
            raise comes_and_goes(name)
    assert first is not None
    sites = {name: _stacked_site([one.sites[name] for one in said], messages, every) for name in said[0].sites}
    others = {
        name: _stacked(name, [one.others.get(name, _nothing(msg)) for one in said], messages, every)
        for name, msg in messages.items()
        if name not in sites
    }
    masks = {name: msg["mask"] for name, msg in messages.items()}
    masks |= {name: mask_of_site(first.discrete[name], messages[name]) for name in sites}
    like = {name: site.log_probs.values for name, site in sites.items()}
    like |= {name: term.values for name, term in others.items()}
    weights = {name: partial(weight_of, msg, masks[name], like[name]) for name, msg in messages.items()}
    return Reading(sites, others, weights)


def _nothing(msg: Messages) -> Term:
    """Return what a statement adds with codes for which the program does not make it."""
    value = msg["value"]
    dtype = value.dtype if value.is_floating_point() else torch.get_default_dtype()
    return Term(torch.zeros((), dtype=dtype, device=value.device), (), frozenset(plate_axes(msg).values()))


def _place(numbers: Mapping[str, int], own: Mapping[str, Tensor]) -> Callable[[str, Discrete], Tensor]:
    def place(name: str, found: Discrete) -> Tensor:
        if name in own:
            return own[name]
        if name not in numbers:
            raise comes_and_goes(name)
        like = torch.promote_types(found.natural.dtype, torch.float32)
        number = torch.tensor(numbers[name], device=found.natural.device)
        code = numbered_codes(number, *found.code_shape, dtype=like)
        return Latent(name, found.kind, found.shape, found.num_categories, found.dtype).value(
            code.expand(*found.batch_shape, -1, -1)
        )

    return place


def _said(reader: Reader, every: Enumerated) -> _Said:
    axes = {axis.name: axis for axis in every.axes}
    sites, others = {}, {}
    for name, msg in reader.messages.items():
        found = reader.discrete.get(name)
        if found is not None and name in axes:
            sites[name] = site_of(name, found, msg, {}, axes[name], every.nesting)
        else:
            own = msg if found is None else {**msg, "fn": found.discrete()}
            others[name] = term_of(name, scale_and_mask(score(own), 1.0, msg["mask"]), msg, {}, every.nesting)
    return _Said(sites, others)


def _check_size(said: _Said, every: Enumerated) -> None:
    """Refuse joint codes that take too many runs, or whose log-probabilities do not fit into memory, after one run."""
    terms = [*(site.log_probs for site in said.sites.values()), *said.others.values()]
    needed = sum(term.values.numel() * term.values.element_size() for term in terms) * math.prod(every.sizes)
    if needed > every.limit or math.prod(every.sizes) > MOST_RUNS:
        raise TooManyCodesError(
            f"Expected at most {MOST_RUNS:,} joint codes, whose log-probabilities fit into {in_words(every.limit)}, "
            f"but found {math.prod(every.sizes):,} codes, which take {in_words(needed)}, and a run each, because the "
            "programs do not take values of latents in dimensions left of the plates. Try operations on the last "
            "dimensions only, such as z.flatten(-2) instead of z.reshape(len(x), -1), or an estimator that samples."
        )


def _stacked_site(sites: Sequence[Site], messages: Mapping[str, Messages], every: Enumerated) -> Site:
    def stacked(terms: Sequence[Term]) -> Term:
        return _stacked(sites[0].latent.name, terms, messages, every)

    return sites[0]._replace(
        log_probs=stacked([site.log_probs for site in sites]),
        masked=stacked([site.masked for site in sites]),
        of_digits=lambda weights: stacked([site.of_digits(weights) for site in sites]),
    )


def _stacked(name: str, terms: Sequence[Term], messages: Mapping[str, Messages], every: Enumerated) -> Term:
    """Join the terms of all joint codes to one with the axes of the latents that the statement may depend on."""
    own = tuple(sorted(frozenset().union(*(term.axes for term in terms))))
    kept = [_may_depend(name, axis.name, messages) for axis in every.axes]
    axes = [*(axis for axis, keeps in zip(every.axes, kept, strict=True) if keeps), *own]
    order = sorted(range(len(axes)), key=axes.__getitem__)

    def joined(rows: Sequence[Tensor]) -> Tensor:
        shape = broadcast_shape(*(row.shape for row in rows))
        values = torch.stack([row.expand(shape) for row in rows]).reshape(*every.sizes, *shape)
        for dim in reversed(range(len(kept))):
            if not kept[dim]:
                values = _one_of(values, dim, name, every.axes[dim].name, messages)
        return values.permute(order)

    def in_axes(scale: Any, term: Term) -> Tensor:
        sizes = dict(zip(term.axes, scale.shape, strict=True)) if isinstance(scale, Tensor) and scale.dim() else {}
        found = torch.as_tensor(scale, dtype=term.values.dtype, device=term.values.device)
        return found.reshape([sizes.get(axis, 1) for axis in own])

    scale = terms[0].scale
    if any(isinstance(term.scale, Tensor) or term.scale != scale for term in terms):
        scale = joined([in_axes(term.scale, term) for term in terms])
    values = joined([in_axes(term.values, term) for term in terms])
    return Term(values, tuple(axes[i] for i in order), terms[0].plates, scale)


def _may_depend(name: str, other: str, messages: Mapping[str, Messages]) -> bool:
    """Return whether a latent is drawn before a statement, and in no other plates."""
    order = list(messages)
    is_before = other in messages and order.index(other) < order.index(name)
    return is_before and plates_of(messages[other]) <= plates_of(messages[name])


def _one_of(values: Tensor, dim: int, name: str, other: str, messages: Mapping[str, Messages]) -> Tensor:
    """Leave out the axis of a latent on which a statement must not depend."""
    first = values.select(dim, 0)
    with torch.no_grad():
        is_same = torch.allclose(values, first.unsqueeze(dim), rtol=ROUNDING, atol=ROUNDING, equal_nan=True)
    if not is_same:
        raise mixes_data(name, other, plates_of(messages[other]) - plates_of(messages[name]))
    return first
