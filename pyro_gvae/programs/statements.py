"""Run a program once on joint codes, and read the log-probability of each statement, with the axes that it has.

Codes of all discrete latents share one axis, left of the plates: row s has the s-th value of each of them. Programs are
run on rows of codes as if these were samples, and continuous latents are drawn. A log-probability that has the axis
depends on the codes.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, final

import torch
from pyro.distributions.util import broadcast_shape, scale_and_mask
from torch import Size, Tensor
from typing_extensions import override

from ..distributions.coupled import CodePrior
from ..distributions.lowered import log_prob
from ..distributions.parameters import at_least_float32
from ..handlers.chosen import EVERY_SITE, Sites
from ..handlers.one_hot_messenger import OneHotMessenger, innermost
from ..handlers.sites import Discrete, Messages, Run, discrete, plates_of
from ..runtime.compat.pyro import is_intervened_on, is_random
from .factors import Factor, Layout, Reading, coupling_of
from .latents import Latent, comes_and_goes, first_category, flat, latent_of
from .site import Codes, Site

#: Returns the value of a discrete latent, from its name and its distribution.
Place = Callable[[str, Discrete], Tensor]
#: Returns the value of a continuous latent, from its name and its distribution.
Draw = Callable[[str, Any], Tensor]


@final
class Reader(OneHotMessenger):
    """Gives the latents of a program their values, and records all statements."""

    def __init__(self, place: Place, draw: Draw, on: Sites = EVERY_SITE) -> None:
        super().__init__(on)
        self.place = place
        self.draw = draw
        self.discrete: dict[str, Discrete] = {}
        self.messages: dict[str, Messages] = {}

    @override
    def declare(self, msg: Messages, site: Discrete) -> None:
        """Give a discrete latent its value."""
        self.discrete[msg["name"]] = site
        msg["value"] = self.place(msg["name"], site)

    def _pyro_sample(self, msg: Messages) -> None:
        is_latent = not msg["is_observed"] and msg["value"] is None and is_random(msg) and not is_intervened_on(msg)
        if msg["done"] or not is_latent or not self.is_outermost():
            return
        found = discrete(msg["fn"]) if msg["name"] in self.on else None
        if found is not None:
            self.declare(msg, found)
        else:
            msg["value"] = self.draw(msg["name"], msg["fn"])

    def _pyro_post_sample(self, msg: Messages) -> None:
        if is_random(msg) and not is_intervened_on(msg):
            self.messages[msg["name"]] = msg

    def run(self, program: Run) -> None:
        """Run the program."""
        with self:
            program()

    def continuous(self) -> dict[str, Messages]:
        """The latents that are not discrete."""
        return {
            name: msg for name, msg in self.messages.items() if name not in self.discrete and not msg["is_observed"]
        }


def drawn_once(given: Mapping[str, Tensor], scored: Sites) -> Draw:
    """Return a function that gives other latents their given values, or else one draw, pathwise if possible."""

    def draw(name: str, fn: Any) -> Tensor:
        if name in given:
            return given[name]
        if not fn.has_rsample and name not in scored:
            raise ValueError(
                f"Expected latents that can be summed over or reparameterized, but found '{name}', a "
                f"{type(innermost(fn)).__name__} without rsample. Try conditioning on it, or an estimator that scores, "
                f"such as reinforce-loo, for all latents or by estimator({{'{name}': 'reinforce-loo'}})."
            )
        value: Tensor = fn.rsample() if fn.has_rsample else fn.sample().detach()
        return value

    return draw


def read(program: Run, layout: Layout, codes: Codes, given: Mapping[str, Tensor]) -> Reading:
    """Run a program on joint codes, with one draw of its other latents.

    Args:
        program: the program with its data bound.
        layout: its latents and plates.
        codes: one-hots (s, N, K) of each latent, by name, which all data share, or (s, B, N, K) with separate codes for
            each datum; a single code if the layout has an obstacle.
        given: values of other latents, which are not drawn.

    Raises:
        ValueError: if a latent that is neither read nor scored has no pathwise derivative.
    """
    return read_with(program, layout, given_codes(layout, codes), drawn_once(given, layout.roles.scored))


def given_codes(layout: Layout, codes: Codes) -> Place:
    """Return a function that gives latents the values of joint codes (s, N, K), shared by all data, or (s, B, N, K)."""

    def place(name: str, found: Discrete) -> Tensor:
        if name not in codes:
            raise comes_and_goes(name)
        own = codes[name]
        # In the dtype of the program's samples, which its networks expect; scores are computed in at least float32.
        latent = latent_of(name, found)
        if own.dim() == 4:
            own = own.reshape(len(own), *layout.batch_shape, *own.shape[-2:])
            own = layout.cells.taken(own, layout.cells.sizes(found.batch_shape), 2)  # data that share it have one value
            if layout.obstacle is not None:
                return latent.value(own[0].reshape(*found.batch_shape, *own.shape[-2:]))
            padding = (1,) * (layout.nesting - len(layout.batch_shape))
            return latent.value(own.reshape(len(own), *padding, *own.shape[1:]))
        if layout.obstacle is not None:  # one code, in the shape of a sample
            return latent.value(own[0].expand(*found.batch_shape, -1, -1))
        return latent.value(own.reshape(len(own), *(1,) * layout.nesting, *own.shape[-2:]))

    return place


def read_with(program: Run, layout: Layout, place: Place, draw: Draw) -> Reading:
    """Run a program with the values that `place` and `draw` give to its latents."""
    reader = Reader(place, draw, layout.roles.read)
    reader.run(program)
    check_latents(reader, layout)
    messages = reader.messages
    factors = {name: _factor(name, msg, layout) for name, msg in messages.items() if name not in reader.discrete}
    for name, found in reader.discrete.items():
        if found.prior is not None:
            factors[coupling_of(name)] = _coupling(name, found.prior, found, messages[name], layout)
    return Reading(
        sites=sites_of(reader, layout),
        factors=factors,
        values={name: msg["value"] for name, msg in reader.continuous().items()},
    )


def check_latents(reader: Reader, layout: Layout) -> None:
    """Refuse a run whose latents are not those of earlier runs.

    Raises:
        ValueError: if a latent is new or missing.
    """
    for name in sorted({latent.name for latent in layout.space.latents}.symmetric_difference(reader.discrete)):
        raise comes_and_goes(name)


def sites_of(reader: Reader, layout: Layout) -> dict[str, Site]:
    """Return what a run has said of the discrete latents."""
    latents, messages = {latent.name: latent for latent in layout.space.latents}, reader.messages
    return {name: _site(latents[name], found, messages[name], layout) for name, found in reader.discrete.items()}


def _site(latent: Latent, found: Discrete, msg: Messages, layout: Layout) -> Site:
    cells, sizes = layout.cells, layout.cells.sizes(found.batch_shape)
    widened = found._replace(natural=layout.widened(at_least_float32(found.natural)))
    logits = flat(widened.logits, found)  # (*batch, N, K)
    if cells.is_placed(sizes):  # elsewhere the latent has only its first category
        logits = logits.reshape(*(1,) * (len(sizes) + 2 - logits.dim()), *logits.shape)
        logits = cells.placed(logits, first_category(logits).log(), 2)
    batch_shape, strides = logits.shape[:-2], logits.stride()[:-2]
    depends = len(batch_shape) > layout.nesting  # also on a single code, whose axis has the size 1
    axes = slice(len(batch_shape) - layout.nesting, None) if len(batch_shape) > layout.nesting else slice(None)
    shared = all(size == 1 or stride == 0 for size, stride in zip(batch_shape[axes], strides[axes], strict=True))
    if depends:
        rows = logits[(slice(None), *(slice(1),) * layout.nesting)] if shared else logits
        rows = rows.expand(-1, *(rows.shape[1:-2] if shared else layout.padded_shape), -1, -1)
        log_probs = found.normalized(rows).reshape(len(logits), -1, *logits.shape[-2:])
    else:
        rank = logits.dim() - 2
        rows = logits[(slice(1),) * rank] if shared else logits.expand(*layout.padded_shape, -1, -1)
        log_probs = found.normalized(rows.reshape(-1, *logits.shape[-2:]))
    masks = [mask for mask in (found.mask, msg["mask"]) if mask is not None]
    mask = _placed(masks[0] & masks[-1] if masks else None, sizes, layout, outside=False)
    scale = _placed(msg["scale"], sizes, layout, outside=1.0)
    number = max(_rows_of(scale, layout), _rows_of(mask, layout))
    if number and not depends:  # on a code that masks or scales the latent
        log_probs = log_probs.expand(number, -1, -1, -1)
    return Site(
        latent=latent,
        log_probs=log_probs.clamp_min(torch.finfo(log_probs.dtype).min),
        batch_shape=layout.batch_shape,
        own_shape=cells.own_shape(sizes),
        scale=_without_padding(scale, layout),
        mask=_without_padding(mask, layout),
        prior=found.prior,
        scales=_scales(msg["scale"], sizes, sizes, layout),
    )


def _placed(values: Any, sizes: Size, layout: Layout, outside: float) -> Any:
    """Put a site's scale or mask in its cells; None stands for True."""
    if not layout.cells.is_placed(sizes):
        return values
    values = torch.as_tensor(True if values is None else values, device=layout.device)
    return layout.cells.placed(values.expand(broadcast_shape(values.shape, sizes)), outside)


def _rows_of(values: Any, layout: Layout) -> int:
    """Return the number of codes on which a scale or a mask depends, or 0."""
    has_rows = isinstance(values, Tensor) and values.dim() > layout.nesting
    return len(values) if has_rows else 0


def _without_padding(values: Any, layout: Layout) -> Any:
    """Reshape a scale or a mask (s, *plates) that depends on codes as (s, *batch_shape)."""
    if not _rows_of(values, layout):
        return values
    return values.reshape(len(values), *values.shape[values.dim() - len(layout.batch_shape) :])


def _scales(scale: float | Tensor, sizes: Size, kept: Sequence[int], layout: Layout) -> float | Tensor:
    """Return the scale of a statement: one number, or the least and the largest scale in each cell, (2, B).

    Args:
        scale: the scale in the program.
        sizes: the statement's sizes along the plates.
        kept: the same with 1 where the statement is summed over a plate.
        layout: the latents and plates. Cells that the statement does not have are NaN.
    """
    if (not isinstance(scale, Tensor) or scale.numel() == 1) and not layout.cells.is_placed(layout.cells.sizes(kept)):
        return scale
    scale = torch.as_tensor(scale, dtype=layout.dtype, device=layout.device)
    scale = scale.expand(broadcast_shape(scale.shape, sizes)).reshape(-1, *sizes)
    summed = [0, *(dim for dim in range(-len(kept), 0) if kept[dim] != sizes[dim])]
    both = torch.cat([scale.amin(summed, True), scale.amax(summed, True)])  # (2, *kept)
    both = both.reshape(2, *layout.cells.sizes(kept))
    return layout.cells.placed(both, math.nan).expand(2, *layout.batch_shape).reshape(2, -1)


def _coupling(name: str, prior: CodePrior, found: Discrete, msg: Messages, layout: Layout) -> Factor:
    """Return what a prior adds to the log-probability of uniform digits."""
    scores = prior.coupling(msg["value"])
    scores = scores.expand(broadcast_shape(scores.shape, found.batch_shape))
    return _weighed(name, msg, scale_and_mask(scores, 1.0, found.mask), layout)


def _factor(name: str, msg: Messages, layout: Layout) -> Factor:
    """Return a statement's log-probability, summed over plates that no discrete latent has."""
    return _weighed(name, msg, log_prob(msg["fn"], msg["value"], *msg["args"], **msg["kwargs"]), layout)


def _weighed(name: str, msg: Messages, scores: Tensor, layout: Layout) -> Factor:
    """Return the scores of a statement as a factor, scaled and masked."""
    scores = layout.widened(scores)
    weighed = scale_and_mask(scores, msg["scale"], msg["mask"])
    weighed = weighed.reshape((1,) * (layout.nesting + 1 - weighed.dim()) + weighed.shape)  # (s or 1, *plates)
    cells, own, found = layout.cells, layout.padded_shape, weighed.shape[1:]
    plates = {frame.dim: frame for frame in msg["cond_indep_stack"] if frame.vectorized}
    kept = list(found)
    for dim in range(-len(found), 0):
        expected, plate = cells.sizes_along(dim) if -dim <= layout.nesting else (), plates.get(dim)
        is_shared = found[dim] == 1 and layout.plates - plates_of(msg)
        if plate is not None and plate.name not in layout.plates and found[dim] in (1, plate.size):
            kept[dim] = 1  # sum over a plate that contains no discrete latent
        elif found[dim] not in expected and not is_shared:
            raise ValueError(
                f"Expected every statement to have the batch shape {tuple(layout.batch_shape)} of the discrete "
                f"latents, with one more dimension left of it for codes, but found {tuple(weighed.shape)} at "
                f"'{name}': it pairs codes with data, or belongs to no single datum."
            )

    def reduced(values: Tensor) -> Tensor:
        values = values.reshape((1,) * (layout.nesting + 1 - values.dim()) + values.shape)
        placed = cells.placed(values.sum_to_size(len(values), *kept), 0.0)
        return placed.expand(-1, *own).reshape(len(values), -1)

    own_shape = cells.own_shape(kept)
    times = layout.batch_size // own_shape.numel()  # data that share a statement count it once together

    def divided(values: Tensor) -> Tensor:
        return reduced(values) if times == 1 else reduced(values) / times

    log_prob, has_scale = divided(weighed), isinstance(msg["scale"], Tensor) or msg["scale"] != 1
    return Factor(
        log_prob=log_prob,
        own_shape=own_shape,
        scales=_scales(msg["scale"], found, kept, layout),
        unscaled=lambda: divided(scale_and_mask(scores, 1.0, msg["mask"])) if has_scale else log_prob,
        unweighed=lambda: reduced(scores),
        weigh=lambda values: divided(scale_and_mask(values, msg["scale"], msg["mask"])),
        fn=msg["fn"],
        value=msg["value"],
        weight_depends=any(_rows_of(values, layout) for values in (msg["scale"], msg["mask"])),
    )
