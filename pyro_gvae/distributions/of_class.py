"""Data in a few classes: each datum has the parameters of its class, and all classes score all data at once."""

import copy
from typing import Any, ClassVar, Self, final

from pyro.distributions import TorchDistribution
from pyro.distributions.util import broadcast_shape
from torch import Size, Tensor

from .exponential_family import ExponentialFamily


@final
class OfClass(TorchDistribution):
    r"""An exponential family of data x_b whose parameters are those of a code and of the class of the datum.

    .. math:: \log p(x_b | s) = \log p(x_b | \eta_{s, y_b})

    There are natural parameters for S codes and C classes, not for S codes and B data. One matrix product gives the
    log-likelihoods of all data under all of them, of which each datum selects those of its class.

    Args:
        base_dist: the family, of batch shape (..., C).
        classes: the class of each datum, integers 0 to C - 1, (B,).

    Example:
        >>> import torch
        >>> from pyro_gvae.distributions.bernoulli import Bernoulli
        >>> of_pairs = Bernoulli(torch.randn(7, 3, 5))  # 7 codes, 3 classes, 5 pixels
        >>> y, x = torch.tensor([0, 2, 2, 1]), torch.ones(4, 5)
        >>> scores = OfClass(of_pairs, y).log_prob(x)
        >>> torch.allclose(scores[:, 1], Bernoulli(of_pairs.natural[:, 2]).log_prob(x[1]))
        True
    """

    arg_constraints: ClassVar = {}

    def __init__(self, base_dist: ExponentialFamily, classes: Tensor) -> None:
        self.base_dist = base_dist
        self.classes = classes.long()
        batch_shape = base_dist.batch_shape[:-1] + classes.shape
        super().__init__(batch_shape, base_dist.event_shape, validate_args=False)

    @property
    def support(self) -> Any:
        """The support of the family."""
        return self.base_dist.support

    def expand(self, batch_shape: Any, _instance: Any = None) -> Self:
        """Return the same distribution with a larger batch shape, which takes no memory."""
        new = copy.copy(self)
        new._batch_shape = Size(broadcast_shape(self.batch_shape, Size(batch_shape)))
        return new

    def log_prob(self, value: Tensor) -> Tensor:
        """Return log p of data (B, D) in nats, of the batch shape."""
        of_all = self.base_dist.outer_log_prob(value)  # (..., C, B)
        classes = self.classes.expand(*of_all.shape[:-2], 1, -1)
        return of_all.gather(-2, classes).squeeze(-2).expand(self.batch_shape)
