"""Define a VAE whose code is bits, as a Pyro model and guide."""

from collections.abc import Sequence
from typing import Any, Final, final

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn
from typing_extensions import override

from ..handlers.sites import at_temperature
from .base import VAE, check_sizes, widths_by_name
from .networks import mlp
from .observations import Observation


@final
class BernoulliVAE(VAE):
    r"""A variational autoencoder whose code is N bits.

    .. math::

        z_n &\sim \mathrm{Bernoulli}(\mathrm{sigmoid}(\mathrm{prior\_logits}_n)), \quad n = 1..N \\
        x | z &\sim \mathrm{Observation}(\mathrm{decoder}(z)) \\
        q(z_n | x) &= \mathrm{Bernoulli}(\mathrm{sigmoid}(\mathrm{encoder}(x)_n))

    This is the model with one stochastic layer of Mnih and Gregor 2014 (arXiv 1402.0030) and of Dong et al. 2020
    (*DisARM*, arXiv 2006.10680). The sites are "z" (N,), numbers 0 and 1, and "x", in the plate "data". Exact sums go
    over all 2^N joint codes.

    Args:
        data_dim: D.
        num_bits: N.
        hidden: widths of the encoder's hidden layers; the decoder uses them in reverse order.
        observation: a name or a module, as for :class:`~pyro_gvae.CategoricalVAE`.
        **options: `scale`, `num_levels`, `temperature`, `prior_temperature` and `name`, as for
            :class:`~pyro_gvae.CategoricalVAE`.

    Raises:
        ValueError: if a size or a temperature is out of range, or the observation or one of its options is unknown.

    Example:
        >>> from pyro_gvae import exact
        >>> vae = BernoulliVAE(data_dim=6, num_bits=3, hidden=(5,))
        >>> x = torch.ones(4, 6)
        >>> bool((exact.elbo(vae, x) <= exact.log_evidence(vae, x)).all())
        True
    """

    def __init__(
        self,
        data_dim: int = 784,
        num_bits: int = 200,
        hidden: Sequence[int] = (200,),
        *,
        observation: str | Observation = "bernoulli",
        **options: Any,
    ) -> None:
        check_sizes(data_dim=data_dim, num_bits=num_bits, **widths_by_name(hidden))
        super().__init__(data_dim, observation, **options)
        self.num_bits: Final = num_bits
        self.encoder = nn.Sequential(*mlp([self.input_dim, *hidden, num_bits]))
        self.decoder = nn.Sequential(*mlp([num_bits, *reversed(hidden), self.natural_dim]))
        self.prior_logits = nn.Parameter(torch.zeros(num_bits))

    @override
    def model(self, x: Tensor) -> Tensor:
        """Run the model p(z) p(x | z).

        Args:
            x: data (B, D).

        Returns:
            The bits z (B, N).
        """
        self._begin(x)
        with pyro.plate("data", len(x)):
            prior = dist.Bernoulli(logits=self.prior_logits).to_event(1)
            z: Tensor = pyro.sample("z", prior, infer=at_temperature(self.prior_temperature))  # (B, N)
            pyro.sample("x", self.observation(self.decoder(z)), obs=x)
        return z

    @override
    def guide(self, x: Tensor) -> Tensor:
        """Run the guide q(z | x).

        Args:
            x: data (B, D).

        Returns:
            The bits z (B, N).
        """
        self._begin(x)
        with pyro.plate("data", len(x)):
            posterior = dist.Bernoulli(logits=self.encoder(self.observation.inputs(x))).to_event(1)
            z: Tensor = pyro.sample("z", posterior, infer=at_temperature(self.temperature))  # (B, N)
        return z
