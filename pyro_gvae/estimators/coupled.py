"""Estimators that sample codes in antithetic pairs."""

from ..elbos.coupled import DisARM, DisARMIW
from .base import Estimator, check_particles
from .claims import Bias, Objective


def disarm(*, num_particles: int = 1) -> Estimator:
    """DisARM: antithetic pairs of binary codes.

    *Approximates* the ELBO of the discrete model. *With* two decoder calls for each pair. *Requires* K = 2.
    *Bias*: none.

    Args:
        num_particles: P, *pairs* per datum.

    Raises:
        ValueError: if there is no particle.
    """
    check_particles(num_particles)
    return Estimator(
        name="disarm",
        elbo=lambda: DisARM(num_particles=num_particles),
        objective=Objective.ELBO,
        bias=Bias.NONE,
        reference="Dong, Mnih, Tucker 2020, arXiv 2006.10680",
        num_categories=2,
    )


def disarm_iw(*, num_particles: int = 1) -> Estimator:
    """DisARM-IW: pairs of codes that a stick-breaking coupling keeps apart, with importance weights.

    *Approximates* the ELBO of the discrete model. *With* two decoder calls for each pair. *Requires* nothing; for K = 2
    it is `disarm`. *Bias*: none.

    Args:
        num_particles: P, *pairs* per datum.

    Raises:
        ValueError: if there is no particle.
    """
    check_particles(num_particles)
    return Estimator(
        name="disarm-iw",
        elbo=lambda: DisARMIW(num_particles=num_particles),
        objective=Objective.ELBO,
        bias=Bias.NONE,
        reference="Dong, Mnih, Tucker 2021, arXiv 2106.08056",
    )
