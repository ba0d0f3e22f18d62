"""The densities of model and guide as functions of codes, for losses that sample codes."""

from typing import NamedTuple

from torch import Tensor

from ..distributions.one_hot import FactorizedOneHotCategorical
from ..handlers.sites import Run
from .reader import Scores, Site, score


class Target(NamedTuple):
    """A model and a guide with their data bound, as functions of codes z (P, B, N, K), hard or soft.

    All densities are in nats, with the programs' scales and masks, and are differentiable in parameters and codes.
    """

    q: Site
    model: Run
    nesting: int  # the number of batch dimensions that the model's plates take

    @property
    def log_probs(self) -> Tensor:
        """log q(z_n = k | x), shape (B, N, K)."""
        return self.q.log_probs.expand(self.q.batch_shape.numel(), -1, -1)

    def sample(self, num_particles: int) -> Tensor:
        """Draw codes from q, shape (P, B, N, K), without a gradient."""
        logits = self.log_probs.detach()
        return FactorizedOneHotCategorical(logits=logits, validate_args=False).sample((num_particles,))

    def score_function(self, codes: Tensor) -> Tensor:
        """Return log q(z | x), shape (P, B), without scale and mask. Its gradient is the score that costs weigh."""
        return (codes * self.log_probs).sum((-2, -1))

    def log_q(self, codes: Tensor) -> Tensor:
        """Return log q(z | x), shape (P, B)."""
        return self.q.weigh(self.score_function(codes))

    def log_joint(self, codes: Tensor) -> Tensor:
        """Return log p(x, z), shape (P, B), from one run of the model on all codes."""
        return self._joint(score(self.model, codes, self.nesting), codes)

    def log_joint_and_scale(self, codes: Tensor) -> tuple[Tensor, float | Tensor]:
        """Return the same, and the one scale of all sites, which multiplies the logarithm of a mean over codes.

        Raises:
            ValueError: if sites are scaled differently.
        """
        scores = score(self.model, codes, self.nesting)
        scale = scores._replace(scales=(*scores.scales, self.q.scale)).common_scale
        return self._joint(scores, codes), scale

    @staticmethod
    def _joint(scores: Scores, codes: Tensor) -> Tensor:
        return scores.table + scores.prior.weigh((codes * scores.prior.log_probs).sum((-2, -1)))
