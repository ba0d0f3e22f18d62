"""Stock `TraceGraph_ELBO` with a baseline of its site's cost that it keeps and trains itself."""

from collections.abc import Sequence
from typing import Any, final

import torch
from pyro.infer import TraceGraph_ELBO
from pyro.params import param_with_module_name
from pyro.poutine.messenger import Messenger
from torch import Tensor, nn

from ..handlers.parameters import announce
from ..handlers.sites import Messages, Program, one_hot_site
from ..models.networks import mlp
from ..runtime.compat.pyro import LossOnlyELBO


@final
class RunningBaseline(nn.Module):
    r"""The mean cost of the steps before, older ones weighing less: c = sum_t beta^t cost_t / sum_t beta^t.

    A number for all data, so that batches may have any size and order; zero before the first step. (Stock Pyro's
    `use_decaying_avg_baseline` keeps one number for each *row* of a batch, whichever datum it holds.)

    Args:
        beta: how much an older step weighs, in [0, 1).
    """

    total: Tensor
    weight: Tensor

    def __init__(self, beta: float = 0.9) -> None:
        super().__init__()
        self.beta = beta
        # In double precision, whatever the networks': a recording that sums in another order stays the same.
        self.register_buffer("total", torch.zeros((), dtype=torch.float64))
        self.register_buffer("weight", torch.zeros((), dtype=torch.float64))

    def forward(self, x: Any) -> Tensor:
        """The mean so far, shape ()."""
        return self.total / self.weight.clamp_min(torch.finfo(torch.float64).tiny)

    @torch.no_grad()
    def update(self, cost: float | Tensor) -> None:
        """Take in the mean cost of one more step."""
        self.total.mul_(self.beta).add_(cost)
        self.weight.mul_(self.beta).add_(1.0)


@final
class NeuralBaseline(nn.Module):
    """The running mean and, added to it, a network of the data that learns what is left (Mnih and Gregor 2014).

    Args:
        data_dim: D.
        hidden: widths of the network's hidden layers.
        beta: of the running mean.
    """

    def __init__(self, data_dim: int, hidden: Sequence[int] = (100,), beta: float = 0.9) -> None:
        super().__init__()
        self.data_dim = data_dim
        self.running = RunningBaseline(beta)
        self.network = nn.Sequential(*mlp((data_dim, *hidden, 1)))

    def forward(self, x: Any) -> Tensor:
        """The expected cost of each datum of x (..., D), shape (...).

        Raises:
            ValueError: if x does not have D dimensions.
        """
        if not isinstance(x, Tensor) or x.shape[-1:] != (self.data_dim,):
            found = tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__
            raise ValueError(
                f"Expected data of shape (..., {self.data_dim}) for the neural baseline, but found {found}. Try "
                "data_dim=D with the D of the data."
            )
        dtype = next(self.network.parameters()).dtype
        learned: Tensor = self.network(x.detach().to(dtype)).squeeze(-1)  # (...)
        mean: Tensor = self.running(x)
        return mean + learned

    def update(self, cost: float | Tensor) -> None:
        """Take in the mean cost of one more step."""
        self.running.update(cost)


@final
class BaselineELBO(LossOnlyELBO):
    r"""Stock `TraceGraph_ELBO` on a guide with one one-hot site, whose cost has a baseline c(x) subtracted.

    .. math::

        \nabla \approx \nabla \log p(x, z) + (\log p(x, z) - \log q(z | x) - c(x)) \nabla \log q(z | x)

    The baseline does not depend on z, so the mean is that of REINFORCE. It is shown to Pyro as the `baseline_value` of
    the site, in place of a baseline that the guide may have written there. What of it is a network descends the squared
    difference to the cost, in the same step. (Mnih and Gregor 2014, arXiv 1402.0030.)

    Args:
        own: the baseline, which keeps its state from step to step.
        num_particles: P, samples per datum.

    Raises:
        ValueError: when it is used, if the guide has not exactly one latent one-hot site.

    Example:
        >>> import pyro
        >>> from pyro.infer import SVI
        >>> from pyro_gvae.handlers import discretize
        >>> from pyro_gvae.models.categorical_vae import CategoricalVAE
        >>> vae = CategoricalVAE(data_dim=6, num_latents=2, num_categories=3, hidden=(5,))
        >>> elbo = BaselineELBO(RunningBaseline())
        >>> svi = SVI(discretize(vae.model), discretize(vae.guide), pyro.optim.Adam({"lr": 0.1}), elbo)
        >>> loss = svi.step(torch.ones(4, 6))
        >>> round(elbo.own(None).item(), 4) == round(-loss / 4, 4)
        True
    """

    def __init__(self, own: RunningBaseline | NeuralBaseline, *, num_particles: int = 1) -> None:
        vectorized = num_particles > 1
        super().__init__(num_particles=num_particles, vectorize_particles=vectorized)
        self.own = own
        self._stock = TraceGraph_ELBO(num_particles=num_particles, vectorize_particles=vectorized)

    def loss(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> float:
        """An estimate of the loss in nats, summed over the data."""
        loss: float = self._stock.loss(model, guide, *args, **kwargs)
        return loss

    def loss_and_grads(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> float:
        """The same; gradients of all parameters, the baseline's included, are added to their `.grad`."""
        for name, parameter in self.own.named_parameters():
            announce(param_with_module_name(type(self).__name__, name), parameter)
        baseline = self.own(args[0] if args else None)
        sizes: list[int] = []

        def with_baseline(*args: Any, **kwargs: Any) -> Any:
            with _BaselineMessenger(baseline) as messenger:
                result = guide(*args, **kwargs)
            sizes.append(messenger.size())
            return result

        loss: float = self._stock.loss_and_grads(model, with_baseline, *args, **kwargs)
        self.own.update(-loss * self.num_particles / sizes[-1])
        return loss


@final
class _BaselineMessenger(Messenger):
    """Tells `TraceGraph_ELBO` the baseline of a latent one-hot site."""

    def __init__(self, baseline: Tensor) -> None:
        super().__init__()
        self.baseline = baseline
        self.sizes: dict[str, int] = {}

    def _pyro_sample(self, msg: Messages) -> None:
        msg["infer"] = dict(msg["infer"])  # the program's own stays as it is

    def _pyro_post_sample(self, msg: Messages) -> None:
        site = None if msg["is_observed"] else one_hot_site(msg["fn"])
        if site is None:
            return
        # Only now has the plate of particles, which is outside, given the site its shape.
        batch_shape = msg["fn"].batch_shape
        value = self.baseline.to(site.logits.dtype).expand(batch_shape)
        while value.shape[:1] == (1,):  # as Pyro does with the costs of a batch of one
            value = value.squeeze(0)
        msg["infer"]["baseline"] = {"baseline_value": value}
        self.sizes[msg["name"]] = batch_shape.numel()

    def size(self) -> int:
        """How many costs the site has.

        Raises:
            ValueError: if there is not one site.
        """
        if len(self.sizes) != 1:
            found = ", ".join(f"'{name}'" for name in self.sizes) or "none"
            raise ValueError(
                f"Expected the guide to have one latent one-hot site for the baseline, but found {found}. Try one site "
                "of event shape (N, K), OneHotCategorical(...).to_event(1), or TraceGraph_ELBO."
            )
        return next(iter(self.sizes.values()))
