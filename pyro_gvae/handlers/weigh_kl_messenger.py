"""The messenger behind `weigh_kl`."""

from torch import Tensor

from ..runtime.compat.pyro import is_random
from .one_hot_messenger import ProgramMessenger
from .sites import Messages


class WeighKLMessenger(ProgramMessenger):
    """Scales the log-densities of latent sites, whichever distribution other handlers give them."""

    def __init__(self, beta: float | Tensor) -> None:
        super().__init__()
        self.beta = beta

    def _pyro_sample(self, msg: Messages) -> None:
        if is_random(msg) and not msg["is_observed"]:
            msg["scale"] = self.beta * msg["scale"]
