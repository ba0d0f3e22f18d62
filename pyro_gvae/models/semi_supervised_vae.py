"""Define the semi-supervised VAE M2, as a Pyro model and guide."""

from collections.abc import Sequence
from typing import Any, ClassVar, Final, final

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from torch import Tensor, nn
from typing_extensions import override

from ..config.models import Labels
from ..handlers.sites import at_temperature
from .base import VAE, check_sizes, one_hot_labels, widths_by_name
from .networks import BroadcastMLP, mlp
from .observations import Observation


@final
class SemiSupervisedVAE(VAE):
    r"""A variational autoencoder of data with a class y, which is known for some of the data, and a style z.

    .. math::

        y &\sim \mathrm{Categorical}(1 / K), \quad z \sim \mathrm{Normal}(0, I) \\
        x | y, z &\sim \mathrm{Observation}(\mathrm{decoder}(y, z)) \\
        q(y, z | x) &= q(y | x) \, q(z | x, y)

    This is the model M2 of Kingma et al. 2014 (*Semi-supervised Learning with Deep Generative Models*, arXiv
    1406.5298). The sites are "y", a one-hot (K,), "z" (L,) and "x", in the plate "data". Where a label is given, it is
    observed at "label" and "y" is masked: the objective of that datum is a bound on log p(x, y), and on log p(x) for
    the others.

    Args:
        data_dim: D.
        num_classes: K.
        latent_dim: L, the dimension of z.
        hidden: widths of the encoders' hidden layers; the decoder uses them in reverse order.
        observation: a name or a module, as for :class:`~pyro_gvae.CategoricalVAE`.
        label_weight: alpha of the paper's eq. 9: `alpha * log q(y | x)` is added to the objective of each datum with a
            label, which trains the classifier q(y | x). The objective is then not a bound. At 0, only data without
            labels train the classifier.
        **options: `scale`, `num_levels`, `temperature`, `prior_temperature` and `name`, as for
            :class:`~pyro_gvae.CategoricalVAE`.

    Raises:
        ValueError: if a size, a weight or a temperature is out of range, or the observation or one of its options is
            unknown.

    Example:
        >>> from pyro_gvae import TrainConfig, fit
        >>> vae = SemiSupervisedVAE(data_dim=6, num_classes=3, latent_dim=2, hidden=(5,), label_weight=1.0)
        >>> x, y = torch.ones(4, 6), torch.tensor([0, 2, -1, -1])  # two of four are labelled
        >>> fit(vae, (x, y), TrainConfig(stages="exact:2steps", batch_size=4), progress=False).steps
        2
    """

    labels: ClassVar[Labels] = Labels.LEARNED

    def __init__(
        self,
        data_dim: int = 784,
        num_classes: int = 10,
        latent_dim: int = 50,
        hidden: Sequence[int] = (500,),
        *,
        observation: str | Observation = "bernoulli",
        label_weight: float = 0.0,
        **options: Any,
    ) -> None:
        check_sizes(data_dim=data_dim, num_classes=num_classes, latent_dim=latent_dim, **widths_by_name(hidden))
        if not 0 <= label_weight < float("inf"):
            raise ValueError(f"Expected a finite label_weight of at least 0, but found {label_weight}.")
        super().__init__(data_dim, observation, **options)
        self.num_classes: Final = num_classes
        self.latent_dim: Final = latent_dim
        self.label_weight: Final = label_weight
        self.classifier = nn.Sequential(*mlp([self.input_dim, *hidden, num_classes]))
        self.encoder = BroadcastMLP([self.input_dim, num_classes], [*hidden, 2 * latent_dim])
        self.decoder = BroadcastMLP([num_classes, latent_dim], [*reversed(hidden), self.natural_dim])

    @override
    def model(self, x: Tensor, y: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Run the model p(y) p(z) p(x | y, z).

        Args:
            x: data (B, D).
            y: labels (B,), integers 0 to K - 1, or -1 where there is none; None if there are none at all.

        Returns:
            The class y (B, K), a one-hot, and the style z (B, L).

        Raises:
            ValueError: if labels do not have shape (B,), are not integers or, with Pyro's validation, are out of range.
        """
        self._begin(x)
        label, is_known = self._labels(x, y)
        with pyro.plate("data", len(x)):
            prior = dist.OneHotCategorical(logits=x.new_zeros(self.num_classes))
            with poutine.mask(mask=~is_known):
                drawn = pyro.sample("y", prior, infer=at_temperature(self.prior_temperature))  # (B, K)
            if y is not None:
                with poutine.mask(mask=is_known):
                    pyro.sample("label", prior, obs=label)
                    if self.label_weight:
                        log_q = self.classifier(self.observation.inputs(x)).log_softmax(-1)
                        pyro.factor("classification", self.label_weight * (log_q * label).sum(-1))
            y_or_label = _chosen(y, is_known, label, drawn)
            z = pyro.sample("z", dist.Normal(x.new_zeros(self.latent_dim), 1.0).to_event(1))  # (B, L)
            pyro.sample("x", self.observation(self.decoder(y_or_label, z)), obs=x)
        return y_or_label, z

    @override
    def guide(self, x: Tensor, y: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Run the guide q(y | x) q(z | x, y).

        Args:
            x: data (B, D).
            y: labels (B,), as for :meth:`model`.

        Returns:
            The class y (B, K), a one-hot, and the style z (B, L).

        Raises:
            ValueError: as :meth:`model`.
        """
        self._begin(x)
        label, is_known = self._labels(x, y)
        with pyro.plate("data", len(x)):
            posterior = dist.OneHotCategorical(logits=self.classifier(self.observation.inputs(x)))
            with poutine.mask(mask=~is_known):
                drawn = pyro.sample("y", posterior, infer=at_temperature(self.temperature))  # (B, K)
            y_or_label = _chosen(y, is_known, label, drawn)
            loc, log_scale = self.encoder(self.observation.inputs(x), y_or_label).chunk(2, -1)
            z = pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))  # (B, L)
        return y_or_label, z

    def _labels(self, x: Tensor, y: Tensor | None) -> tuple[Tensor, Any]:  # Any: Pyro's masks have a type of their own
        """Return labels as one-hots (B, K), and which of them are known, a tensor (B,)."""
        if y is None:
            return x.new_zeros(len(x), self.num_classes), torch.zeros(len(x), dtype=torch.bool, device=x.device)
        # A label of K or more has zeros in place of a one-hot, which Pyro's validation refuses at the site "label".
        return one_hot_labels(x, y.clamp_min(0), self.num_classes), y >= 0


def _chosen(y: Tensor | None, is_known: Tensor, label: Tensor, drawn: Tensor) -> Tensor:
    """Return labels where known, and drawn classes elsewhere; without any labels, the drawn ones are not expanded."""
    return drawn if y is None else torch.where(is_known.unsqueeze(-1), label, drawn)
