"""One run of a program on joint codes: what each of its statements says, with the axes that it has.

Codes of all discrete latents share one axis, left of the plates: row s has the s-th value of each of them. Programs are
run on rows of codes as if these were samples, and continuous latents are drawn. What has the axis depends on the codes.
"""

import itertools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, final

import torch
from pyro.distributions.util import scale_and_mask
from torch import Size, Tensor
from typing_extensions import override

from ..distributions.parameters import at_least_float32
from ..handlers.one_hot_messenger import OneHotMessenger
from ..handlers.sites import Messages, OneHotSite, Run, plates_of
from ..runtime.compat.pyro import is_random
from .latents import Discrete, Latent, Space, discrete

Codes = Mapping[str, Tensor]  # one-hot (s, N, K), by the name of the latent


class Site(NamedTuple):
    """A discrete latent under given codes."""

    latent: Latent
    log_probs: Tensor  # (B or 1, N, K), or (s, B or 1, N, K) where they depend on the codes of other latents
    batch_shape: Size  # of all discrete latents together
    share: float  # of one of these data in the latent: less than 1 where several data share one
    scale: float | Tensor
    mask: bool | Tensor | None

    @property
    def depends(self) -> bool:
        """Whether its log-probabilities depend on the codes of other latents."""
        return self.log_probs.dim() == 4

    def score(self, codes: Codes) -> Tensor:
        """The log-probability (s, B or 1) of codes, neither scaled nor masked."""
        own = codes[self.latent.name]
        if self.depends:
            return (own.unsqueeze(1) * self.log_probs).sum((-2, -1))
        return own.flatten(1) @ self.log_probs.flatten(1).T

    def weigh(self, per_datum: Tensor) -> Tensor:
        """Scale and mask (..., B) as the program does with the latent."""
        others = per_datum.shape[:-1]
        per_datum = per_datum.expand(*others, self.batch_shape.numel()).reshape((*others, *self.batch_shape))
        weighed: Tensor = scale_and_mask(per_datum, self.scale, self.mask)
        return (weighed if self.share == 1 else weighed * self.share).reshape(*others, -1)


class Factor(NamedTuple):
    """The log-probability of any other statement, scaled and masked as the program says."""

    log_prob: Tensor  # (s, B) where it depends on the codes, else (1, B)
    scale: float | Tensor


class Reading(NamedTuple):
    """What a program says about given codes."""

    sites: dict[str, Site]
    factors: dict[str, Factor]
    values: dict[str, Tensor]  # of its continuous latents

    @property
    def depends(self) -> bool:
        """Whether anything that it says depends on the codes, beyond which of them a site has."""
        return any(site.depends for site in self.sites.values()) or any(
            len(factor.log_prob) > 1 for factor in self.factors.values()
        )


class Layout(NamedTuple):
    """What a few small runs tell about a pair: its discrete latents, and where their codes are.

    Attributes:
        space: the discrete latents, in the order of the model.
        nesting: the number of batch dimensions that plates take.
        batch_shape: of all discrete latents together.
        plates: those that a discrete latent is in.
        sizes: of the batch dimensions.
        obstacle: why the programs do not take codes in one more dimension, or None if they do.
        guide_depends: whether what the guide says of one latent depends on the codes of another.
    """

    space: Space
    nesting: int
    batch_shape: Size
    plates: frozenset[str]
    sizes: frozenset[int]
    dtype: torch.dtype
    device: torch.device
    obstacle: str | None
    guide_depends: bool

    @property
    def batch_size(self) -> int:
        """B."""
        return self.batch_shape.numel()

    def few(self) -> tuple[int, int]:
        """Two small numbers of codes that are no plate's size: what pairs codes with data fails on them."""
        numbers = (number for number in itertools.chain((2, 4), itertools.count(5)) if number not in self.sizes)
        return next(numbers), next(numbers)

    def some_codes(self, count: int) -> dict[str, Tensor]:
        """A few codes of each latent (count, N, K), whatever the number of all: the last digit counts."""
        found = {}
        for latent in self.space.latents:
            codes = torch.zeros(count, latent.num_latents, latent.num_categories, dtype=self.dtype, device=self.device)
            codes[:, :-1, 0] = 1.0
            rows = torch.arange(count, device=self.device)
            codes[rows, -1, rows % latent.num_categories] = 1.0
            found[latent.name] = codes
        return found


@final
class Reader(OneHotMessenger):
    """Gives the latents of a program their values, and keeps what all statements say."""

    def __init__(self, place: Callable[[str, Discrete], Tensor], given: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.place = place
        self.given = given
        self.discrete: dict[str, Discrete] = {}
        self.messages: dict[str, Messages] = {}

    @override
    def declare(self, msg: Messages, site: OneHotSite) -> None:
        """Nothing: every kind of discrete latent is read, not one-hots alone."""

    def _pyro_sample(self, msg: Messages) -> None:
        is_latent = not msg["is_observed"] and msg["value"] is None and is_random(msg)
        if msg["done"] or not is_latent or not self.decides():
            return
        found = discrete(msg["fn"])
        if found is not None:
            self.discrete[msg["name"]] = found
            msg["value"] = self.place(msg["name"], found)
        elif msg["name"] in self.given:
            msg["value"] = self.given[msg["name"]]
        elif not msg["fn"].has_rsample:
            raise ValueError(
                f"Expected latents that can be summed over or reparameterized, but found '{msg['name']}', a "
                f"{_innermost(msg['fn']).__class__.__name__} without rsample. Try to condition on it, or an estimator "
                "that scores, such as reinforce."
            )

    def _pyro_post_sample(self, msg: Messages) -> None:
        if is_random(msg):
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


def _innermost(fn: Any) -> Any:
    while hasattr(fn, "base_dist"):
        fn = fn.base_dist
    return fn


def first_value(name: str, found: Discrete) -> Tensor:
    """The first code of a latent, in the shape of a sample."""
    codes = torch.zeros_like(found.logits)
    codes[..., 0] = 1.0
    return latent_of(name, found).value(_flat(codes, found))


def _flat(values: Tensor, found: Discrete) -> Tensor:
    """(*batch, *shape, K) as (*batch, N, K)."""
    batch_shape = values.shape[: values.dim() - found.num_event_dims - 1]
    return values.reshape(*batch_shape, -1, values.shape[-1])


def latent_of(name: str, found: Discrete) -> Latent:
    """How the values of a discrete latent are written."""
    rank = found.logits.dim() - found.num_event_dims - 1
    return Latent(name, found.kind, found.logits.shape[rank:-1], found.logits.shape[-1], found.dtype)


def sample_shape(found: Discrete) -> Size:
    """The batch shape of a discrete latent."""
    return found.logits.shape[: found.logits.dim() - found.num_event_dims - 1]


def read(program: Run, layout: Layout, codes: Codes, given: Mapping[str, Tensor]) -> Reading:
    """Run a program on joint codes, its continuous latents drawn.

    Args:
        program: with its data bound.
        layout: what is known of it.
        codes: one-hots (s, N, K) of each latent, by name; one alone where the layout has an obstacle.
        given: values of continuous latents.
    """
    latents = {latent.name: latent for latent in layout.space.latents}

    def place(name: str, found: Discrete) -> Tensor:
        own = codes[name]
        # In the type that the program's samples have, which its networks take; scores are computed in float32 at least.
        latent = latents[name]._replace(dtype=found.dtype)
        if layout.obstacle is not None:  # one code, in the shape of a sample
            return latent.value(own[0].expand(*sample_shape(found), -1, -1))
        return latent.value(own.reshape(len(own), *(1,) * layout.nesting, *own.shape[-2:]))

    reader = Reader(place, given)
    reader.run(program)
    return Reading(
        sites={
            name: _site(latents[name], found, reader.messages[name], layout) for name, found in reader.discrete.items()
        },
        factors={
            name: Factor(_log_prob(name, msg, layout), msg["scale"])
            for name, msg in reader.messages.items()
            if name not in reader.discrete
        },
        values={name: msg["value"] for name, msg in reader.continuous().items()},
    )


def _site(latent: Latent, found: Discrete, msg: Messages, layout: Layout) -> Site:
    logits = _flat(at_least_float32(found.logits), found)  # (*batch, N, K)
    batch_shape, strides = logits.shape[:-2], logits.stride()[:-2]
    depends = len(batch_shape) > layout.nesting and batch_shape[0] > 1
    own = batch_shape[-layout.nesting :] if layout.nesting else Size()
    own = Size([1] * (len(layout.batch_shape) - len(own))) + own[len(own) - len(layout.batch_shape) :]
    axes = slice(len(batch_shape) - layout.nesting, None) if len(batch_shape) > layout.nesting else slice(None)
    shared = all(size == 1 or stride == 0 for size, stride in zip(batch_shape[axes], strides[axes], strict=True))
    if depends:
        rows = logits[(slice(None), *(slice(1),) * layout.nesting)] if shared else logits
        rows = rows.expand(-1, *(rows.shape[1:-2] if shared else _padded(layout)), -1, -1)
        log_probs = torch.log_softmax(rows, -1).reshape(len(logits), -1, *logits.shape[-2:])
    else:
        logits = logits[0] if len(batch_shape) > layout.nesting else logits
        rank = logits.dim() - 2
        rows = (
            logits[(slice(1),) * rank] if shared else logits.expand(*_padded(layout)[layout.nesting - rank :], -1, -1)
        )
        log_probs = torch.log_softmax(rows.reshape(-1, *logits.shape[-2:]), -1)
    masks = [mask for mask in (found.mask, msg["mask"]) if mask is not None]
    return Site(
        latent=latent,
        log_probs=log_probs.clamp_min(torch.finfo(log_probs.dtype).min),
        batch_shape=layout.batch_shape,
        share=own.numel() / layout.batch_size,
        scale=msg["scale"],
        mask=masks[0] & masks[-1] if masks else None,
    )


def _padded(layout: Layout) -> tuple[int, ...]:
    """The batch shape of all discrete latents, with the batch dimensions of all plates."""
    return (1,) * (layout.nesting - len(layout.batch_shape)) + tuple(layout.batch_shape)


def _log_prob(name: str, msg: Messages, layout: Layout) -> Tensor:
    """A statement's log-probability, summed over plates that no discrete latent has: (s, B) or (1, B)."""
    log_prob = msg["fn"].log_prob(msg["value"], *msg["args"], **msg["kwargs"])
    log_prob = scale_and_mask(log_prob, msg["scale"], msg["mask"])
    log_prob = log_prob.reshape((1,) * (layout.nesting + 1 - log_prob.dim()) + log_prob.shape)  # (s or 1, *plates)
    own, found = _padded(layout), log_prob.shape[1:]
    plates = {frame.dim: frame.size for frame in msg["cond_indep_stack"] if frame.vectorized}
    for dim in range(-len(found), 0):
        expected = own[dim] if -dim <= layout.nesting else 0
        is_shared = found[dim] == 1 and layout.plates - plates_of(msg)
        if found[dim] != expected and not is_shared and not (expected == 1 and found[dim] == plates.get(dim)):
            raise ValueError(
                f"Expected every statement to have the batch shape {tuple(layout.batch_shape)} of the discrete "
                f"latents, with one more dimension left of it for codes, but found {tuple(log_prob.shape)} at "
                f"'{name}': it pairs codes with data, or belongs to no single datum."
            )
    kept = tuple(min(size, expected) for size, expected in zip(found, own, strict=True))
    log_prob = log_prob.sum_to_size(len(log_prob), *kept)
    times = Size(own).numel() // Size(kept).numel()
    if times > 1:  # data that share a statement count it once together
        log_prob = log_prob.expand(-1, *own) / times
    return log_prob.reshape(len(log_prob), -1)
