"""Define a VAE with several layers of one-hots, as a Pyro model and guide."""

from collections.abc import Sequence
from typing import Any, Final, final

import pyro
import torch
from torch import Tensor, nn
from typing_extensions import override

from ..distributions.one_hot import FactorizedOneHotCategorical
from ..handlers.sites import at_temperature
from .base import VAE, check_sizes, widths_by_name
from .networks import mlp_decoder, mlp_encoder
from .observations import Observation


@final
class HierarchicalCategoricalVAE(VAE):
    r"""A variational autoencoder whose code has L layers of N one-hots of K categories; layer 1 is next to the data.

    .. math::

        z_L &\sim \mathrm{Categorical}(\mathrm{softmax}(\mathrm{prior\_logits})), \quad
        z_l | z_{l+1} \sim \mathrm{Categorical}(\mathrm{softmax}(\mathrm{down}_l(z_{l+1}))) \\
        x | z_1 &\sim \mathrm{Observation}(\mathrm{decoder}(z_1)) \\
        q(z_1, \ldots, z_L | x) &= q(z_1 | x) \prod_l q(z_{l+1} | z_l)

    The guide goes bottom-up, as in deep sigmoid belief networks (Mnih and Gregor 2014, *Neural Variational
    Inference and Learning in Belief Networks*, arXiv 1402.0030). The sites are "z1" to "zL", one-hots (N, K), and "x",
    in the plate "data" and in `pyro.markov`: exact sums go layer by layer, over the K^(2N) codes of two layers at a
    time. The history of `pyro.markov` spans all layers, since guide and model go through them in opposite orders.

    Args:
        data_dim: D.
        num_layers: L.
        num_latents: N, in each layer.
        num_categories: K.
        hidden: widths of the hidden layers between x and z_1; the decoder uses them in reverse order. One layer of the
            last width lies between two layers of codes.
        observation: a name or a module, as for :class:`~pyro_gvae.CategoricalVAE`.
        **options: `scale`, `num_levels`, `temperature`, `prior_temperature` and `name`, as for
            :class:`~pyro_gvae.CategoricalVAE`.

    Raises:
        ValueError: if a size or a temperature is out of range, or the observation or one of its options is unknown.

    Example:
        >>> from pyro_gvae import exact
        >>> vae = HierarchicalCategoricalVAE(6, num_layers=2, num_latents=1, num_categories=3, hidden=(5,))
        >>> x = torch.ones(4, 6)
        >>> bool((exact.elbo(vae, x) <= exact.log_evidence(vae, x)).all())
        True
    """

    def __init__(
        self,
        data_dim: int = 784,
        num_layers: int = 2,
        num_latents: int = 10,
        num_categories: int = 10,
        hidden: Sequence[int] = (512, 256),
        *,
        observation: str | Observation = "bernoulli",
        **options: Any,
    ) -> None:
        check_sizes(
            data_dim=data_dim,
            num_layers=num_layers,
            num_latents=num_latents,
            num_categories=num_categories,
            **widths_by_name(hidden),
        )
        super().__init__(data_dim, observation, **options)
        self.num_layers: Final = num_layers
        self.num_latents: Final = num_latents
        self.num_categories: Final = num_categories
        codes, between = (num_latents, num_categories), tuple(hidden)[-1:]
        self.encoder = mlp_encoder(self.input_dim, hidden, *codes)
        self.decoder = mlp_decoder(*codes, tuple(hidden)[::-1], self.natural_dim)

        def from_codes() -> nn.Module:
            return nn.Sequential(nn.Flatten(-2), mlp_encoder(num_latents * num_categories, between, *codes))

        self.up = nn.ModuleList(from_codes() for _ in range(num_layers - 1))  # z_l -> logits of z_(l+1)
        self.down = nn.ModuleList(from_codes() for _ in range(num_layers - 1))  # z_(l+1) -> logits of z_l
        self.prior_logits = nn.Parameter(torch.zeros(*codes))  # the prior of the top layer

    @property
    def sites(self) -> list[str]:
        """The names of the layers' sites, starting next to the data."""
        return [f"z{layer}" for layer in range(1, self.num_layers + 1)]

    @override
    def model(self, x: Tensor) -> list[Tensor]:
        """Run the model p(z_L) ... p(z_1 | z_2) p(x | z_1).

        Args:
            x: data (B, D).

        Returns:
            The codes z_1 to z_L, each (B, N, K).
        """
        self._begin(x)
        codes: list[Tensor] = []
        with pyro.plate("data", len(x)):
            for layer in pyro.markov(reversed(range(self.num_layers)), history=self.num_layers):
                logits = self.down[layer](codes[-1]) if codes else self.prior_logits
                codes.append(self._sample(self.sites[layer], logits, self.prior_temperature))
                if layer == 0:  # inside the loop: after it, no code is in the scope of pyro.markov
                    pyro.sample("x", self.observation(self.decoder(codes[-1])), obs=x)
        return codes[::-1]

    @override
    def guide(self, x: Tensor) -> list[Tensor]:
        """Run the guide q(z_1 | x) q(z_2 | z_1) ... q(z_L | z_(L-1)).

        Args:
            x: data (B, D).

        Returns:
            The codes z_1 to z_L, each (B, N, K).
        """
        self._begin(x)
        codes: list[Tensor] = []
        with pyro.plate("data", len(x)):
            for layer in pyro.markov(range(self.num_layers), history=self.num_layers):
                logits = self.up[layer - 1](codes[-1]) if codes else self.encoder(self.observation.inputs(x))
                codes.append(self._sample(self.sites[layer], logits, self.temperature))
        return codes

    @staticmethod
    def _sample(name: str, logits: Tensor, temperature: Tensor) -> Tensor:
        layer = FactorizedOneHotCategorical(logits=logits)
        code: Tensor = pyro.sample(name, layer, infer=at_temperature(temperature))  # (B, N, K)
        return code
