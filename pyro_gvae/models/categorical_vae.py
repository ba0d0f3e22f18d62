"""The categorical VAE, a Pyro model and guide."""

import functools
import threading
from collections.abc import Sequence
from typing import Any, Final

import pyro
import torch
from pyro import poutine
from pyro.infer.util import is_validation_enabled
from pyro.params import param_with_module_name
from torch import Tensor, nn

from ..distributions.one_hot import FactorizedOneHotCategorical
from ..distributions.parameters import check_temperature, scalar_temperature
from ..handlers import relax
from ..handlers.parameters import OwnParameters, announce
from ..handlers.sites import at_temperature
from ..runtime.compat.pyro import forget_leaf, is_random
from .networks import mlp_decoder, mlp_encoder
from .observations import Observation, as_observation

#: Pyro's handlers are global, but `DataParallel` calls each replica in its own thread.
_ONE_AT_A_TIME = threading.RLock()


class CategoricalVAE(nn.Module):
    r"""A variational autoencoder whose latent code is N one-hots of K categories.

    .. math::

        z_n &\sim \mathrm{Categorical}(\mathrm{softmax}(\mathrm{prior\_logits}_n)), \quad n = 1..N \\
        x &\sim \mathrm{Observation}(\mathrm{decoder}(z)) \\
        q(z_n | x) &= \mathrm{Categorical}(\mathrm{softmax}(\mathrm{encoder}(x)_n))

    Model and guide have one discrete site "z" in the plate "data", and the model observes "x". Both are decorated with
    :func:`relax` (Jang et al. 2017, arXiv 1611.01144; Maddison et al. 2017, arXiv 1611.00712), so that "z" is a
    `RelaxedOneHotCategorical`, scored in log space at "z_log". As they are, `model` and `guide` train in stock `SVI`
    with `Trace_ELBO`. :func:`discretize` and :func:`enumerated` make them discrete.

    Args:
        data_dim: D.
        num_latents: N.
        num_categories: K.
        hidden: widths of the encoder's hidden layers; the decoder uses them in reverse order.
        observation: "bernoulli", "continuous-bernoulli", "gaussian" or "categorical" pixels, or your own
            :class:`~pyro_gvae.models.observations.Observation`.
        scale: standard deviation of the "gaussian" observation; None learns one scale for all pixels.
        num_levels: levels of the "categorical" observation, whose pixels are whole numbers 0 .. num_levels - 1.
        learn_prior: learn `prior_logits`; otherwise the prior is uniform.
        temperature: temperature of the guide's relaxation.
        prior_temperature: temperature of the model's relaxation. The defaults 2/3 and 2/5 are those of Maddison et al.
            for 8 categories.
        encoder: a module x (B, D) -> logits (B, N, K) that replaces the MLP.
        decoder: a module z (..., N, K) -> natural parameters (..., D) that replaces the MLP.
        name: prefix of the parameters' names in Pyro's param store.

    Attributes:
        observation: the module that builds p(x | z): `observation(decoder(z))`.

    Raises:
        ValueError: if a size or a temperature is out of range, or the observation or one of its options is unknown.

    Example:
        >>> from pyro.infer import SVI, Trace_ELBO
        >>> vae = CategoricalVAE(data_dim=64, num_latents=4, num_categories=8, hidden=(32,))
        >>> svi = SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": 1e-3}), Trace_ELBO())
        >>> svi.step(torch.rand(10, 64).round()) > 0
        True
    """

    _temperature: Tensor
    _prior_temperature: Tensor
    prior_logits: Tensor
    observation: Observation

    def __init__(
        self,
        data_dim: int = 784,
        num_latents: int = 20,
        num_categories: int = 10,
        hidden: Sequence[int] = (512, 256),
        observation: str | Observation = "bernoulli",
        *,
        scale: float | None = None,
        num_levels: int = 256,
        learn_prior: bool = False,
        temperature: float = 2 / 3,
        prior_temperature: float = 2 / 5,
        encoder: nn.Module | None = None,
        decoder: nn.Module | None = None,
        name: str = "vae",
    ) -> None:
        super().__init__()
        _check_sizes(data_dim, num_latents, num_categories, hidden)
        self.data_dim: Final = data_dim
        self.num_latents: Final = num_latents
        self.num_categories: Final = num_categories
        self.name: Final = name
        self.observation = as_observation(observation, scale=scale, num_levels=num_levels)
        natural_dim = data_dim * self.observation.natural_per_pixel
        self.encoder = encoder or mlp_encoder(data_dim, hidden, num_latents, num_categories)
        self.decoder = decoder or mlp_decoder(num_latents, num_categories, tuple(hidden)[::-1], natural_dim)
        uniform = torch.zeros(num_latents, num_categories)  # (N, K)
        if learn_prior:
            self.prior_logits = nn.Parameter(uniform)
        else:
            self.register_buffer("prior_logits", uniform)
        # Temperatures are buffers, so that annealing changes a tensor that a recorded graph reads, not the graph.
        self.register_buffer("_temperature", scalar_temperature(temperature, uniform))
        self.register_buffer("_prior_temperature", scalar_temperature(prior_temperature, uniform))

    @relax()
    def model(self, x: Tensor) -> Tensor:
        """Run the model p(z) p(x | z).

        Args:
            x: data (B, D).

        Returns:
            The code z (B, N, K).

        Raises:
            ValueError: if x does not have shape (B, D) or, with Pyro's validation, lies outside the observation's
                range.
        """
        self._check_data(x)
        self._register()
        with pyro.plate("data", len(x)):
            prior = FactorizedOneHotCategorical(logits=self.prior_logits)
            z = pyro.sample("z", prior, infer=at_temperature(self.prior_temperature))  # (B, N, K)
            pyro.sample("x", self.observation(self.decoder(z)), obs=x)
        code: Tensor = z
        return code

    @relax()
    def guide(self, x: Tensor) -> Tensor:
        """Run the guide q(z | x).

        Args:
            x: data (B, D).

        Returns:
            The code z (B, N, K).

        Raises:
            ValueError: if x does not have shape (B, D), or the encoder's logits do not have shape (B, N, K).
        """
        self._check_data(x)
        self._register()
        with pyro.plate("data", len(x)):
            logits = self.encoder(x)  # (B, N, K)
            if logits.shape != (len(x), *self.prior_logits.shape):
                raise ValueError(
                    f"Expected the encoder to return logits of shape {(len(x), *self.prior_logits.shape)}, but found "
                    f"{tuple(logits.shape)}. Try nn.Unflatten(-1, (num_latents, num_categories)) as its last layer."
                )
            posterior = FactorizedOneHotCategorical(logits=logits)
            code: Tensor = pyro.sample("z", posterior, infer=at_temperature(self.temperature))  # (B, N, K)
        return code

    def forward(self, x: Tensor) -> Tensor:
        """Return the loss of each datum of x (B, D), from one sample of its code: shape (B,), in nats.

        It is minus the ELBO of `model` and `guide`, as a function of tensors and of the module's own parameters. This
        serves `DistributedDataParallel` and other tools that train by calling a module, `vae(x).mean().backward()`. The
        outermost handler decides what the code is, as it does for the pair: `straight_through(vae)(x)`.

        Raises:
            ValueError: if a handler makes the code discrete and gradients are enabled.
        """
        with _ONE_AT_A_TIME, OwnParameters():
            guide = poutine.trace(self.guide).get_trace(x)
            model = poutine.trace(poutine.replay(self.model, trace=_drawn(guide))).get_trace(x)
        code: Any = guide.nodes["z"]["fn"]
        log_q = _log_density(guide)
        if log_q.requires_grad and not code.has_rsample:
            raise ValueError(
                f"Expected a code that gradients flow through, but found a {type(code).__name__}: the gradient of "
                "vae(x) would lack its score. Try straight_through(vae)(x), or an estimator that scores or sums."
            )
        return log_q - _log_density(model)

    def __reduce_ex__(self, protocol: Any) -> str | tuple[Any, ...]:
        for parameter in self.parameters():
            forget_leaf(parameter)
        return super().__reduce_ex__(protocol)

    @property
    def temperature(self) -> Tensor:
        """The guide's temperature, shape (); assign a number to anneal it."""
        return self._temperature

    @temperature.setter
    def temperature(self, value: float | Tensor) -> None:
        check_temperature(value)
        self._temperature.copy_(scalar_temperature(value, self._temperature))

    @property
    def prior_temperature(self) -> Tensor:
        """The model's temperature, shape (); assign a number to anneal it."""
        return self._prior_temperature

    @prior_temperature.setter
    def prior_temperature(self, value: float | Tensor) -> None:
        check_temperature(value)
        self._prior_temperature.copy_(scalar_temperature(value, self._prior_temperature))

    def _register(self) -> None:
        """Register the parameters with Pyro. Refuse if Pyro would train copies that the networks do not use."""
        if pyro.settings.get("module_local_params"):
            for name, parameter in self.named_parameters():
                announce(param_with_module_name(self.name, name), parameter)
            return
        store = pyro.get_param_store()
        for name, parameter in self.named_parameters():
            key = param_with_module_name(self.name, name)
            found = pyro.param(key, parameter) if parameter.requires_grad else parameter
            # Handlers may wrap or replace the value that pyro.param returns, so compare with the store's entry too.
            if found is not parameter and key in store and found is store.get_param(key):
                raise ValueError(
                    f"Expected Pyro's param store to hold this module's '{name}', but found another tensor under "
                    f"'{key}'. Try pyro.clear_param_store(), or CategoricalVAE(name=..) with another name."
                )

    def _check_data(self, x: Tensor) -> None:
        if not isinstance(x, Tensor):
            raise ValueError(f"Expected data as a tensor, but found {type(x).__name__}. Try torch.as_tensor(x).")
        if x.dim() != 2 or x.shape[-1] != self.data_dim or len(x) == 0:
            raise ValueError(
                f"Expected data of shape (B, {self.data_dim}), but found {tuple(x.shape)}. Try x.flatten(1)."
            )

        dtype = next(self.parameters(), self.prior_logits).dtype  # replicas of DataParallel have no parameters
        if x.dtype != dtype and not torch.is_autocast_enabled(x.device.type):
            raise ValueError(f"Expected data of the networks' dtype {dtype}, but found {x.dtype}. Try x.to({dtype}).")
        if is_validation_enabled():
            self.observation.check(x)


def _drawn(trace: poutine.Trace) -> poutine.Trace:
    """Return the trace without functions of other sites, which a handler computes again from those sites."""
    drawn = trace.copy()
    for name, site in trace.nodes.items():
        if site["type"] == "sample" and not is_random(site):
            drawn.remove_node(name)
    return drawn


def _log_density(trace: poutine.Trace) -> Tensor:
    """Return the log-density of all sampled and observed values of each datum, shape (B,)."""
    trace.compute_log_prob()
    sites = (site for site in trace.nodes.values() if site["type"] == "sample" and is_random(site))
    return functools.reduce(torch.add, (site["log_prob"] for site in sites))


def _check_sizes(data_dim: int, num_latents: int, num_categories: int, hidden: Sequence[int]) -> None:
    sizes = {"data_dim": data_dim, "num_latents": num_latents, "num_categories": num_categories}
    sizes |= {f"hidden[{i}]": width for i, width in enumerate(hidden)}
    for name, size in sizes.items():
        least = 2 if name == "num_categories" else 1
        if size < least:
            raise ValueError(f"Expected {name} of at least {least}, but found {size}.")
