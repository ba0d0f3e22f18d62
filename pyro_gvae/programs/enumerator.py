"""Run each program once, with an axis for every discrete latent, and read the log-probabilities of its statements.

A chain of T latents has K^T joint codes, but each of its statements depends on few latents. Stock `EnumMessenger` gives
every latent its own dimension while it is in reach, and reuses it later. Here each dimension is named by its latent.
"""

from collections.abc import Mapping
from contextlib import nullcontext
from functools import partial
from typing import Any, NamedTuple, final

import torch
from pyro.distributions import Categorical
from pyro.distributions.util import scale_and_mask
from pyro.poutine.enum_messenger import EnumMessenger
from pyro.poutine.messenger import Messenger
from torch import Tensor
from typing_extensions import override

from ..distributions.codes import joint_codes
from ..handlers.one_hot_messenger import OneHotMessenger
from ..handlers.sites import Discrete, Messages, Run, discrete
from ..runtime.compat.enumeration import axes_in_reach, bring_into_reach, enumerated_dim, give_axes, leave_dims
from ..runtime.compat.pyro import is_intervened_on, is_random
from .axes import Axis, term_of
from .latents import Latent, TooManyCodesError, latent_of
from .reach import Behind, Reach
from .statements import Draw, drawn_once
from .terms import Reading, mask_of_site, score, site_of, weight_of

#: The largest number of elements that a draw of a continuous latent may have.
MOST_DRAWN = 2**24


class Given(NamedTuple):
    """The value that the guide gives a latent, for the model."""

    value: Tensor
    axes: dict[int, int]  # dimension -> number of the discrete latent that it belongs to
    dim: int | None  # the dimension of all its own values; None if it has one value


@final
class Enumerator(OneHotMessenger):
    """Gives each discrete latent of a program all of its values, and each continuous one a draw or a given value."""

    def __init__(self, draw: Draw, given: Mapping[str, Given], reach: Reach) -> None:
        super().__init__()
        self.draw = draw
        self.given = given
        self.reach = reach
        self.discrete: dict[str, Discrete] = {}
        self.messages: dict[str, Messages] = {}
        self._values: dict[Any, Tensor] = {}  # all values of latents of the same form, (S, *event_shape)
        self._behind = Behind(reach.behind, self.all_axes)

    @override
    def declare(self, msg: Messages, site: Discrete) -> None:
        """Let Pyro enumerate the numbers of a latent's values."""
        self.discrete[msg["name"]] = site
        for other in self.reach.beside.get(msg["name"], ()):
            if other in self.messages:
                bring_into_reach(msg, self.messages[other])
        num_codes = latent_of(msg["name"], site).num_codes
        msg["fn"] = Categorical(logits=site.natural.new_zeros(num_codes), validate_args=False)
        msg["infer"]["enumerate"] = "parallel"

    def _pyro_sample(self, msg: Messages) -> None:
        if is_random(msg):
            self._behind.begin(msg, self.messages)
        is_latent = not msg["is_observed"] and msg["value"] is None and is_random(msg) and not is_intervened_on(msg)
        if msg["done"] or not is_latent or not self.decides(msg["name"]):
            return
        # Drop settings that ask stock Pyro to enumerate.
        kept = {key: value for key, value in msg["infer"].items() if key not in ("enumerate", "expand", "num_samples")}
        name, msg["infer"] = msg["name"], kept
        found = discrete(msg["fn"])
        given = self.given.get(name)
        if given is not None:
            msg["value"] = given.value
            give_axes(msg, given.axes)
            if found is not None and given.dim is not None:
                self.discrete[name] = found
            elif found is not None:
                msg["fn"] = found.discrete()
        elif found is not None:
            self.declare(msg, found)
        else:
            _check_draw(name, msg["fn"])
            msg["value"] = self.draw(name, msg["fn"])

    def _pyro_post_sample(self, msg: Messages) -> None:
        name = msg["name"]
        if not is_random(msg) or is_intervened_on(msg):
            return
        self.messages[name] = msg
        if name in self.discrete and name not in self.given:
            msg["value"] = self._value(latent_of(name, self.discrete[name]), enumerated_dim(msg))
        self._behind.done(msg)

    def _value(self, latent: Latent, dim: int | None) -> Tensor:
        """Return all values of a latent along a dimension, to replace their numbers."""
        assert dim is not None
        key = latent._replace(name="")
        if key not in self._values:
            dtype, device = torch.promote_types(latent.dtype, torch.float32), self._device(latent)
            codes = joint_codes(latent.num_latents, latent.num_categories, dtype=dtype, device=device)
            self._values[key] = latent.value(codes)
        values = self._values[key]
        return values.reshape(len(values), *(1,) * (-1 - dim), *values.shape[1:])

    def _device(self, latent: Latent) -> torch.device:
        return self.discrete[latent.name].natural.device

    def value_axes(self, name: str) -> dict[int, int]:
        """Return the dimensions of a latent's value, each with the number of the latent that it belongs to."""
        msg = self.messages[name]
        batch = msg["value"].shape[: msg["value"].dim() - self._event_dim(name)]
        return {dim: one for dim, one in axes_in_reach(msg).items() if -dim <= len(batch) and batch[dim] > 1}

    def all_axes(self, name: str) -> dict[int, int]:
        """Return :meth:`value_axes`, always with a discrete latent's own dimension, even if it has only one value."""
        axes = self.value_axes(name)
        if name in self.discrete:
            axes[self.own_dim(name)] = axes_in_reach(self.messages[name])[self.own_dim(name)]
        return axes

    def own_dim(self, name: str) -> int:
        """Return the dimension of a discrete latent's values."""
        given = self.given.get(name)
        dim = enumerated_dim(self.messages[name]) if given is None else given.dim
        assert dim is not None
        return dim

    def _event_dim(self, name: str) -> int:
        return len(self.discrete[name].event_shape) if name in self.discrete else self.messages[name]["fn"].event_dim

    def enumerated(self) -> dict[int, Axis]:
        """Return the axis of each latent that is enumerated here, by its number."""
        found = {}
        for name in self.discrete.keys() - self.given.keys():
            number = axes_in_reach(self.messages[name])[self.own_dim(name)]
            found[number] = Axis(False, number, name)
        return found


def _check_draw(name: str, fn: Any) -> None:
    """Refuse a continuous latent that depends on too many joint codes, as in a chain of continuous latents."""
    numel = fn.batch_shape.numel() * fn.event_shape.numel()
    if numel > MOST_DRAWN:
        raise TooManyCodesError(
            f"Expected continuous latents that depend on few discrete ones, but found '{name}', which takes {numel:,} "
            "numbers, because it has a value for each joint code of the latents that it depends on: K^T in a chain of "
            "continuous latents. Try an estimator that samples, such as reinforce-loo."
        )


class Both(NamedTuple):
    """The readings of guide and model."""

    q: Reading
    p: Reading


def read_axes(model: Run, guide: Run | None, nesting: int, draw: Draw, reach: Reach) -> Both:
    """Run both programs, or the model alone, with an axis for every discrete latent.

    Args:
        model: the model with its data bound.
        guide: the guide, or None if all latents of the model are to be enumerated.
        nesting: the number of batch dimensions that plates take.
        draw: draws a continuous latent of the guide.
        reach: the latents that statements reach in addition to what `pyro.markov` allows.

    Raises:
        ValueError: if a latent of the guide has the dimension of another one that the model reaches, or if a dimension
            of a statement belongs neither to a plate nor to a latent in reach.
    """
    q, p = enumerate_both(model, guide, nesting, draw, reach)
    check_reach(p)
    axes = q.enumerated()
    found = _reading(q, axes, nesting) if guide is not None else Reading({}, {}, {})
    return Both(found, _reading(p, axes | p.enumerated(), nesting))


def read_given(program: Run, nesting: int, values: Mapping[str, Tensor], reach: Reach) -> Reading:
    """Run one program with values of some latents, and an axis for every other discrete one.

    Args:
        program: the program with its data bound.
        nesting: the number of batch dimensions that plates take.
        values: one value of each latent that is not enumerated, with no dimensions but those of plates.
        reach: the latents that statements reach in addition to what `pyro.markov` allows.

    Raises:
        ValueError: as :func:`read_axes`.
    """
    given = {name: Given(value, {}, None) for name, value in values.items()}
    found = Enumerator(drawn_once({}, frozenset()), given, reach._replace(beside={}))
    with EnumMessenger(first_available_dim=-1 - nesting):
        _run(found, program, None)
    return _reading(found, found.enumerated(), nesting)


def enumerate_both(
    model: Run, guide: Run | None, nesting: int, draw: Draw, reach: Reach, inside: Messenger | None = None
) -> tuple[Enumerator, Enumerator]:
    """Run both programs as :func:`read_axes` does; `inside` is an additional, innermost handler."""
    q = Enumerator(draw, {}, reach)
    with EnumMessenger(first_available_dim=-1 - nesting):
        if guide is not None:
            _run(q, guide, inside)
    given = {}
    for name, msg in q.messages.items():
        axes = q.all_axes(name)
        given[name] = Given(msg["value"], axes, q.own_dim(name) if name in q.discrete else None)
        leave_dims(min(axes, default=0))
    p = Enumerator(draw, given, reach._replace(beside={}))
    with EnumMessenger():  # continues with the dimensions left of the guide's
        _run(p, model, inside)
    return q, p


def _run(enumerator: Enumerator, program: Run, inside: Messenger | None) -> None:
    with enumerator, nullcontext() if inside is None else inside:
        program()


def check_reach(p: Enumerator) -> None:
    """Refuse a model that still reaches a latent whose dimension the guide has given to another one."""
    for name, given in p.given.items():
        msg = p.messages.get(name)
        found = given.axes if msg is None or msg["is_observed"] else axes_in_reach(msg)
        if any(found[dim] != number for dim, number in given.axes.items()):
            raise ValueError(
                f"Expected pyro.markov to reach as far in the guide as in the model, but found '{name}', where the "
                "model reaches latents that are out of the guide's reach. Try the same pyro.markov(.., history=..) in "
                "both."
            )


def _reading(found: Enumerator, axes: Mapping[int, Axis], nesting: int) -> Reading:
    sites, others, weights = {}, {}, {}
    for name, msg in found.messages.items():
        if name in found.discrete:
            site = found.discrete[name]
            variable = axes[axes_in_reach(msg)[found.own_dim(name)]]
            sites[name] = site_of(name, site, msg, axes, variable, nesting)
            weights[name] = partial(weight_of, msg, mask_of_site(site, msg), sites[name].log_probs.values)
        else:
            scores = score(msg)
            others[name] = term_of(name, scale_and_mask(scores, 1.0, msg["mask"]), msg, axes, nesting)
            weights[name] = partial(weight_of, msg, msg["mask"], scores)
    return Reading(sites, others, weights)
