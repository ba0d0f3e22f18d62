"""Estimators that enumerate one latent at a time."""

from ..config.checks import check_particles
from ..elbos.local import LocalExpectation, LocalGradient
from .base import Drawn, Estimator
from .claims import Bias, Objective


def local_expectation(*, num_particles: int = 1) -> Estimator:
    """Local expectation gradients: each latent is summed over its K categories while the others are sampled.

    *Approximates* the ELBO of the discrete model. *With* 1 + N (K - 1) decoder calls for each sample, with N (K - 1)
    summed over the discrete latents; one of them is differentiated, and the others are scored in slices (Titsias,
    Lázaro-Gredilla 2015, arXiv 1503.01494). *Requires* memory for a slice of decoder outputs, but not for their graph.
    *Bias*: none; with a single digit and nothing continuous, only the decoder's gradient has variance.

    Args:
        num_particles: P, samples per datum.

    Returns:
        The estimator, to be bound to a program by `bind`.

    Raises:
        ValueError: if `num_particles` is below 1.

    Example:
        >>> local_expectation(num_particles=2).is_unbiased
        True
    """
    check_particles(num_particles)
    return Estimator(
        name="local-expectation",
        elbo=lambda: LocalExpectation(num_particles=num_particles),
        objective=Objective.ELBO,
        bias=Bias.NONE,
        reference="Titsias & Lázaro-Gredilla 2015, arXiv 1503.01494; De Smet et al. 2023, arXiv 2311.12569",
        at_site=Drawn(LocalGradient, num_particles),
    )
