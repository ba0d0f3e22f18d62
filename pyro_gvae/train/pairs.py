"""A pair of plain functions as a module: its parameters, which Pyro's store and networks in closures hold."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast, final

import pyro
import torch
from pyro import poutine
from pyro.poutine.messenger import Messenger
from torch import Tensor, nn
from torch.distributions import constraints, transform_to
from torch.nn.modules.module import register_module_forward_pre_hook

from ..data.columns import Data
from ..handlers.sites import Messages
from ..programs.modes import without_trace
from ..programs.pair import HasPair
from ..programs.runs import arguments
from ..runtime.compat.pyro import give_leaf, leaf_of
from .step import TrainableProgram


def trainable(pair: HasPair, batch: Data) -> TrainableProgram:
    """Return a program with parameters as it is, and a pair of functions as a :class:`TrainablePair`."""
    return cast(TrainableProgram, pair if hasattr(pair, "parameters") else TrainablePair(pair, batch))


@final
class TrainablePair(nn.Module):
    """A pair of functions with the parameters that `pyro.module` and `pyro.param` show: those that SVI trains.

    One run of the pair finds them. Networks stay where they are. Values of `pyro.param` share their memory with Pyro's
    store, so that what is trained here is trained there.

    Args:
        pair: model and guide.
        batch: some data.
    """

    def __init__(self, pair: HasPair, batch: Data) -> None:
        super().__init__()
        self._pair = pair
        leaves, called = _shown(pair, batch)
        trained = set(leaves.values())
        inside = {inner for network in called for inner in network.modules() if inner is not network}
        roots = [network for network in called if network not in inside]
        self.networks = nn.ModuleList(network for network in roots if not trained.isdisjoint(network.parameters()))
        others = trained.difference(self.networks.parameters())
        #: Those of `pyro.param`; dots are part of no parameter's name in a module.
        self.values = nn.ParameterDict(
            {name.replace(".", "/"): _sharing(leaf) for name, leaf in leaves.items() if leaf in others}
        )
        known = pyro.get_param_store().get_state()["constraints"]
        self._constraints = {name: known.get(name, constraints.real) for name, leaf in leaves.items() if leaf in others}

    def model(self, *args: Any, **kwargs: Any) -> Any:
        """Run the model."""
        with _OwnValues(self):
            return self._pair.model(*args, **kwargs)

    def guide(self, *args: Any, **kwargs: Any) -> Any:
        """Run the guide."""
        with _OwnValues(self):
            return self._pair.guide(*args, **kwargs)

    def value(self, name: str) -> Tensor | None:
        """Return the value of a parameter of `pyro.param`, which fulfils its constraint; None if it is of a network."""
        if name not in self._constraints:
            return None
        leaf = self.values[name.replace(".", "/")]
        value: Tensor = transform_to(self._constraints[name])(leaf)
        give_leaf(value, leaf)
        return value


@final
class _OwnValues(Messenger):
    """Gives the parameters of a pair their values, whatever Pyro's store holds at the time."""

    def __init__(self, of: TrainablePair) -> None:
        super().__init__()
        self._of = of

    def _pyro_param(self, msg: Messages) -> None:
        if msg["value"] is None:
            msg["value"] = self._of.value(msg["args"][0])


def _shown(pair: HasPair, batch: Data) -> tuple[dict[str, Tensor], list[nn.Module]]:
    """Return the leaves of the parameters that a pair shows to Pyro, by name, and the networks that it calls."""
    given = arguments(batch)
    with torch.no_grad(), without_trace(), _calls() as called, poutine.trace(param_only=True) as shown:
        guide = poutine.trace(pair.guide).get_trace(*given.args, **given.kwargs)
        poutine.replay(pair.model, trace=guide)(*given.args, **given.kwargs)
    nodes: dict[str, Any] = shown.trace.nodes
    return {name: leaf_of(site["value"]) for name, site in nodes.items() if site["type"] == "param"}, list(called)


@contextmanager
def _calls() -> Iterator[dict[nn.Module, None]]:
    """Note the modules that are called, in their order."""
    called: dict[nn.Module, None] = {}
    hook = register_module_forward_pre_hook(lambda module, _: called.setdefault(module))
    try:
        yield called
    finally:
        hook.remove()


def _sharing(leaf: Tensor) -> nn.Parameter:
    return leaf if isinstance(leaf, nn.Parameter) else nn.Parameter(leaf.detach())
