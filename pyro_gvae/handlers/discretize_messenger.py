"""What `discretize` does to a one-hot site."""

import inspect

import torch
from pyro.infer import ELBO, RenyiELBO, TraceMeanField_ELBO, TraceTailAdaptive_ELBO, TraceTMC_ELBO
from pyro.poutine.replay_messenger import ReplayMessenger
from pyro.poutine.runtime import _PYRO_STACK

from .one_hot_messenger import OneHotMessenger
from .sites import Messages, OneHotSite


class DiscretizeMessenger(OneHotMessenger):
    """Samples one-hot sites as exact one-hots."""

    def declare(self, msg: Messages, site: OneHotSite) -> None:
        if site.logits.requires_grad and torch.is_grad_enabled():
            _check_has_score(msg["name"])
        msg["fn"] = site.discrete()


#: ELBOs of stock Pyro whose gradient goes through samples alone, or that drop the score of a discrete one, and what to
#: take in place of each. (Those that refuse a discrete site by themselves, as Trace_MMD does, need no row.)
WITHOUT_SCORE: dict[type[ELBO], str] = {
    RenyiELBO: "VIMCO, the same bound for alpha=0",
    TraceTMC_ELBO: "VIMCO",
    TraceMeanField_ELBO: "Trace_ELBO or ReinforceLOO",
    TraceTailAdaptive_ELBO: "ReweightedWakeSleep",
}


def _check_has_score(name: str) -> None:
    """Refuse to sample a guide's site for an ELBO that would leave its score out of the gradient, without a word.

    Which ELBO asks, and for what, only the stack tells. A model is replayed, and may be so by any.
    """
    replays = (handler.trace for handler in _PYRO_STACK if isinstance(handler, ReplayMessenger))
    if any(trace is not None and name in trace for trace in replays):
        return
    frame, elbo = inspect.currentframe(), None
    while frame is not None:
        if elbo is None and frame.f_code.co_name in ("_get_trace", "_get_traces"):
            elbo = frame.f_locals.get("self")
            if not isinstance(elbo, tuple(WITHOUT_SCORE)):
                return
        if elbo is not None and frame.f_code.co_name == "loss" and frame.f_locals.get("self") is elbo:
            return  # without gradients the loss is right
        frame = frame.f_back
    if elbo is None:
        return
    other = next(other for kind, other in WITHOUT_SCORE.items() if isinstance(elbo, kind))
    raise ValueError(
        f"Expected an ELBO that has the score of the discrete site '{name}' in its gradient, but found a "
        f"{type(elbo).__name__}, which leaves it out, so that the guide would get a wrong gradient or none. Try "
        f"{other}, or relax() in place of discretize()."
    )
