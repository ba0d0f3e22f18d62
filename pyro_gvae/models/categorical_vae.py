"""Define the categorical VAE, as a Pyro model and guide."""

import functools
from collections.abc import Sequence
from typing import Any

import pyro
import torch
from pyro import poutine
from torch import Tensor, nn

from ..config.units import codes_in_words
from ..distributions.coupled import CodePrior, coupled
from ..distributions.one_hot import FactorizedOneHotCategorical
from ..handlers import relax
from ..handlers.parameters import OwnParameters
from ..handlers.sites import at_temperature
from ..programs.modes import judging
from ..runtime.compat.pyro import is_random
from .base import ONE_AT_A_TIME, VAE, check_sizes, widths_by_name
from .networks import mlp_decoder, mlp_encoder
from .observations import Observation
from .priors import as_prior


class CategoricalVAE(VAE):
    r"""A variational autoencoder whose latent code is N one-hots of K categories.

    .. math::

        z_n &\sim \mathrm{Categorical}(\mathrm{softmax}(\mathrm{prior\_logits}_n)), \quad n = 1..N \\
        x &\sim \mathrm{Observation}(\mathrm{decoder}(z)) \\
        q(z_n | x) &= \mathrm{Categorical}(\mathrm{softmax}(\mathrm{encoder}(x)_n))

    Model and guide have one discrete site "z" in the plate "data", and the model observes "x". Both are decorated with
    :func:`relax` (Jang et al. 2017, arXiv 1611.01144; Maddison et al. 2017, arXiv 1611.00712), so that "z" is a
    `RelaxedOneHotCategorical`, scored in log space at "z_log". Without further changes, `model` and `guide` train in
    stock `SVI` with `Trace_ELBO`. :func:`discretize` and :func:`enumerated` make them discrete.

    Args:
        data_dim: D.
        num_latents: N.
        num_categories: K.
        hidden: widths of the encoder's hidden layers; the decoder uses them in reverse order.
        observation: "bernoulli", "continuous-bernoulli", "gaussian" or "categorical" pixels, "multinomial" counts, or
            your own :class:`~pyro_gvae.models.observations.Observation`.
        scale: standard deviation of the "gaussian" observation; None learns one scale for all pixels.
        num_levels: levels of the "categorical" observation, whose pixels are whole numbers 0 .. num_levels - 1.
        prior: "uniform"; "independent" digits with learned probabilities, `prior_logits`; digits that depend on each
            other, "joint", "markov", "tree", "autoregressive" or "mixture"; or your own
            :class:`~pyro_gvae.distributions.coupled.CodePrior`.
        learn_prior: the same as the prior "independent".
        temperature: temperature of the guide's relaxation.
        prior_temperature: temperature of the model's relaxation. The defaults 2/3 and 2/5 are those of Maddison et al.
            for 8 categories.
        encoder: a module x (B, D) -> logits (B, N, K) that replaces the MLP; for tables, x is what the observation's
            `inputs` returns.
        decoder: a module z (..., N, K) -> natural parameters (..., D) that replaces the MLP.
        name: prefix of the parameters' names in Pyro's param store.

    Attributes:
        observation: the module that builds p(x | z): `observation(decoder(z))`.
        prior: the module of a prior whose digits depend on each other, or None. It can be replaced after training, and
            :func:`~pyro_gvae.train.refit.fit_prior` trains it alone.

    Raises:
        ValueError: if a size or a temperature is out of range, or the observation or one of its options is unknown.

    Example:
        >>> from pyro.infer import SVI, Trace_ELBO
        >>> vae = CategoricalVAE(data_dim=64, num_latents=4, num_categories=8, hidden=(32,))
        >>> svi = SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": 1e-3}), Trace_ELBO())
        >>> svi.step(torch.rand(10, 64).round()) > 0
        True
    """

    prior_logits: Tensor

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
        prior: str | CodePrior = "uniform",
        learn_prior: bool = False,
        temperature: float = 2 / 3,
        prior_temperature: float = 2 / 5,
        encoder: nn.Module | None = None,
        decoder: nn.Module | None = None,
        name: str = "vae",
    ) -> None:
        check_sizes(data_dim=data_dim, num_latents=num_latents, num_categories=num_categories, **widths_by_name(hidden))
        super().__init__(
            data_dim,
            observation,
            scale=scale,
            num_levels=num_levels,
            temperature=temperature,
            prior_temperature=prior_temperature,
            name=name,
        )
        self.num_latents = num_latents  # not Final: pruning makes the sizes smaller
        self.num_categories = num_categories
        self.encoder = encoder or mlp_encoder(self.input_dim, hidden, num_latents, num_categories)
        self.decoder = decoder or mlp_decoder(num_latents, num_categories, tuple(hidden)[::-1], self.natural_dim)
        self.prior: CodePrior | None = as_prior(prior, num_latents, num_categories)
        if learn_prior and prior not in ("uniform", "independent"):
            raise ValueError(f"Expected learn_prior=False with the prior '{prior}', which is learned, but found True.")
        uniform = torch.zeros(num_latents, num_categories)  # (N, K)
        if learn_prior or prior == "independent":
            self.prior_logits = nn.Parameter(uniform)
        else:
            self.register_buffer("prior_logits", uniform)

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
        self._begin(x)
        with pyro.plate("data", len(x)):
            digits = FactorizedOneHotCategorical(logits=self.prior_logits)
            prior = digits if self.prior is None else coupled(self.prior)
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
        self._begin(x)
        with pyro.plate("data", len(x)):
            logits = self.guide_logits(x)
            if logits.shape != (len(x), *self.prior_logits.shape):
                raise ValueError(
                    f"Expected the encoder to return logits of shape {(len(x), *self.prior_logits.shape)}, but found "
                    f"{tuple(logits.shape)}. Try nn.Unflatten(-1, (num_latents, num_categories)) as its last layer."
                )
            posterior = FactorizedOneHotCategorical(logits=logits)
            code: Tensor = pyro.sample("z", posterior, infer=at_temperature(self.temperature))  # (B, N, K)
        return code

    @judging
    @torch.no_grad()
    def encode(self, x: Tensor) -> Tensor:
        """Return the most probable category of each latent under the guide.

        For one-hots, samples and codes of the exact posterior, use :func:`pyro_gvae.encode`.

        Args:
            x: data (B, D).

        Returns:
            Categories from 0 to K - 1, integers (B, N).

        Raises:
            ValueError: if x does not have shape (B, D).

        Example:
            >>> CategoricalVAE(data_dim=6, num_latents=2, num_categories=3, hidden=(5,)).encode(torch.ones(4, 6)).shape
            torch.Size([4, 2])
        """
        self._check_data(x)
        return self.guide_logits(x).argmax(-1)

    def guide_logits(self, x: Tensor) -> Tensor:
        """Return the logits of the guide, (B, N, K), for data x (B, D)."""
        logits: Tensor = self.encoder(self.observation.inputs(x))
        return logits

    def extra_repr(self) -> str:
        """Return the sizes and the temperature that `repr` shows."""
        code = f"num_latents={self.num_latents}, num_categories={self.num_categories}"
        codes = codes_in_words(self.num_latents, self.num_categories)
        kind = type(self.observation).__name__
        warm = "" if self.temperature.is_meta else f", temperature={self.temperature.item():.3g}"
        return f"data_dim={self.data_dim}, {code}, codes={codes}{warm}, observation={kind}"

    def forward(self, x: Tensor) -> Tensor:
        """Return the loss of each datum of x (B, D), from one sample of its code: shape (B,), in nats.

        The loss is minus the ELBO of `model` and `guide`, computed from tensors and the module's own parameters alone.
        This serves `DistributedDataParallel` and other tools that train by calling a module,
        `vae(x).mean().backward()`. As for `model` and `guide`, the outermost handler decides how the code is drawn:
        `straight_through(vae)(x)`.

        Raises:
            ValueError: if a handler makes the code discrete and gradients are enabled.
        """
        with ONE_AT_A_TIME, OwnParameters():
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


def _drawn(trace: poutine.Trace) -> poutine.Trace:
    """Return the trace without deterministic sites, which a handler computes again from the drawn ones."""
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
