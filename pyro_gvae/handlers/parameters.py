"""Parameters that remain in their modules, independent of Pyro's param store."""

from pyro.poutine.messenger import Messenger
from pyro.poutine.runtime import effectful
from torch import Tensor
from torch.distributions import constraints

from ..runtime.compat.pyro import give_leaf, is_of_module
from .sites import Messages


def announce(name: str, parameter: Tensor) -> None:
    """Show a module's parameter to handlers such as SVI's, without putting it into the param store.

    PyroModule does the same when Pyro's setting `module_local_params` is on.
    """
    give_leaf(parameter, parameter)
    effectful(type="param")(lambda *_, **__: parameter)(name, parameter, constraint=constraints.real, name=name)


class OwnParameters(Messenger):
    """Makes modules use their own parameters and not those with their names in Pyro's param store; stores none."""

    def _pyro_param(self, msg: Messages) -> None:
        name, *initial = msg["args"]
        # From pyro.module. Under torch.func it is a tensor, and no nn.Parameter.
        if is_of_module(name) and initial and isinstance(initial[0], Tensor):
            msg["value"] = initial[0]
