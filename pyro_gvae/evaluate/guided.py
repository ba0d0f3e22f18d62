"""Statistics of a guide in one record, and their computation for latents that have an axis each."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ..exact.averages import Averages
from ..programs.chains import Chains
from ..programs.runs import Runs
from .weights import all_particles, most_particles

#: The table of all joint codes and data is kept if it has no more entries than this.
MOST_KEPT = 10**7


class Guided(NamedTuple):
    r"""The guide's probabilities, entropies and KLs for the latents of B data, in nats.

    Attributes:
        log_probs: log q(z_n = k | x) of each discrete latent, (M, N, K) for its M values; M = B if no data share it.
            Latents that it depends on in the guide are summed over, or drawn.
        entropies: :math:`\mathrm{E}_q[\mathrm{H}(q(z | z', x))]` of each discrete latent, given the latents z' that it
            depends on, (B,), divided among data that share it. By the chain rule, they add up to the entropy of all
            latents if none is continuous.
        kls: :math:`\mathrm{E}_q[\log q(z | z', x) - \log p(z | z'')]` of each latent, given the latents that it depends
            on in the guide and in the model, (B,), scaled and masked as in the programs, and divided among data that
            share it. They add up to KL(q || p).
        table: log q(z | x) of all joint codes, (S, B), if they were summed over and are few enough.
        is_factorized: whether no discrete latent depends on another latent in the guide, discrete or continuous.
        closed: the latents whose KL is in closed form.
        is_exact: whether nothing was drawn.
    """

    log_probs: dict[str, Tensor]
    entropies: dict[str, Tensor]
    kls: dict[str, Tensor]
    table: Tensor | None
    is_factorized: bool
    closed: frozenset[str]
    is_exact: bool


def joined(parts: list[Guided]) -> Guided:
    """Join the results of several chunks of data that share no latent."""
    tables = [part.table for part in parts if part.table is not None]
    return parts[0]._replace(
        log_probs={name: torch.cat([part.log_probs[name] for part in parts]) for name in parts[0].log_probs},
        entropies={name: torch.cat([part.entropies[name] for part in parts]) for name in parts[0].entropies},
        kls={name: torch.cat([part.kls[name] for part in parts]) for name in parts[0].kls},
        table=torch.cat(tables, 1) if len(tables) == len(parts) else None,
    )


def of_chains(runs: Runs, chains: Chains) -> Guided:
    """Compute the result for latents that have an axis each, none of which is continuous."""
    found = Averages.read(runs, chains)
    log_probs = {name: _flat(chains, name, own) for name, own in found.marginals().items()}
    is_apart = all(plates == chains.shared for plates in chains.plates.values())
    num_entries = chains.result_shape.numel() * math.prod(latent.num_codes for latent in chains.latents.values())
    return Guided(
        log_probs={name: _log(log_probs[name]) for name in chains.latents},
        entropies=_by_datum(found.entropies(), chains),
        kls=_by_datum(found.kls(), chains),
        table=found.table() if is_apart and num_entries <= MOST_KEPT else None,
        is_factorized=found.is_factorized,
        closed=frozenset(),
        is_exact=True,
    )


def of_drawn_chains(runs: Runs, chains: Chains, num_particles: int, max_memory: float | None) -> Guided:
    """Compute the result for latents that have an axis each and continuous latents, which are drawn."""
    totals: dict[tuple[str, str], Tensor] = {}
    for many in all_particles(runs, chains, num_particles, most_particles(runs, chains, max_memory)):
        found = Averages.read(many.runs, many.chains)
        parts = {"probs": found.marginals(), "entropies": found.entropies(), "kls": found.kls()}
        for kind, values in parts.items():
            for name, own in values.items():
                totals[kind, name] = totals.get((kind, name), 0.0) + many.rows(own).sum(0) / num_particles
    probs, entropies, kls = (
        {name: own for (one, name), own in totals.items() if one == kind} for kind in ("probs", "entropies", "kls")
    )
    return Guided(
        log_probs={name: _log(_flat(chains, name, probs[name])) for name in chains.latents},
        entropies=_by_datum(entropies, chains),
        kls=_by_datum(kls, chains),
        table=None,
        is_factorized=False,
        closed=frozenset(),
        is_exact=False,
    )


def _flat(chains: Chains, name: str, values: Tensor) -> Tensor:
    """Reshape numbers (*plates, N, K) to (M, N, K)."""
    return values.reshape(-1, *values.shape[len(chains.plates[name]) :])


def _log(probs: Tensor) -> Tensor:
    return probs.log().clamp_min(torch.finfo(probs.dtype).min)


def _by_datum(values: dict[str, Tensor], chains: Chains) -> dict[str, Tensor]:
    """Flatten numbers in the shape of results to (B,), with the discrete latents in the order of the model."""
    order = [*(name for name in chains.latents if name in values), *(set(values) - set(chains.latents))]
    return {name: values[name].flatten() for name in order}
