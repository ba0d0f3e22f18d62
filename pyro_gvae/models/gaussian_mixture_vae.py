"""Define a VAE whose prior is a mixture of Gaussians, as a Pyro model and guide."""

from collections.abc import Sequence
from typing import Any, Final, final

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn
from typing_extensions import override

from ..handlers.sites import at_temperature
from .base import VAE, check_sizes, widths_by_name
from .networks import BroadcastMLP, mlp
from .observations import Observation


@final
class GaussianMixtureVAE(VAE):
    r"""A variational autoencoder whose Gaussian code z comes from one of K components, which cluster the data.

    .. math::

        y &\sim \mathrm{Categorical}(\mathrm{softmax}(\mathrm{prior\_logits})) \\
        z | y &\sim \mathrm{Normal}(\mathrm{means}_y, \exp(\mathrm{log\_scales}_y)) \\
        x | z &\sim \mathrm{Observation}(\mathrm{decoder}(z)) \\
        q(y, z | x) &= q(y | x) \, q(z | x, y)

    The model is that of Jiang et al. 2017 (*Variational Deep Embedding*, arXiv 1611.05148); the guide of z depends on
    the component. The sites are "y", a one-hot (K,), "z" (L,) and "x", in the plate "data". Estimators sum, score or
    relax "y" like any discrete latent; "z" has a pathwise gradient.

    Args:
        data_dim: D.
        num_components: K.
        latent_dim: L, the dimension of z.
        hidden: widths of the encoders' hidden layers; the decoder uses them in reverse order.
        observation: a name or a module, as for :class:`~pyro_gvae.CategoricalVAE`.
        **options: `scale`, `num_levels`, `temperature`, `prior_temperature` and `name`, as for
            :class:`~pyro_gvae.CategoricalVAE`.

    Raises:
        ValueError: if a size or a temperature is out of range, or the observation or one of its options is unknown.

    Example:
        >>> from pyro_gvae import estimator, make_step
        >>> vae = GaussianMixtureVAE(data_dim=6, num_components=3, latent_dim=2, hidden=(5,))
        >>> step = make_step(vae, estimator("exact"))
        >>> step(torch.ones(4, 6)).item() > 0
        True
    """

    def __init__(
        self,
        data_dim: int = 784,
        num_components: int = 10,
        latent_dim: int = 10,
        hidden: Sequence[int] = (512, 256),
        *,
        observation: str | Observation = "bernoulli",
        **options: Any,
    ) -> None:
        check_sizes(data_dim=data_dim, num_components=num_components, latent_dim=latent_dim, **widths_by_name(hidden))
        super().__init__(data_dim, observation, **options)
        self.num_components: Final = num_components
        self.latent_dim: Final = latent_dim
        self.component_encoder = nn.Sequential(*mlp([self.input_dim, *hidden, num_components]))
        self.encoder = BroadcastMLP([self.input_dim, num_components], [*hidden, 2 * latent_dim])
        self.decoder = nn.Sequential(*mlp([latent_dim, *reversed(hidden), self.natural_dim]))
        self.prior_logits = nn.Parameter(torch.zeros(num_components))
        self.means = nn.Parameter(torch.randn(num_components, latent_dim))  # equal components would stay equal
        self.log_scales = nn.Parameter(torch.zeros(num_components, latent_dim))

    @override
    def model(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Run the model p(y) p(z | y) p(x | z).

        Args:
            x: data (B, D).

        Returns:
            The component y (B, K), a one-hot, and the code z (B, L).
        """
        self._begin(x)
        with pyro.plate("data", len(x)):
            prior = dist.OneHotCategorical(logits=self.prior_logits)
            y = pyro.sample("y", prior, infer=at_temperature(self.prior_temperature))  # (B, K)
            z = pyro.sample("z", dist.Normal(y @ self.means, (y @ self.log_scales).exp()).to_event(1))  # (B, L)
            pyro.sample("x", self.observation(self.decoder(z)), obs=x)
        return y, z

    @override
    def guide(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Run the guide q(y | x) q(z | x, y).

        Args:
            x: data (B, D).

        Returns:
            The component y (B, K), a one-hot, and the code z (B, L).
        """
        self._begin(x)
        seen = self.observation.inputs(x)
        with pyro.plate("data", len(x)):
            posterior = dist.OneHotCategorical(logits=self.component_encoder(seen))
            y = pyro.sample("y", posterior, infer=at_temperature(self.temperature))  # (B, K)
            loc, log_scale = self.encoder(seen, y).chunk(2, -1)
            z = pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))  # (B, L)
        return y, z
