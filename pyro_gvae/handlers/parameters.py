"""Parameters that stay in their modules, whatever Pyro's param store holds."""

import weakref

from pyro.poutine.messenger import Messenger
from pyro.poutine.runtime import effectful
from torch import nn
from torch.distributions import constraints

from .sites import Messages


def announce(name: str, parameter: nn.Parameter) -> None:
    """Show handlers, such as SVI's, a parameter that stays in its module, and put nothing into the param store.

    As PyroModule does when Pyro's parameters are local.
    """
    parameter.unconstrained = weakref.ref(parameter)  # type: ignore[attr-defined]
    effectful(type="param")(lambda *_, **__: parameter)(name, parameter, constraint=constraints.real, name=name)


class OwnParameters(Messenger):
    """Lets modules use their own parameters, whatever Pyro's param store holds under their names, and stores none."""

    def _pyro_param(self, msg: Messages) -> None:
        name, *initial = msg["args"]
        if "$$$" in name and initial and isinstance(initial[0], nn.Parameter):  # from pyro.module
            msg["value"] = initial[0]
