"""Find the latents that statements depend on, in a run on all values of all latents, and refuse what shapes hide."""

from collections.abc import Iterator, Mapping
from typing import NamedTuple

from torch import Size

from ..handlers.sites import plates_of
from ..runtime.compat.enumeration import axes_in_reach
from .enumerator import Enumerator
from .latents import latent_of
from .look import mixes_data
from .provenance import Provenance
from .statements import Reader


class Dependence(NamedTuple):
    """A statement that depends directly on a latent."""

    program: Enumerator
    name: str
    latent: str
    shape: Size | tuple[int, ...]  # of the statement's log-probabilities


def dependences(program: Enumerator, provenance: Provenance) -> Iterator[Dependence]:
    """Yield which statement of a program depends directly on which latent."""
    for name in program.messages:
        upstream, shape = directly_upstream(program, name, provenance)
        for other in sorted(upstream):
            yield Dependence(program, name, other, shape)


def directly_upstream(
    program: Enumerator | Reader, name: str, provenance: Provenance
) -> tuple[frozenset[str], Size | tuple[int, ...]]:
    """Return the latents that a statement depends on directly, and the shape of its log-probabilities."""
    if name in program.discrete:
        site = program.discrete[name]
        upstream, shape = provenance.of(site.natural), site.batch_shape
    else:
        msg = program.messages[name]
        scores = msg["fn"].log_prob(msg["value"], *msg["args"], **msg["kwargs"])
        upstream, shape = provenance.of(scores), scores.shape
    latent = {other for other in upstream & program.messages.keys() if not program.messages[other]["is_observed"]}
    return frozenset(latent - {name}), shape


def check_dependence(found: Dependence, names: Mapping[int, str]) -> None:
    """Refuse errors that shapes do not show: mixed data, or a dimension that now belongs to another latent."""
    program, name, other, _ = found
    msg, axes = program.messages[name], program.value_axes(other)
    # The value of a continuous latent depends on the codes whose axes it has.
    for code in (other,) if other in program.discrete else sorted(names[number] for number in axes.values()):
        if code in program.messages and (left := plates_of(program.messages[code]) - plates_of(msg)):
            raise mixes_data(name, code, left)
    reach = axes_in_reach(msg)
    if any(reach.get(dim) != number for dim, number in axes.items()):
        raise ValueError(
            f"Expected every statement to depend only on latents in the reach of pyro.markov, but found '{name}', "
            f"which depends on '{other}'. Try pyro.markov(.., history=2), or more, and move '{name}' into the loop "
            "if it is outside."
        )


def pairing(found: Dependence) -> str | None:
    """Return in words that a statement takes the values of a latent for data, or None if it does not."""
    program, name, other, shape = found
    if other not in program.discrete:
        return None
    dim, num_codes = program.own_dim(other), latent_of(other, program.discrete[other]).num_codes
    has_axis = -dim <= len(shape) and shape[dim] == num_codes
    return (
        None if has_axis or num_codes not in shape else f"'{name}' pairs the {num_codes} values of '{other}' with data"
    )
