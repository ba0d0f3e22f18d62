"""Define a conditional VAE: a discrete code for data whose class is given, as a Pyro model and guide."""

from collections.abc import Sequence
from typing import Any, ClassVar, Final, final

import pyro
import torch
from pyro.infer.util import is_validation_enabled
from torch import Tensor
from typing_extensions import override

from ..config.models import Labels
from ..distributions.of_class import OfClass
from ..distributions.one_hot import FactorizedOneHotCategorical
from ..handlers.sites import at_temperature
from .base import VAE, check_sizes, one_hot_labels, widths_by_name
from .networks import BroadcastMLP
from .observations import Observation


@final
class ConditionalVAE(VAE):
    r"""A variational autoencoder p(x | y) of data whose class y is given; the code z is N one-hots of K categories.

    .. math::

        z_n &\sim \mathrm{Categorical}(1 / K), \quad n = 1..N \\
        x | z, y &\sim \mathrm{Observation}(\mathrm{decoder}(z, y)) \\
        q(z | x, y) &= \prod_n q(z_n | x, y)

    So :math:`p(x | y) = \sum_z p(z) \, p(x | z, y)`: the prior of z does not depend on y, and the code says what the
    class does not. The conditional model of Sohn, Lee and Yan 2015 (*Learning Structured Output Representation using
    Deep Conditional Generative Models*), with a discrete code and this prior. All bounds are those of log p(x | y). The
    sites are "z", one-hots (N, K), and "x", in the plate "data"; y is an argument. A sum over S codes decodes each once
    for each class, S C pairs in all, however many data there are.

    Args:
        data_dim: D.
        num_classes: C, the number of classes.
        num_latents: N.
        num_categories: K.
        hidden: widths of the encoder's hidden layers; the decoder uses them in reverse order.
        observation: a name or a module, as for :class:`~pyro_gvae.CategoricalVAE`.
        **options: `scale`, `num_levels`, `temperature`, `prior_temperature` and `name`, as for
            :class:`~pyro_gvae.CategoricalVAE`.

    Raises:
        ValueError: if a size or a temperature is out of range, or the observation or one of its options is unknown.

    Example:
        >>> from pyro_gvae import exact
        >>> vae = ConditionalVAE(data_dim=6, num_classes=3, num_latents=2, num_categories=4, hidden=(5,))
        >>> x, y = torch.ones(4, 6), torch.tensor([0, 2, 1, 1])
        >>> bool((exact.elbo(vae, x, y) <= exact.log_evidence(vae, x, y)).all())
        True
    """

    labels: ClassVar[Labels] = Labels.GIVEN
    prior_logits: Tensor

    def __init__(
        self,
        data_dim: int = 784,
        num_classes: int = 10,
        num_latents: int = 2,
        num_categories: int = 8,
        hidden: Sequence[int] = (512, 256),
        *,
        observation: str | Observation = "bernoulli",
        **options: Any,
    ) -> None:
        check_sizes(
            data_dim=data_dim,
            num_classes=num_classes,
            num_latents=num_latents,
            num_categories=num_categories,
            **widths_by_name(hidden),
        )
        super().__init__(data_dim, observation, **options)
        self.num_classes: Final = num_classes
        self.num_latents: Final = num_latents
        self.num_categories: Final = num_categories
        size = num_latents * num_categories
        self.encoder = BroadcastMLP([self.input_dim, num_classes], [*hidden, size])
        self.decoder = BroadcastMLP([size, num_classes], [*reversed(hidden), self.natural_dim])
        self.register_buffer("prior_logits", torch.zeros(num_latents, num_categories))

    @override
    def model(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        """Run the model p(z) p(x | z, y).

        Args:
            x: data (B, D).
            y: labels (B,), integers 0 to C - 1.

        Returns:
            The code z (B, N, K).

        Raises:
            ValueError: if labels are absent, do not have shape (B,), are not integers or, with Pyro's validation, are
                out of range.
        """
        self._begin(x)
        label = self._label(x, y)
        with pyro.plate("data", len(x)):
            prior = FactorizedOneHotCategorical(logits=self.prior_logits)
            z: Tensor = pyro.sample("z", prior, infer=at_temperature(self.prior_temperature))  # (B, N, K)
            pyro.sample("x", self._observed(z.flatten(-2), label, y), obs=x)
        return z

    def _observed(self, z: Tensor, label: Tensor, y: Any) -> Any:
        """Return p(x | z, y): of codes that all data share, decoded once for each class if these are fewer than data.

        Args:
            z: codes (..., B or 1, NK).
            label: one-hots (B, C).
            y: their numbers (B,).
        """
        if z.dim() > 2 and z.shape[-2] == 1 and self.num_classes < len(label):
            classes = torch.eye(self.num_classes, dtype=label.dtype, device=label.device)
            return OfClass(self.observation(self.decoder(z, classes)), y)  # (S, B), from (S, C)
        return self.observation(self.decoder(z, label))

    @override
    def guide(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        """Run the guide q(z | x, y).

        Args:
            x: data (B, D).
            y: labels (B,), as for :meth:`model`.

        Returns:
            The code z (B, N, K).

        Raises:
            ValueError: as :meth:`model`.
        """
        self._begin(x)
        label = self._label(x, y)
        with pyro.plate("data", len(x)):
            logits = self.encoder(self.observation.inputs(x), label).unflatten(-1, self.prior_logits.shape)
            posterior = FactorizedOneHotCategorical(logits=logits)
            z: Tensor = pyro.sample("z", posterior, infer=at_temperature(self.temperature))  # (B, N, K)
        return z

    def _label(self, x: Tensor, y: Tensor | None) -> Tensor:
        """Return labels as one-hots (B, C)."""
        if y is None:
            raise ValueError("Expected labels y with data x, since the model is p(x | y), but found none.")
        label = one_hot_labels(x, y, self.num_classes)
        if is_validation_enabled() and not bool(label.any(-1).all()):
            raise ValueError(
                f"Expected labels 0 to {self.num_classes - 1}, but found values from {int(y.min())} to {int(y.max())}."
            )
        return label
