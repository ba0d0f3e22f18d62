"""The messenger behind `discretize`."""

import torch
from pyro.infer import EnergyDistance, RenyiELBO, TraceMeanField_ELBO, TraceTailAdaptive_ELBO, TraceTMC_ELBO
from pyro.poutine.replay_messenger import ReplayMessenger
from typing_extensions import override

from ..runtime.compat.pyro import handlers_on_stack, running_elbo
from .one_hot_messenger import DrawingMessenger
from .sites import Discrete, Messages


class DiscretizeMessenger(DrawingMessenger):
    """Samples discrete latents exactly."""

    def declare(self, msg: Messages, site: Discrete) -> None:
        """Replace the site's distribution by exact one-hots, bits or integers."""
        if site.natural.requires_grad and torch.is_grad_enabled():
            _check_has_score(msg["name"])
        msg["fn"] = site.discrete()

    @override
    def refuse(self, msg: Messages) -> None:
        if msg["fn"].has_rsample:
            super().refuse(msg)


#: Stock losses that leave the score of a discrete site out of the gradient, and the loss to use instead. (Those that
#: refuse a discrete site by themselves, such as Trace_MMD, need no entry. EnergyDistance does so only if it validates.)
WITHOUT_SCORE: dict[type, str] = {
    RenyiELBO: "VIMCO, the same bound for alpha=0",
    TraceTMC_ELBO: "VIMCO",
    TraceMeanField_ELBO: "Trace_ELBO or ReinforceLOO",
    TraceTailAdaptive_ELBO: "ReweightedWakeSleep",
    EnergyDistance: "Trace_ELBO or ReinforceLOO",
}


def _check_has_score(name: str) -> None:
    """Refuse to sample a guide's site for an ELBO that silently leaves its score out of the gradient.

    A model's site is replayed, which is safe with any ELBO.
    """
    replays = (handler.trace for handler in handlers_on_stack() if isinstance(handler, ReplayMessenger))
    if any(trace is not None and name in trace for trace in replays):
        return
    request = running_elbo()
    if request is None or not request.wants_gradient:  # the value of the loss is correct
        return
    other = next((other for kind, other in WITHOUT_SCORE.items() if isinstance(request.elbo, kind)), None)
    if other is None:
        return
    raise ValueError(
        f"Expected an ELBO that has the score of the discrete site '{name}' in its gradient, but found "
        f"{type(request.elbo).__name__}, which leaves it out: the guide would get a wrong gradient or none. "
        f"Try {other}, or relax() instead of discretize()."
    )
