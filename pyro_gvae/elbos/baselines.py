"""Stock `TraceGraph_ELBO` with a learned baseline for the cost of the latents that it scores."""

from collections.abc import Sequence
from typing import Any, NamedTuple, final

import torch
from pyro.infer import TraceGraph_ELBO
from pyro.params import param_with_module_name
from pyro.poutine.messenger import Messenger
from torch import Size, Tensor, nn
from typing_extensions import override

from ..handlers.one_hot_messenger import no_discrete_site
from ..handlers.parameters import announce
from ..handlers.sites import Messages, Program, discrete, kind_of
from ..models.networks import mlp
from ..programs.cells import Cells
from ..runtime.compat.pyro import LossOnlyELBO, is_random
from .own import forget_leaves
from .rows import Rows, SiteEstimate, SiteGradient


@final
class RunningBaseline(nn.Module):
    r"""The mean cost of earlier steps, weighted by age: c = sum_t beta^t cost_t / sum_t beta^t, t steps back.

    It is one number for all data, so batches may have any size and order. It is zero before the first step. (Stock
    Pyro's `use_decaying_avg_baseline` keeps one number for each *row* of a batch, whichever datum that row holds.)

    Args:
        beta: factor by which the weight of a step falls with each later step, in [0, 1).
    """

    total: Tensor
    weight: Tensor

    def __init__(self, beta: float = 0.9) -> None:
        super().__init__()
        self.beta = beta
        # Always in double precision, so that a recording, which sums in another order, still gives the same baseline.
        self.register_buffer("total", torch.zeros((), dtype=torch.float64))
        self.register_buffer("weight", torch.zeros((), dtype=torch.float64))

    def forward(self, x: Any) -> Tensor:
        """Return the mean so far, shape ()."""
        return self.total / self.weight.clamp_min(torch.finfo(torch.float64).tiny)

    @torch.no_grad()
    def update(self, cost: float | Tensor) -> None:
        """Add the mean cost of one more step."""
        self.total.mul_(self.beta).add_(cost)
        self.weight.mul_(self.beta).add_(1.0)


@final
class NeuralBaseline(nn.Module):
    """The running mean plus a network of the data that learns the rest of the cost (Mnih and Gregor 2014).

    Args:
        data_dim: D.
        hidden: widths of the network's hidden layers.
        beta: the decay of the running mean; see :class:`RunningBaseline`.
    """

    def __init__(self, data_dim: int, hidden: Sequence[int] = (100,), beta: float = 0.9) -> None:
        super().__init__()
        self.data_dim = data_dim
        self.running = RunningBaseline(beta)
        self.network = nn.Sequential(*mlp((data_dim, *hidden, 1)))

    def forward(self, x: Any) -> Tensor:
        """Return the expected cost of each datum of x (..., D), shape (...).

        Raises:
            ValueError: if x is not a tensor of shape (..., D).
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
        """Add the mean cost of one more step."""
        self.running.update(cost)


@final
class BaselineELBO(LossOnlyELBO):
    r"""Stock `TraceGraph_ELBO` with a baseline c(x) subtracted from the cost of the guide's latents without `rsample`.

    .. math::

        \nabla \approx \nabla \log p(x, z) + (\log p(x, z) - \log q(z | x) - c(x)) \nabla \log q(z | x)

    The baseline does not depend on z, so the gradient has the same mean as REINFORCE's. It is passed to Pyro as each
    latent's `baseline_value`, and replaces any that the guide has set; a latent that several data share gets the sum of
    their baselines. If the baseline has a network, the same step trains it on the squared difference between baseline
    and cost. (Mnih and Gregor 2014, arXiv 1402.0030.)

    *Approximates* the ELBO of the discrete model. *With* P codes for each datum, and a baseline that earlier steps have
    trained. *Requires* a discrete site. *Bias*: none. A batch that observes all discrete sites neither uses nor updates
    the baseline.

    Args:
        own: the baseline, which keeps its state from step to step.
        num_particles: P, samples per datum.

    Raises:
        ValueError: when called, if the model has no discrete site, latent or observed, or the baseline does not have
            one number for each datum.

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

    def __reduce_ex__(self, protocol: Any) -> str | tuple[Any, ...]:
        forget_leaves(self.own)
        return super().__reduce_ex__(protocol)

    def loss(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> float:
        """Return an estimate of the loss in nats, summed over the data."""
        loss: float = self._stock.loss(model, guide, *args, **kwargs)
        return loss

    def loss_and_grads(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> float:
        """Return the loss, and add gradients to `.grad` of all parameters, including the baseline's."""
        for name, parameter in self.own.named_parameters():
            announce(param_with_module_name(type(self).__name__, name), parameter)
        baseline = self.own(args[0] if args else None)
        sizes: list[int] = []
        labels = _Labels()

        def with_baseline(*args: Any, **kwargs: Any) -> Any:
            with _BaselineMessenger() as messenger:
                result = guide(*args, **kwargs)
            if messenger.sites:
                sizes.append(messenger.give(baseline))
            return result

        loss: float = self._stock.loss_and_grads(labels(model), with_baseline, *args, **kwargs)
        if sizes:
            self.own.update(-loss * self.num_particles / sizes[-1])
        elif not labels.found:
            raise no_discrete_site()
        return loss


@final
class BaselineGradient(SiteGradient):
    """The score-function gradient of one latent with a learned baseline; the other latents may be treated in any way.

    Args:
        baseline: the baseline.
    """

    def __init__(self, baseline: RunningBaseline | NeuralBaseline) -> None:
        super().__init__()
        self.baseline = baseline

    @override
    def forward(self, rows: Rows, name: str) -> SiteEstimate:
        shape = rows.target.layout.batch_shape
        baseline = _of_each(self.baseline(rows.arguments[0] if rows.arguments else None), shape).reshape(-1)
        score = rows.base.q.sites[name].score(rows.base.codes)
        advantages = rows.costs - rows.log_weights.detach().exp() * baseline.detach().to(rows.costs)
        error = (rows.mean(rows.costs) - baseline).square().sum()
        return SiteEstimate((advantages * score).sum(), error if error.requires_grad else None)

    @override
    def learn(self, mean: Tensor) -> None:
        self.baseline.update(mean)


def _of_each(baseline: Tensor, shape: Size) -> Tensor:
    """Return the baseline of each datum.

    Raises:
        ValueError: if the baseline does not have one number for each datum.
    """
    try:
        return baseline.expand(shape)
    except RuntimeError as error:
        raise ValueError(
            f"Expected a baseline for data of batch shape {tuple(shape)}, that of the guide's scored latents, "
            f"but found one of shape {tuple(baseline.shape)}. Try baseline='running', which is one number."
        ) from error


class _Baselined(NamedTuple):
    """A latent without `rsample` that gets a baseline."""

    batch_shape: Size
    dtype: torch.dtype  # of its costs
    infer: Messages  # its settings


@final
class _Labels(Messenger):
    """Records whether a model observes a discrete site."""

    def __init__(self) -> None:
        super().__init__()
        self.found = False

    def _pyro_post_sample(self, msg: Messages) -> None:
        self.found |= bool(msg["is_observed"]) and is_random(msg) and kind_of(msg["fn"]) is not None


@final
class _BaselineMessenger(Messenger):
    """Finds the latents of a guide that are scored, and passes a baseline for each to `TraceGraph_ELBO`."""

    def __init__(self) -> None:
        super().__init__()
        self.sites: list[_Baselined] = []

    def _pyro_sample(self, msg: Messages) -> None:
        msg["infer"] = dict(msg["infer"])  # a copy, so that the program's own settings do not change

    def _pyro_post_sample(self, msg: Messages) -> None:
        # Read it here, after the sample: the outer plate of particles has now expanded the site. Its shape is a tuple
        # if its logits depend on another sample.
        if is_random(msg) and not msg["is_observed"] and not msg["fn"].has_rsample:
            found = discrete(msg["fn"])
            dtype = msg["value"].dtype if found is None else found.natural.dtype
            self.sites.append(_Baselined(Size(msg["fn"].batch_shape), dtype, msg["infer"]))

    def give(self, baseline: Tensor) -> int:
        """Set the baseline of each site, of which there is at least one, and return the number of data.

        Raises:
            ValueError: if the baseline does not have one number for each datum.
        """
        cells = Cells.of([site.batch_shape for site in self.sites])
        of_each = _of_each(baseline, cells.shape)
        for site in self.sites:
            # Costs of data that share a latent add up, and so do their baselines.
            of_site = of_each.sum_to_size(cells.own_shape(site.batch_shape))
            value = cells.taken(of_site, cells.sizes(site.batch_shape)).reshape(site.batch_shape).to(site.dtype)
            while value.shape[:1] == (1,):  # Pyro squeezes the costs of a batch of one in the same way
                value = value.squeeze(0)
            site.infer["baseline"] = {"baseline_value": value}
        return cells.shape.numel()
