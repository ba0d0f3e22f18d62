r"""Compute importance weights of drawn latents, with all other latents summed one after another.

.. math:: w = \frac{\sum_z p(x, z, c)}{\sum_z q(z, c | x)}, \quad c \sim q(c | x)

The latents c are drawn. Draws of the guide's other latents z are discarded, and these latents are summed. So are the
latents that only the model has, which appear in the numerator alone.
"""

import warnings
from collections.abc import Callable, Collection, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from ..exact.elimination import collected, log_summed
from ..exact.sizes import WORK_PER_SAVED_BYTE
from ..handlers.sites import plates_of
from ..programs.axes import Term
from ..programs.batches import Batch, num_data
from ..programs.chains import Chains, Particles, in_particles, lay_out_chains
from ..programs.choices import choose, one_draw
from ..programs.layout import obstacle_of
from ..programs.look import Look, look
from ..programs.modes import without_trace
from ..programs.pair import HasPair
from ..programs.rows import ONLY_ALL, in_parts
from ..programs.runs import Runs, bind_pair
from ..programs.shared import common_scale_along
from ..programs.terms import Reading
from ..runtime.memory import memory_limit
from ..runtime.tuning import tuning

#: A function that returns which latents of a guide are drawn.
Drawn = Callable[[Look], Collection[str]]


class Weights(NamedTuple):
    """Log-weights of P draws."""

    log_weights: Tensor  # (P, M), not scaled, of M cells that share no latent
    scale: float | Tensor  # the scale of both programs: one number, or that of each cell (M,)


def summed_weights(
    pair: HasPair, x: Batch, num_particles: int, max_memory: float | None, drawn: Drawn
) -> Iterator[Weights]:
    """Yield the weights of chunks of data.

    Args:
        pair: a pair whose discrete latents have an axis each.
        x: data (B, ...), or a tuple or dictionary of all arguments of the programs.
        num_particles: P, the number of draws.
        max_memory: bytes that the draws may use.
        drawn: a function that returns which latents of the guide are drawn.
    """
    most = _most_pairs(pair, x, max_memory)
    length = num_data(x)
    size = min(most, length) if has_cells(pair, x) else length
    for rows in in_parts(pair, x, size):
        runs = bind_pair(pair, rows)
        seen = look(runs)
        chains = lay_out_chains(runs, seen, max_memory)
        names = drawn(seen)
        at_once = max(1, most // size)
        parts = [_weights(own, names) for own in all_particles(runs, chains, num_particles, at_once)]
        yield Weights(torch.cat([part.log_weights for part in parts]), parts[0].scale)


def has_cells(pair: HasPair, x: Batch) -> bool:
    """Return whether the data are in cells of plates that share no latent and no other statement."""
    try:
        return all(_has_cells(pair, next(in_parts(pair, x, size))) for size in (2, 1))
    except ONLY_ALL:
        return _has_cells(pair, x)


def _has_cells(pair: HasPair, rows: Batch) -> bool:
    runs = bind_pair(pair, rows)
    seen = look(runs)
    chains = lay_out_chains(runs, seen)
    plates = {plate.name for plate in chains.cells if chains.sizes[plate] == num_data(rows)}
    return bool(plates) and all(plates & plates_of(msg) for msg in seen.model.messages.values())


def all_particles(runs: Runs, chains: Chains, num_particles: int, at_once: int) -> Iterator[Particles]:
    """Yield programs for all particles: for several at once, or for one at a time if the programs require it.

    Args:
        runs: the pair with its data bound.
        chains: its layout.
        num_particles: P.
        at_once: the largest number of particles at once.
    """
    obstacle = chains.obstacle
    if obstacle is None:
        with torch.no_grad(), without_trace():
            obstacle = obstacle_of(lambda: _read_all(in_particles(runs.again(), chains, 2)))
    if obstacle is not None:
        warnings.warn(
            "Expected programs that take particles in one more dimension left of the plates, but found: "
            f"{obstacle.rstrip('.')}. They run for one particle at a time, which gives the same numbers but takes "
            "longer. Try operations on the last dimensions only, such as Vindex(values)[..., k] instead of "
            "values[k].",
            stacklevel=2,
        )
        yield from (Particles(runs, chains, None) for _ in range(num_particles))
        return
    for start in range(0, num_particles, at_once):
        yield in_particles(runs, chains, min(at_once, num_particles - start))


def _read_all(particles: Particles) -> None:
    """Run both programs with one draw of all latents of the guide, and once with every discrete latent enumerated."""
    values = _draw(particles.runs)
    particles.chains.read_given(particles.runs.model, values)
    particles.chains.read(particles.runs)


def _draw(runs: Runs) -> dict[str, Tensor]:
    return choose(runs.guide, one_draw, lambda _, fn: fn.sample()).values


def most_particles(runs: Runs, chains: Chains, max_memory: float | None) -> int:
    """Return how many particles to read at once for all of the data."""
    with torch.no_grad(), without_trace():
        terms = _terms(*chains.read(runs.again()))
    needed = WORK_PER_SAVED_BYTE * sum(term.values.numel() * term.values.element_size() for term in terms)
    limit = min(memory_limit(max_memory), tuning(terms[0].values.device).slice_bytes)
    return max(1, int(limit // needed))


def _most_pairs(pair: HasPair, x: Batch, max_memory: float | None) -> int:
    """Return how many pairs (particle, datum) to read at once."""
    try:
        runs = bind_pair(pair, next(in_parts(pair, x, 1)))
        return most_particles(runs, lay_out_chains(runs, look(runs)), max_memory)
    except ONLY_ALL:
        runs = bind_pair(pair, x)
        return most_particles(runs, lay_out_chains(runs, look(runs)), max_memory) * num_data(x)


def _terms(*found: Reading) -> list[Term]:
    return [
        term
        for reading in found
        for term in (*(site.log_probs for site in reading.sites.values()), *reading.others.values())
    ]


def _weights(particles: Particles, drawn: Collection[str]) -> Weights:
    cells = particles.chains._replace(shared=particles.chains.cells)
    values = _draw(particles.runs)
    given = {name: values[name] for name in drawn}
    q, p = (cells.read_given(program, given) for program in (particles.runs.guide, particles.runs.model))
    scale = common_scale_along(_terms(q, p), cells.shared)
    log_weights = _log_sum(p, cells) - (_log_sum(q, cells) if _terms(q) else 0.0)
    if isinstance(scale, Tensor) and scale.dim():
        scale = particles.rows(scale.expand(cells.result_shape))[0].flatten()  # the same for all particles
    return Weights(particles.rows(log_weights).reshape(particles.size or 1, -1), scale)


def _log_sum(found: Reading, cells: Chains) -> Tensor:
    """Return the log of the sum over all latents that have an axis each, not scaled."""
    left = log_summed(found.others.values(), found.sites.values(), cells)
    return collected([term._replace(scale=1.0) for term in left], cells)
