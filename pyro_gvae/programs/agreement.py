"""Find programs that take an axis of codes, but compute other numbers with it than without it.

An index or a sum that counts dimensions from the left, such as `z[:, 0]` or `z.sum()`, takes codes for data, or adds
them up. Shapes show that only if no size is the same by chance, so a few log-probabilities are compared; where these do
not vary with the codes, as with weights that are all zero, their gradients are compared, too.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from ..distributions.parameters import at_least_float32
from ..handlers.sites import Discrete, Messages, Run
from ..runtime.autograd import leaves
from ..runtime.compat.torch import is_transformed
from ..runtime.memory import lacks_memory
from .factors import Layout, Reading
from .latents import latent_of
from .modes import without_trace
from .runs import Runs
from .statements import Draw, Reader, given_codes, read_with

#: A relative or absolute difference of log-probabilities that rounding may cause.
ROUNDING = 1e-2


class HasStatements(Protocol):
    """A run of a program: its statements, and its discrete latents, by name."""

    messages: dict[str, Messages]
    discrete: dict[str, Discrete]


def disagreement(runs: Runs, layout: Layout, both: Sequence[Reading], count: int, *, with_gradient: bool) -> str | None:
    """Return in words which log-probability changes if codes have an axis, or None if none does.

    The programs run on some codes alone, in the shape of a sample: the first, the last and a mixed one.

    Args:
        runs: the pair with its data bound.
        layout: its latents and plates.
        both: what guide and model said of a few codes at once; nothing of a guide that is not read.
        count: the number of these codes, at least 3.
        with_gradient: whether gradients matter.
    """
    if is_transformed():  # torch.func does not allow reading values
        return None
    for name, factor in (both[0].factors | both[1].factors).items():
        if len(factor.log_prob) not in (1, count):
            return f"the log-probability of '{name}' has {len(factor.log_prob)} rows for {count} codes"
    different = _compared(runs, layout, both, count, _is_different)
    constant = _constant((*both[0].rows(), *both[1].rows())) - _first([found.sites for found in both])
    if different is not None or not constant or not with_gradient:
        return different
    values = both[0].values | both[1].values
    place = given_codes(layout, layout.some_codes(count))
    with torch.enable_grad(), without_trace():
        again = [
            read_with(program, layout, place, lambda name, _: values[name]) if together.statements() else together
            for program, together in zip((runs.guide, runs.model), both, strict=True)
        ]
        return _compared(runs, layout, again, count, _has_different_gradient, constant)


def _compared(
    runs: Runs,
    layout: Layout,
    both: Sequence[Reading],
    count: int,
    differs: Callable[[Tensor, Tensor], bool],
    only: Collection[str] | None = None,
) -> str | None:
    """Compare what the programs said of several codes with what they say of some of them alone."""
    plain = layout._replace(obstacle="compared")
    for row in (0, 1, count - 1):
        place = given_codes(plain, {name: own[row : row + 1] for name, own in layout.some_codes(count).items()})
        draw = _drawn_with(row, both[0].values | both[1].values)
        for program, together in zip((runs.guide, runs.model), both, strict=True):
            if not together.statements():
                continue
            with without_trace() as is_untouched:
                alone = read_with(program, plain, place, draw)
                if not is_untouched():  # with dropout or batch normalization, no two runs agree
                    return None
            some = sorted(together.factors.keys() ^ alone.factors.keys())
            if some:
                return f"the statement '{some[0]}', which the program makes only with some codes"
            different = _first_different(_rows(together, alone, row), differs, only)
            if different is not None:
                return f"the log-probability of '{different}' changes if several codes are scored at once"
    return None


def disagreement_of_axes(
    runs: Runs,
    both: tuple[HasStatements, HasStatements],
    nesting: int,
    again: Callable[[], tuple[HasStatements, HasStatements]],
    *,
    with_gradient: bool,
) -> str | None:
    """Return the same as :func:`disagreement` for programs that have run with an axis for each discrete latent.

    The programs run twice more, on the first and on the last value of every latent.

    Args:
        runs: the pair with its data bound.
        both: what guide and model said of all values; nothing of a guide that is not read.
        nesting: the number of dimensions that plates have.
        again: runs both programs once more, to get gradients.
        with_gradient: whether gradients matter.
    """
    if is_transformed():
        return None
    different = _compared_axes(runs, both, nesting, _is_different)
    constant = _constant(one for program in both for one in _all_scores(program, nesting))
    constant -= _first([program.discrete for program in both])
    if different is not None or not constant or not with_gradient:
        return different
    with torch.enable_grad():
        return _compared_axes(runs, again(), nesting, _has_different_gradient, constant)


def _all_scores(found: HasStatements, nesting: int) -> Iterator[tuple[str, Tensor]]:
    """Yield each statement's log-probability of all values, with all dimensions left of the plates as one."""
    for name, msg in found.messages.items():
        scores = found.discrete[name].log_probs if name in found.discrete else _score(msg)
        own = nesting + 2 * (name in found.discrete)
        yield name, scores.flatten(0, scores.dim() - own - 1) if scores.dim() > own else scores.unsqueeze(0)


def _compared_axes(
    runs: Runs,
    both: tuple[HasStatements, HasStatements],
    nesting: int,
    differs: Callable[[Tensor, Tensor], bool],
    only: Collection[str] | None = None,
) -> str | None:
    """Compare what the programs said of all values with what they say of the first and of the last ones alone."""
    values: dict[str, Tensor] = {}
    for program, found in zip((runs.guide, runs.model), both, strict=True):
        values |= {name: msg["value"] for name, msg in found.messages.items() if name not in found.discrete}
        for end in (0, -1) if found.messages else ():
            with without_trace() as is_untouched:
                alone = _on_values(program, values, nesting, end)
                if not is_untouched():
                    return None
            some = sorted(found.messages.keys() ^ alone.messages.keys())
            if some:
                return f"the statement '{some[0]}', which the program makes only with some codes"
            different = _first_different(_scores_of(found, alone, nesting, end), differs, only)
            if different is not None:
                return f"the log-probability of '{different}' changes if all values are scored at once"
    return None


def _drawn_with(row: int, values: Mapping[str, Tensor]) -> Draw:
    """Return a function that gives a continuous latent the value that it has with the code of a row."""

    def draw(name: str, fn: Any) -> Tensor:
        value, shape = values[name], fn.batch_shape + fn.event_shape
        return (value[row] if value.numel() > shape.numel() else value).reshape(shape)

    return draw


def _rows(together: Reading, alone: Reading, row: int) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Yield each statement's log-probability of one row, from a run on several rows and from a run on this one."""
    for name, site in together.sites.items():
        several = site.rows()
        yield name, several[min(row, len(several) - 1)], alone.sites[name].rows()[0]
    for name, factor in together.factors.items():
        yield name, factor.log_prob[min(row, len(factor.log_prob) - 1)], alone.factors[name].log_prob[0]


def _on_values(program: Run, values: Mapping[str, Tensor], nesting: int, end: int) -> Reader:
    """Run a program on the first or last code (0 or -1) of each latent, and the values that others then have."""

    def place(name: str, found: Discrete) -> Tensor:
        codes = found.natural.new_zeros(*found.batch_shape, *found.code_shape)
        codes[..., end] = 1.0
        return latent_of(name, found).value(codes)

    def draw(name: str, fn: Any) -> Tensor:
        value = values[name]
        return _at(end, value, value.dim() - fn.event_dim - nesting).expand(fn.batch_shape + fn.event_shape)

    reader = Reader(place, draw)
    reader.run(program)
    return reader


def _scores_of(
    found: HasStatements, alone: HasStatements, nesting: int, end: int
) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Yield each statement's log-probability of the first or last values, from a run on all and from one on these."""
    for name, msg in found.messages.items():
        if name in found.discrete:
            several, one = (at_least_float32(own.discrete[name].log_probs) for own in (found, alone))
            yield name, _at(end, several, several.dim() - 2 - nesting), one
        else:
            several = _score(msg)
            yield name, _at(end, several, several.dim() - nesting), _score(alone.messages[name])


def _at(end: int, values: Tensor, count: int) -> Tensor:
    """Select the first or last index (0 or -1) of the first dimensions."""
    return values[(end,) * max(count, 0)]


def _score(msg: Messages) -> Tensor:
    score: Tensor = msg["fn"].log_prob(msg["value"])
    return score


def _constant(rows: Iterable[tuple[str, Tensor]]) -> frozenset[str]:
    """Return the statements whose log-probabilities (S, ..) do not vary along the first dimension."""
    return frozenset(name for name, own in rows if not (own != own[:1]).any())


def _first(latents: Iterable[Mapping[str, Any]]) -> frozenset[str]:
    """Return the latent that is the first of each program, which depends on no other, or nothing."""
    firsts = {next(iter(own)) for own in latents if own}
    return frozenset(firsts) if len(firsts) == 1 else frozenset()


def _first_different(
    scores: Iterable[tuple[str, Tensor, Tensor]],
    differs: Callable[[Tensor, Tensor], bool],
    only: Collection[str] | None,
) -> str | None:
    chosen = (one for one in scores if only is None or one[0] in only)
    return next((name for name, several, one in chosen if differs(several, one)), None)


def _is_different(several: Tensor, one: Tensor) -> bool:
    several, one = torch.broadcast_tensors(several, one.to(several))
    return not torch.allclose(several, one, rtol=ROUNDING, atol=ROUNDING, equal_nan=True)


def _has_different_gradient(several: Tensor, one: Tensor) -> bool:
    """Return whether the derivatives of two scores with respect to some parameter differ."""
    several, one = (both.sum() for both in torch.broadcast_tensors(several, one.to(several)))
    found = list({id(leaf): leaf for leaf in (*leaves(several), *leaves(one))}.values())
    if not found:
        return False
    try:
        gradients = [
            torch.autograd.grad(own, found, allow_unused=True, retain_graph=True, materialize_grads=True)
            if own.requires_grad
            else tuple(torch.zeros_like(leaf) for leaf in found)
            for own in (several, one)
        ]
    except RuntimeError as error:  # an operation without a derivative
        if lacks_memory(error):
            raise
        return False
    return any(_is_different(*pair) for pair in zip(*gradients, strict=True))
