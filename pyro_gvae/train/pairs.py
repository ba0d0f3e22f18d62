"""A pair of plain functions as a module with the parameters of Pyro's store and of networks in closures."""

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
from ..programs.batches import arguments
from ..programs.modes import without_trace
from ..programs.pair import HasPair, TrainableProgram
from ..runtime.compat.pyro import give_leaf, leaf_of


def trainable(pair: HasPair, batch: Data) -> TrainableProgram:
    """Return a program with parameters as it is, and a pair of functions as a :class:`TrainablePair`."""
    return cast(TrainableProgram, pair if hasattr(pair, "parameters") else TrainablePair(pair, batch))


@final
class TrainablePair(nn.Module):
    """A pair of functions as a module with the parameters in `pyro.module` and `pyro.param`, which SVI would train.

    One run of the pair finds them. Networks stay where they are. Values of `pyro.param` share their memory with Pyro's
    store, so that training changes the store as well.

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
        #: The parameters of `pyro.param`; names of parameters in a module may not contain dots.
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
        """Return the constrained value of a parameter of `pyro.param`; None if it belongs to a network."""
        if name not in self._constraints:
            return None
        leaf = self.values[name.replace(".", "/")]
        value: Tensor = transform_to(self._constraints[name])(leaf)
        give_leaf(value, leaf)
        return value


@final
class _OwnValues(Messenger):
    """Give the parameters of a pair their own values, whatever Pyro's store contains."""

    def __init__(self, of: TrainablePair) -> None:
        super().__init__()
        self._of = of

    def _pyro_param(self, msg: Messages) -> None:
        if msg["value"] is None:
            msg["value"] = self._of.value(msg["args"][0])


def _shown(pair: HasPair, batch: Data) -> tuple[dict[str, Tensor], list[nn.Module]]:
    """Run a pair; return the leaves of its parameters in Pyro, by name, and the networks that it calls."""
    given = arguments(batch)
    with torch.no_grad(), without_trace(), _calls() as called, poutine.trace(param_only=True) as shown:
        guide = poutine.trace(pair.guide).get_trace(*given.args, **given.kwargs)
        poutine.replay(pair.model, trace=guide)(*given.args, **given.kwargs)
    nodes: dict[str, Any] = shown.trace.nodes
    return {name: leaf_of(site["value"]) for name, site in nodes.items() if site["type"] == "param"}, list(called)


@contextmanager
def _calls() -> Iterator[dict[nn.Module, None]]:
    """Record the modules that are called, in order."""
    called: dict[nn.Module, None] = {}
    hook = register_module_forward_pre_hook(lambda module, _: called.setdefault(module))
    try:
        yield called
    finally:
        hook.remove()


def _sharing(leaf: Tensor) -> nn.Parameter:
    return leaf if isinstance(leaf, nn.Parameter) else nn.Parameter(leaf.detach())
