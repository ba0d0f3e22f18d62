"""Questions about Pyro's parallel enumeration: which dimension belongs to which latent, and what `pyro.markov` hides.

`tests/runtime/test_compat.py` asks each question about a small stock program.
"""

from collections.abc import Mapping
from typing import Any

from pyro.poutine.markov_messenger import MarkovMessenger
from pyro.poutine.runtime import _ENUM_ALLOCATOR

from .pyro import handlers_on_stack


def enumerated_dim(msg: Any) -> int | None:
    """Return the batch dimension in which Pyro enumerates a site, or None if it does not.

    Pyro's `EnumMessenger` stores it in the site's settings. `enumerated` uses it to find plates that enumeration would
    get wrong.
    """
    dim: int | None = msg["infer"].get("_enumerate_dim")
    return dim


def in_markov(msg: Any) -> bool:
    """Return whether a site is inside of `pyro.markov`, which stores the depth in the site's settings."""
    return bool(msg["infer"].get("_markov_depth"))


def axes_in_reach(msg: Any) -> dict[int, int]:
    """Return the dimensions that a site may use, and the number of the enumerated latent that each belongs to here.

    `pyro.markov` gives a dimension to another latent as soon as the first is out of reach. Numbers are not reused.
    """
    return dict(msg["infer"].get("_dim_to_id", {}))


def give_axes(msg: Any, axes: Mapping[int, int]) -> None:
    """Tell Pyro's `EnumMessenger` which latents the dimensions of a value belong to, if it has not enumerated it."""
    msg["infer"]["_dim_to_id"] = dict(axes)


def leave_dims(lowest: int) -> None:
    """Let the next program enumerate only left of a dimension, so that it uses none that a value already has."""
    _ENUM_ALLOCATOR.next_available_dim = min(_ENUM_ALLOCATOR.next_available_dim, lowest - 1)


def sites_in_reach(msg: Any) -> frozenset[str]:
    """Return the names of the sites that `pyro.markov` lets a site reach; none outside of it."""
    return frozenset(msg["infer"].get("_markov_scope", {}))


def is_in_reach(msg: Any, other: Any) -> bool:
    """Return whether `pyro.markov` lets a site inside of it reach another one, in every loop around that one."""
    depth = msg["infer"].get("_markov_scope", {}).get(other["name"])
    return depth is not None and bool(depth == other["infer"].get("_markov_depth"))


def loop_around() -> MarkovMessenger | None:
    """Return the outermost `pyro.markov` around the running statement; None outside of all."""
    return next((handler for handler in handlers_on_stack() if isinstance(handler, MarkovMessenger)), None)


def bring_into_reach(msg: Any, other: Any) -> None:
    """Let a site inside of `pyro.markov` reach another one, so that it is not enumerated in the same dimension."""
    if in_markov(msg) and in_markov(other):
        msg["infer"]["_markov_scope"].setdefault(other["name"], other["infer"]["_markov_depth"])


def take_out_of_reach(msg: Any, name: str) -> None:
    """Remove a site from those that `pyro.markov` lets another one reach.

    A handler that samples a site inside of another one does this: `pyro.markov` has already noted the outer site, which
    has no value yet, and `EnumMessenger` would ask for its dimensions.
    """
    msg["infer"].get("_markov_scope", {}).pop(name, None)


def markov_settings(infer: Mapping[str, Any]) -> dict[str, Any]:
    """Return the entries of `pyro.markov` in a site's settings, which `EnumMessenger` reads at each site in reach.

    A handler that replaces a site's settings keeps these, and leaves them out of a site that it samples inside of it.
    """
    return {key: infer[key] for key in ("_markov_scope", "_markov_depth") if key in infer}
