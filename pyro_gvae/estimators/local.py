"""Estimators that enumerate one latent at a time."""

from ..elbos.local import LocalExpectation
from .base import Estimator, check_particles
from .claims import Bias, Objective


def local_expectation(*, num_particles: int = 1) -> Estimator:
    """Local expectation gradients: each latent is summed over its K categories, the others sampled.

    *Approximates* the ELBO of the discrete model. *With* 1 + N (K - 1) decoder calls for each sample, of which
    one is differentiated and the others are one batch. *Requires* memory for so many decoder outputs for each datum,
    not for their graph. *Bias*: none; with one latent, no variance either but that of the decoder's gradient.

    Args:
        num_particles: P, samples per datum.

    Raises:
        ValueError: if there is no particle.
    """
    check_particles(num_particles)
    return Estimator(
        name="local-expectation",
        elbo=lambda: LocalExpectation(num_particles=num_particles),
        objective=Objective.ELBO,
        bias=Bias.NONE,
        reference="Titsias & Lázaro-Gredilla 2015, arXiv 1503.01494; De Smet et al. 2023, arXiv 2311.12569",
    )
