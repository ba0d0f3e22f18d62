"""Parameters that stay in their modules, whatever Pyro's param store holds."""

from pyro.poutine.messenger import Messenger
from pyro.poutine.runtime import effectful
from torch import Tensor, nn
from torch.distributions import constraints

from ..runtime.compat.pyro import give_itself_as_leaf, is_of_module
from .sites import Messages


def announce(name: str, parameter: Tensor) -> None:
    """Show handlers, such as SVI's, a parameter that stays in its module, and put nothing into the param store.

    As PyroModule does when Pyro's parameters are local.
    """
    give_itself_as_leaf(parameter)
    effectful(type="param")(lambda *_, **__: parameter)(name, parameter, constraint=constraints.real, name=name)


class OwnParameters(Messenger):
    """Lets modules use their own parameters, whatever Pyro's param store holds under their names, and stores none."""

    def _pyro_param(self, msg: Messages) -> None:
        name, *initial = msg["args"]
        if is_of_module(name) and initial and isinstance(initial[0], nn.Parameter):  # from pyro.module
            msg["value"] = initial[0]
