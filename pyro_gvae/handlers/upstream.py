"""Find the sites that the sites of a program depend on."""

from collections.abc import Mapping
from typing import Any, final

from pyro import poutine
from pyro.distributions import Delta
from pyro.infer.inspect import get_dependencies
from pyro.poutine.messenger import Messenger

from .discretize_messenger import DiscretizeMessenger
from .one_hot_messenger import innermost
from .sites import Messages, Program


def direct_upstream(
    program: Program, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
) -> dict[str, frozenset[str]]:
    """Return the sites that each sample site of a program directly depends on, and itself.

    Latents are drawn as codes, since relaxed ones hide their dependences. Values of a latent with a `Delta`, as an
    autoguide has, are sites like others, although Pyro's `get_dependencies` leaves them out; what depends on such a
    value also depends on the sites that it is computed from.

    Args:
        program: a Pyro model or guide.
        args: its arguments.
        kwargs: its keyword arguments.
    """
    deltas = _SeenDeltas()

    def seen(*args: Any, **kwargs: Any) -> Any:
        with deltas:
            return program(*args, **kwargs)

    with poutine.block(), DiscretizeMessenger():
        found: Any = get_dependencies(seen, args, dict(kwargs or {}))["prior_dependencies"]
    direct: dict[str, frozenset[str]] = {}
    for name, others in found.items():  # in the order of the program
        behind = (direct[other] for other in others if other in deltas.names and other != name)
        direct[name] = frozenset(others).union(*behind)
    return direct


@final
class _SeenDelta(Delta):
    """A `Delta` that `get_dependencies`, which goes by the name of the class, takes for a random variable."""


@final
class _SeenDeltas(Messenger):
    """Shows the latents with a `Delta`, and keeps their names."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def _pyro_sample(self, msg: Messages) -> None:
        fn = innermost(msg["fn"])
        if isinstance(fn, Delta) and not msg["is_observed"]:
            self.names.add(msg["name"])
            msg["fn"] = _SeenDelta(msg["fn"](), event_dim=msg["fn"].event_dim)
