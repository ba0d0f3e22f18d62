"""What `weigh_kl` does to a site."""

from pyro.poutine.util import site_is_subsample
from torch import Tensor

from .one_hot_messenger import ProgramMessenger
from .sites import Messages


class WeighKLMessenger(ProgramMessenger):
    """Scales the log-densities of latent sites, whatever distribution other handlers give them."""

    def __init__(self, beta: float | Tensor) -> None:
        super().__init__()
        self.beta = beta

    def _pyro_sample(self, msg: Messages) -> None:
        if not (msg["is_observed"] or site_is_subsample(msg) or msg["infer"].get("_deterministic")):
            msg["scale"] = self.beta * msg["scale"]
