"""A model and its guide with their data bound, as losses that sample need them."""

from functools import cached_property
from typing import final

from torch import Tensor

from ..distributions.one_hot import FactorizedOneHotCategorical
from ..handlers.sites import Run
from .draws import Draws, draw
from .factors import Layout, Reading
from .layout import warn_of
from .reader import Scores, Site, read_guide, score
from .runs import Runs
from .samples import CodesOf, DrawCodes, Sample, anew, changed, read_values, sample
from .statements import Draw


@final
class Target:
    """A model and a guide with their data bound: draws from the guide, and what both say of them.

    :meth:`draw` works for any number of latents. The other methods are functions of codes z (P, B, N, K), hard or soft,
    for a pair whose only latent is one site of one-hots or bits. All densities are in nats, with the programs' scales
    and masks, and are differentiable in parameters and codes.

    Args:
        runs: the pair with its data bound.
        layout: its latents and plates.
    """

    def __init__(self, runs: Runs, layout: Layout) -> None:
        self.runs = runs
        self.layout = layout

    def draw(self, num_particles: int, *, pathwise: bool = True) -> Draws:
        """Draw P values of every latent of each datum from the guide.

        Args:
            num_particles: P.
            pathwise: whether continuous latents are reparameterized where they can be, or scored as discrete ones are.
        """
        warn_of(self.layout)
        return draw(self.runs, self.layout, num_particles, pathwise=pathwise)

    def drawn(self, num_particles: int, draw_codes: DrawCodes) -> Sample:
        """Draw P values of every latent of each datum from the guide, and keep their noise.

        Args:
            num_particles: P.
            draw_codes: draws the discrete ones.
        """
        warn_of(self.layout)
        return sample(self.runs, self.layout, num_particles, draw_codes)

    def changed(
        self,
        base: Sample,
        rows: Tensor | None,
        name: str,
        codes: Tensor,
        codes_of: CodesOf,
        draw_anew: Draw = anew,
    ) -> Sample:
        """Give a latent other codes, as :func:`~pyro_gvae.programs.samples.changed`."""
        return changed(self.runs, self.layout, base, rows, name, codes, codes_of, draw_anew)

    def read(self, values: dict[str, Tensor]) -> Reading:
        """Run the model on values (R, *plates, *event_shape) of every latent."""
        return read_values(self.runs, self.layout, values)

    @cached_property
    def q(self) -> Site:
        """The guide's only latent, a site of one-hots or bits.

        Raises:
            ValueError: if the guide has other latents, or none.
        """
        return read_guide(self.runs.guide)

    @property
    def model(self) -> Run:
        """The model."""
        return self.runs.model

    @property
    def nesting(self) -> int:
        """The number of batch dimensions that plates take."""
        return self.layout.nesting

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
