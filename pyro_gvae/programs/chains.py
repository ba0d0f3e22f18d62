"""Describe and check a pair whose discrete latents have an axis each, before anything is summed."""

import itertools
from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple, Self

import pyro
import torch
from torch import Size, Tensor

from ..handlers.sites import Discrete, Messages, Run
from ..runtime.compat.enumeration import in_markov, is_in_reach, sites_in_reach
from ..runtime.memory import in_words, memory_limit
from .agreement import disagreement_of_axes
from .axes import Axis, plate_axes
from .dependence import Dependence, check_dependence, dependences, directly_upstream, pairing
from .enumerator import Both, Enumerator, check_reach, enumerate_both, read_axes, read_given
from .latents import Latent, TooManyCodesError, latent_of
from .layout import obstacle_of, warn_of
from .look import Look, any_draw, check, is_continuous
from .mixing import check_apart
from .modes import without_trace
from .one_by_one import read_both_one_by_one, read_given_one_by_one
from .provenance import Provenance
from .reach import Reach
from .runs import Runs
from .statements import Reader, drawn_once
from .terms import Reading

#: Latents outside of `pyro.markov` have a dimension each, and torch sums over tensors of at most 64.
MOST_DIMENSIONS = 60


class Chains(NamedTuple):
    """A pair whose discrete latents have an axis each.

    Attributes:
        latents: the discrete latents, by name.
        plates: the plates of each latent from left to right, including the guide's continuous latents.
        sizes: the sizes of all plates.
        shared: the plates that all discrete latents are in; there is one result for each of their cells.
        nesting: the number of batch dimensions that plates take.
        with_guide: whether the guide is read.
        reach: the latents that statements reach in addition to what `pyro.markov` allows.
        obstacle: why the programs do not take an axis for each latent, or None if they do.
        limit: bytes that log-probabilities may take.
    """

    latents: dict[str, Latent]
    plates: dict[str, tuple[Axis, ...]]
    sizes: dict[Axis, int]
    shared: tuple[Axis, ...]
    nesting: int
    with_guide: bool
    reach: Reach
    obstacle: str | None
    limit: int

    @property
    def num_slices(self) -> int:
        """1, because nothing is cut into slices."""
        return 1

    @property
    def result_shape(self) -> Size:
        """The shape of the ELBO and of the log-evidence."""
        return Size(self.sizes[plate] for plate in self.shared)

    @property
    def has_continuous(self) -> bool:
        """Whether the guide has continuous latents."""
        return not self.plates.keys() <= self.latents.keys()

    def read(self, runs: Runs) -> Both:
        """Run the programs on all values of all latents, with one pathwise draw of the continuous ones."""
        guide, draw = (runs.guide, drawn_once({}, frozenset())) if self.with_guide else (None, _no_draw)
        if self.obstacle is not None:
            return read_both_one_by_one(runs.model, guide, self.latents, self.nesting, draw, self.limit)
        return read_axes(runs.model, guide, self.nesting, draw, self.reach)

    def read_given(self, program: Run, values: Mapping[str, Tensor]) -> Reading:
        """Run a program with values of some latents, and on all values of every other discrete one."""
        if self.obstacle is not None:
            return read_given_one_by_one(program, self.latents, self.nesting, values, self.limit)
        return read_given(program, self.nesting, values, self.reach)

    @property
    def cells(self) -> tuple[Axis, ...]:
        """The plates that all latents are in: data in different cells share no latent."""
        return tuple(plate for plate in self.shared if all(plate in plates for plates in self.plates.values()))

    def of_model(self) -> Self:
        """Return the same description for the model alone."""
        return self._replace(with_guide=False)


def lay_out_chains(runs: Runs, seen: Look, max_memory: float | None = None) -> Chains:
    """Describe and check a pair whose discrete latents have an axis each, by one more run of each program.

    Args:
        runs: the pair with its data bound.
        seen: the result of a first look.
        max_memory: bytes that the log-probabilities of a latent may take; 4 GB if None.

    Raises:
        ValueError: if the latents of the programs do not fit together, if a statement depends on a latent out of its
            reach or plates, or if a latent has too many values.
    """
    check(seen, seen.alone)
    _check_sizes(seen, max_memory)
    messages = [*seen.model.messages.values(), *seen.guide.messages.values()]
    plates = {
        name: tuple(sorted(plate_axes(reader.messages[name]).values()))
        for reader in (seen.guide, seen.model)
        for name in (*reader.discrete, *(seen.given if reader is seen.guide else ()))
    }
    shared = frozenset.intersection(*(frozenset(plates[name]) for name in seen.model.discrete))
    chains = Chains(
        latents={name: latent_of(name, site) for name, site in seen.model.discrete.items()},
        plates=plates,
        sizes={
            axis: frame.size
            for msg in messages
            for axis, frame in zip(plate_axes(msg).values(), _frames(msg), strict=True)
        },
        shared=tuple(sorted(shared)),
        nesting=_nesting(seen, messages),
        with_guide=seen.with_guide,
        reach=Reach(_beside(seen), _behind(runs, seen)),
        obstacle=None,
        limit=memory_limit(max_memory),
    )
    with_gradient = torch.is_grad_enabled()
    with torch.no_grad():
        again = runs.again()
        check_apart(again.model, seen.model)
        if seen.with_guide and len(seen.guide.messages) > 1:
            check_apart(again.guide, seen.guide)
        obstacle = _obstacle(runs.again(), chains, with_gradient)
    warn_of(obstacle)
    return chains._replace(obstacle=obstacle)


def _obstacle(runs: Runs, chains: Chains, with_gradient: bool) -> str | None:
    """Run the programs on all values of all latents; return why they do not take these, or None if they do.

    Raises:
        ValueError: if a statement depends on a latent out of its reach or plates.
    """
    provenance = Provenance()
    guide = runs.guide if chains.with_guide else None
    both: list[Enumerator] = []
    dependent: list[Dependence] = []

    def run() -> None:
        both.extend(enumerate_both(runs.model, guide, chains.nesting, any_draw({}), chains.reach, provenance))
        with provenance:
            dependent.extend(one for program in both for one in dependences(program, provenance))

    with without_trace(), pyro.validation_enabled(False):
        obstacle = obstacle_of(run)
    if obstacle is not None:
        return obstacle
    q, p = both
    check_reach(p)
    names = {number: axis.name for program in both for number, axis in program.enumerated().items()}
    for dependence in dependent:
        check_dependence(dependence, names)
    paired = next(filter(None, map(pairing, dependent)), None)
    if paired is not None:
        return paired

    def again() -> tuple[Enumerator, Enumerator]:
        values = {name: msg["value"] for program in both for name, msg in program.messages.items()}
        with without_trace(), pyro.validation_enabled(False):
            return enumerate_both(runs.model, guide, chains.nesting, any_draw(values), chains.reach)

    return disagreement_of_axes(runs, (q, p), chains.nesting, again, with_gradient=with_gradient)


class Particles(NamedTuple):
    """Programs that run for several particles at once, in an outer plate, or for one particle without that plate."""

    runs: Runs
    chains: Chains
    size: int | None  # the size of the plate, if there is one

    def rows(self, values: Tensor) -> Tensor:
        """Return values as (P, ..): add the first dimension if there is no plate."""
        return values.unsqueeze(0) if self.size is None else values


def in_particles(runs: Runs, chains: Chains, count: int) -> Particles:
    """Put a plate of particles around both programs, left of all others; it is the first dimension of results."""
    dim = -1 - chains.nesting
    axis = Axis(True, dim, "particles of pyro_gvae")

    def inside(program: Run) -> Run:
        def run() -> None:
            with pyro.plate(axis.name, count, dim=dim):
                program()

        return run

    def around(own: Runs) -> Runs:
        return Runs(inside(own.model), inside(own.guide), again=lambda: around(own.again()))

    many = chains._replace(
        plates={name: (axis, *plates) for name, plates in chains.plates.items()},
        sizes={**chains.sizes, axis: count},
        shared=(axis, *chains.shared),
        nesting=chains.nesting + 1,
    )
    return Particles(around(runs), many, count)


def _no_draw(name: str, _: Any) -> Tensor:
    raise is_continuous(name)


def _frames(msg: Messages) -> list[Any]:
    return [frame for frame in msg["cond_indep_stack"] if frame.vectorized]


def _nesting(seen: Look, messages: list[Messages]) -> int:
    shapes = [found.batch_shape for found in (*seen.model.discrete.values(), *seen.guide.discrete.values())]
    frames = itertools.chain.from_iterable(map(_frames, messages))
    return max([*map(len, shapes), *(-frame.dim for frame in frames)])


def _check_sizes(seen: Look, max_memory: float | None) -> None:
    found = {name: (reader, site) for reader in (seen.model, seen.guide) for name, site in reader.discrete.items()}
    no_chain = [name for name, (reader, _) in found.items() if not in_markov(reader.messages[name])]
    if len(no_chain) > MOST_DIMENSIONS:
        raise ValueError(
            f"Expected at most {MOST_DIMENSIONS} discrete latents outside of pyro.markov, each of which takes a "
            f"dimension of its own, but found {len(no_chain)}, such as '{no_chain[0]}'. Try `for t in "
            "pyro.markov(range(T))` in model and guide, which sums a chain in time linear in T."
        )
    limit = memory_limit(max_memory)
    for name, (reader, site) in found.items():
        num_values = latent_of(name, site).num_codes
        others = max(site.batch_shape.numel(), num_values if in_markov(reader.messages[name]) else 1)
        needed = num_values * others * site.natural.element_size()
        if needed > limit:
            raise TooManyCodesError(
                f"Expected the log-probabilities of '{name}' to fit into {in_words(limit)}, but found {num_values:,} "
                f"values, which take {in_words(needed)}. Try fewer data at once, a larger max_memory, or an estimator "
                "that samples."
            )


def _beside(seen: Look) -> dict[str, frozenset[str]]:
    """Return, for each discrete latent of the guide, the others that a statement of the model reaches with it."""
    found: dict[str, frozenset[str]] = {}
    for name, msg in seen.model.messages.items():
        together = (sites_in_reach(msg) | {name}) & seen.guide.discrete.keys()
        for other in together:
            found[other] = found.get(other, frozenset()) | together - {other}
    return found


def _behind(runs: Runs, seen: Look) -> frozenset[str]:
    """Return the latents in `pyro.markov` that a statement depends on although they are out of its reach."""
    found: set[str] = set()
    for reader, program in ((seen.guide, runs.again().guide), (seen.model, runs.again().model)):
        if _may_reach_behind(list(reader.messages.values())):
            provenance = Provenance()
            values = {other: msg["value"] for other, msg in reader.messages.items()}
            read_again = Reader(partial(_of, values), any_draw(seen.given))
            with torch.no_grad(), without_trace(), read_again, provenance:
                program()
            with torch.no_grad(), provenance:
                for name, msg in read_again.messages.items():
                    upstream, _ = directly_upstream(read_again, name, provenance)
                    sources = [read_again.messages[other] for other in upstream]
                    found |= {of["name"] for of in sources if in_markov(of) and not is_in_reach(msg, of)}
    return frozenset(found)


def _of(values: dict[str, Tensor], name: str, _: Discrete) -> Tensor:
    return values[name]


def _may_reach_behind(messages: list[Messages]) -> bool:
    """Return whether a statement with nothing in reach follows a loop: one after it, or the first of another loop."""
    places = [i for i, msg in enumerate(messages) if in_markov(msg)]
    return any(not sites_in_reach(msg) for msg in messages[places[0] + 1 :]) if places else False
