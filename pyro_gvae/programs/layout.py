"""Find the latents and plates of a pair by a few small runs, before anything is summed, and refuse invalid pairs."""

import itertools
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import reduce
from typing import Any

import torch
from torch import Size, Tensor

from ..handlers.sites import Messages, Run, plates_of
from ..handlers.upstream import direct_upstream
from ..runtime.memory import lacks_memory
from .agreement import disagreement
from .cells import Cells
from .factors import Layout, Level, Reading
from .latents import READ_ALL, Roles, Space, TooManyCodesError, latent_of
from .look import Look, any_draw, check, look, mixes_data
from .mixing import check_apart
from .modes import without_trace
from .runs import Runs
from .statements import Reader, given_codes, read_with


def lay_out(runs: Runs, *, with_guide: bool = True, roles: Roles = READ_ALL, seen: Look | None = None) -> Layout:
    """Find a pair's discrete latents by a few runs, which leave random states as they were.

    Args:
        runs: the pair with its data bound.
        with_guide: whether the guide is read on codes. The evidence needs only the model, and a first look at the guide
            may have been enough.
        roles: which latents are read as codes, and which are scored.
        seen: the result of a first look, if there was one.

    Raises:
        ValueError: if the model has no discrete site, latent or observed, or observes nothing, if the guide's latents
            are not the model's, or if a statement mixes the codes of several data.
    """
    found = look(runs, with_guide=with_guide, roles=roles) if seen is None else seen
    with_gradient = torch.is_grad_enabled()
    with torch.no_grad(), without_trace():
        return _lay_out(runs.again(), found, with_guide and found.with_guide, with_gradient)


def _lay_out(runs: Runs, seen: Look, with_guide: bool, with_gradient: bool) -> Layout:
    check(seen, alone=frozenset())
    for name in seen.guide.discrete.keys() & seen.labels.keys():
        raise ValueError(
            f"Expected the guide to draw only latents of the model, but found '{name}', which the model observes. Try "
            "leaving it out of the guide where the model observes it."
        )
    drawn = [name for name, msg in seen.guide.continuous().items() if _is_scored(name, msg, seen.roles)]
    layout = _from_plates(seen, drawn)
    _check_no_mixing(runs, seen, layout, drawn, with_guide)
    readings: list[Reading] = []
    few = layout.few()[0]
    obstacle = obstacle_of(lambda: readings.extend(_read_both(runs, layout, few, with_guide)))
    if obstacle is None:
        obstacle = disagreement(runs, layout, readings, few, with_gradient=with_gradient)
    if obstacle is None:
        return layout._replace(guide_depends=readings[0].depends, dtype=_widest(layout, readings))
    plain = layout._replace(obstacle=obstacle)
    return plain._replace(dtype=_widest(plain, _read_both(runs, plain, 1, with_guide)))


def _from_plates(seen: Look, drawn: list[str]) -> Layout:
    """Return what the plates of a first look say; `drawn` are the continuous latents that are scored."""
    guide, model, roles = seen.guide, seen.model, seen.roles
    messages = [*model.messages.values(), *guide.messages.values()]
    frames = [frame for msg in messages for frame in msg["cond_indep_stack"] if frame.vectorized]
    shapes = [found.batch_shape for found in (*model.discrete.values(), *guide.discrete.values())]
    shapes += [guide.messages[name]["fn"].batch_shape for name in drawn]
    # Where all discrete sites are observed, their plates are those of the data.
    labels = {} if model.discrete or roles != READ_ALL else seen.labels
    shapes += [msg["fn"].batch_shape for msg in labels.values()]
    cells = Cells.of(shapes)
    first = _first_tensor(model)
    own = torch.promote_types(first.dtype, torch.float32)
    levels = _levels(model, cells)
    return Layout(
        space=Space(tuple(latent_of(name, model.discrete[name]) for level in levels for name in level.names)),
        levels=levels,
        site_shapes=_site_shapes(model, cells.shape),
        nesting=max([len(cells.shape), *(-frame.dim for frame in frames)]),
        cells=cells,
        plates=frozenset().union(*(plates_of(model.messages[name]) for name in (*model.discrete, *drawn, *labels))),
        sizes=frozenset([*cells.shape, *(frame.size for frame in frames), *_event_sizes(messages)]),
        dtype=reduce(torch.promote_types, (found.natural.dtype for found in guide.discrete.values()), own),
        device=first.device,
        obstacle=None,
        guide_depends=True,
        has_continuous=bool(seen.given),
        roles=roles,
        labels=frozenset(seen.labels),
    )


def _event_sizes(messages: Sequence[Messages]) -> list[int]:
    """Return the sizes of all event dimensions, which an index that counts from the left could take for codes."""
    return [size for msg in messages for size in msg["fn"].event_shape]


def _check_no_mixing(runs: Runs, seen: Look, layout: Layout, drawn: list[str], with_guide: bool) -> None:
    """Refuse programs with a statement that mixes the codes of several data."""
    messages = [*seen.model.messages.values(), *seen.guide.messages.values()]
    codes = frozenset([*seen.model.discrete, *drawn])
    some_outside = any(layout.plates - plates_of(msg) for msg in messages)
    behind = _codes_behind(runs.guide, seen.guide, codes) if seen.given and some_outside else {}
    _check_mixing(runs.model, seen.model, layout, codes, behind)
    check_apart(runs.model, seen.model)
    if with_guide:
        _check_mixing(runs.guide, seen.guide, layout, codes, behind)
        if len(seen.guide.messages) > 1:
            check_apart(runs.guide, seen.guide)


def _levels(model: Reader, cells: Cells) -> tuple[Level, ...]:
    """Group the discrete latents by the data that share them, those that most data share first."""
    names: dict[Size, list[str]] = {}
    for name, found in model.discrete.items():
        names.setdefault(cells.own_shape(found.batch_shape), []).append(name)
    return tuple(
        Level(tuple(own), Space(tuple(latent_of(name, model.discrete[name]) for name in own)).num_codes, shape)
        for shape, own in sorted(names.items(), key=lambda item: item[0].numel())
    )


def _site_shapes(model: Reader, batch_shape: Size) -> dict[str, Size]:
    """Return the sizes of each discrete latent's batch dimensions, with its own plates of size 1, without others."""
    dims = {}
    for name, found in model.discrete.items():
        plates = {frame.dim for frame in model.messages[name]["cond_indep_stack"] if frame.vectorized}
        own = found.batch_shape
        dims[name] = plates | {dim for dim in range(-len(own), 0) if own[dim] > 1}
    lacking = {name: frozenset().union(*dims.values()) - own for name, own in dims.items()}
    return {
        name: Size([batch_shape[dim] for dim in range(-len(batch_shape), 0) if dim not in lacking[name]])
        for name in model.discrete
    }


def obstacle_of(run: Callable[[], Any]) -> str | None:
    """Return the error of programs that do not accept an axis left of their plates, or None if they do."""
    try:
        run()
    except (RuntimeError, ValueError, IndexError) as error:
        if isinstance(error, TooManyCodesError) or lacks_memory(error):
            raise
        return str(error).splitlines()[0]
    return None


def _is_scored(name: str, msg: Messages, roles: Roles) -> bool:
    return name in roles.scored and not msg["fn"].has_rsample


def _first_tensor(model: Reader) -> Tensor:
    """Return a tensor with the dtype and device of the model's computations."""
    observed = [msg for msg in model.messages.values() if msg["is_observed"]]
    values = (msg["value"] for msg in observed if msg["value"].is_floating_point())
    scores = (msg["fn"].log_prob(msg["value"]) for msg in observed)
    return next(itertools.chain((found.natural for found in model.discrete.values()), values, scores))


def _widest(layout: Layout, readings: Sequence[Reading]) -> torch.dtype:
    """Return the dtype of sums over a pair whose parts may differ, as networks in float32 and data in float64 do."""
    return reduce(torch.promote_types, (dtype for reading in readings for dtype in reading.dtypes()), layout.dtype)


def _read_both(runs: Runs, layout: Layout, num_codes: int, with_guide: bool) -> tuple[Reading, Reading]:
    codes = layout.some_codes(num_codes)
    place = given_codes(layout, codes)
    q = read_with(runs.guide, layout, place, any_draw({})) if with_guide else Reading({}, {}, {})
    return q, read_with(runs.model, layout, place, any_draw(q.values))


def _codes_behind(guide: Run, read_before: Reader, codes: frozenset[str]) -> dict[str, frozenset[str]]:
    """Return the codes that the value of each continuous latent of the guide depends on, through others as well."""
    upstream = direct_upstream(guide)
    found: dict[str, frozenset[str]] = {}
    for name in read_before.continuous():
        if name not in codes:
            before = upstream.get(name, frozenset())
            found[name] = (before & codes).union(*(found.get(other, frozenset()) for other in before))
    return found


def _check_mixing(
    program: Run, read_before: Reader, layout: Layout, codes: frozenset[str], behind: Mapping[str, frozenset[str]]
) -> None:
    """Refuse a statement outside of the plates of a latent that it depends on, which shapes do not show.

    Args:
        program: the program.
        read_before: what an earlier run of it has said.
        layout: its latents and plates.
        codes: discrete latents, and others that are scored.
        behind: the codes that the values of other latents depend on.
    """
    outside = {name: left for name, msg in read_before.messages.items() if (left := layout.plates - plates_of(msg))}
    if not (outside and codes):
        return
    upstream = direct_upstream(program)
    for name, left in outside.items():
        for other in sorted(upstream.get(name, frozenset()) - {name}):
            for code in sorted({other} & codes or behind.get(other, frozenset())):
                inner = plates_of(read_before.messages[code])
                if code != name and inner & left:
                    raise mixes_data(name, code, inner & left)


def warn_of(obstacle: str | None) -> None:
    """Warn if programs have to be run for one joint code after another."""
    if obstacle is not None:
        warnings.warn(
            "Expected programs that accept codes in one more dimension left of the plates, but found: "
            f"{obstacle.rstrip('.')}. They are run for one joint code after another, which gives the same "
            "numbers but takes longer. Try operations on the last dimensions only, such as z.flatten(-2) instead of "
            "z.reshape(len(x), -1), and broadcast tensors before concatenating them.",
            stacklevel=2,
        )
