"""Define a VAE with both a discrete and a continuous code, as a Pyro model and guide."""

from collections.abc import Sequence
from typing import Any, Final, final

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn
from typing_extensions import override

from ..distributions.one_hot import FactorizedOneHotCategorical
from ..handlers.sites import at_temperature
from .base import VAE, check_sizes, widths_by_name
from .networks import BroadcastMLP, mlp, mlp_encoder
from .observations import Observation


@final
class JointVAE(VAE):
    r"""A variational autoencoder whose code is N one-hots of K categories and a Gaussian of dimension L.

    .. math::

        y_n &\sim \mathrm{Categorical}(1 / K), \quad n = 1..N, \quad z \sim \mathrm{Normal}(0, I) \\
        x | y, z &\sim \mathrm{Observation}(\mathrm{decoder}(y, z)) \\
        q(y, z | x) &= q(z | x) \prod_n q(y_n | x)

    This is the model of Dupont 2018 (*Learning Disentangled Joint Continuous and Discrete Representations*, arXiv
    1804.00104), without the capacity terms of its objective. The sites are "y", one-hots (N, K), "z" (L,) and "x", in
    the plate "data".

    Args:
        data_dim: D.
        num_latents: N.
        num_categories: K.
        latent_dim: L, the dimension of z.
        hidden: widths of the encoders' hidden layers; the decoder uses them in reverse order.
        observation: a name or a module, as for :class:`~pyro_gvae.CategoricalVAE`.
        **options: `scale`, `num_levels`, `temperature`, `prior_temperature` and `name`, as for
            :class:`~pyro_gvae.CategoricalVAE`.

    Raises:
        ValueError: if a size or a temperature is out of range, or the observation or one of its options is unknown.

    Example:
        >>> from pyro_gvae import estimator, make_step
        >>> vae = JointVAE(data_dim=6, num_latents=1, num_categories=3, latent_dim=2, hidden=(5,))
        >>> step = make_step(vae, estimator("gumbel-softmax"))
        >>> step(torch.ones(4, 6)).item() > 0
        True
    """

    prior_logits: Tensor

    def __init__(
        self,
        data_dim: int = 784,
        num_latents: int = 1,
        num_categories: int = 10,
        latent_dim: int = 10,
        hidden: Sequence[int] = (512, 256),
        *,
        observation: str | Observation = "bernoulli",
        **options: Any,
    ) -> None:
        check_sizes(
            data_dim=data_dim,
            num_latents=num_latents,
            num_categories=num_categories,
            latent_dim=latent_dim,
            **widths_by_name(hidden),
        )
        super().__init__(data_dim, observation, **options)
        self.num_latents: Final = num_latents
        self.num_categories: Final = num_categories
        self.latent_dim: Final = latent_dim
        self.discrete_encoder = mlp_encoder(self.input_dim, hidden, num_latents, num_categories)
        self.continuous_encoder = nn.Sequential(*mlp([self.input_dim, *hidden, 2 * latent_dim]))
        self.decoder = BroadcastMLP([num_latents * num_categories, latent_dim], [*reversed(hidden), self.natural_dim])
        self.register_buffer("prior_logits", torch.zeros(num_latents, num_categories))

    @override
    def model(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Run the model p(y) p(z) p(x | y, z).

        Args:
            x: data (B, D).

        Returns:
            The codes y (B, N, K) and z (B, L).
        """
        self._begin(x)
        with pyro.plate("data", len(x)):
            prior = FactorizedOneHotCategorical(logits=self.prior_logits)
            y = pyro.sample("y", prior, infer=at_temperature(self.prior_temperature))  # (B, N, K)
            z = pyro.sample("z", dist.Normal(x.new_zeros(self.latent_dim), 1.0).to_event(1))  # (B, L)
            pyro.sample("x", self.observation(self.decoder(y.flatten(-2), z)), obs=x)
        return y, z

    @override
    def guide(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Run the guide q(y | x) q(z | x).

        Args:
            x: data (B, D).

        Returns:
            The codes y (B, N, K) and z (B, L).
        """
        self._begin(x)
        seen = self.observation.inputs(x)
        with pyro.plate("data", len(x)):
            posterior = FactorizedOneHotCategorical(logits=self.discrete_encoder(seen))
            y = pyro.sample("y", posterior, infer=at_temperature(self.temperature))  # (B, N, K)
            loc, log_scale = self.continuous_encoder(seen).chunk(2, -1)
            z = pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))  # (B, L)
        return y, z
