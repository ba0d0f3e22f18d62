"""Estimators of the thermodynamic variational objective."""

from ..config.checks import check_particles
from ..elbos.thermodynamic import ThermodynamicObjective, partition
from .base import Estimator
from .claims import Bias, Objective


def tvo(*, num_particles: int = 5, num_partitions: int = 2, first: float = 0.05) -> Estimator:
    """TVO: a lower bound of log p(x), a sum over temperatures between guide and posterior.

    *Approximates* a bound of the log-evidence of the discrete model that lies above the ELBO. *With* P codes in one
    decoder call, weighted for each temperature, and a covariance for the gradient (Masrani et al. 2019, arXiv
    1907.00031). *Requires* P >= 2, and one scale for all sites. *Bias*: that of normalized weights, of order 1/P.

    Args:
        num_particles: P, samples per datum.
        num_partitions: J, parts of the integral; 1 gives the ELBO.
        first: beta_1, where the first part ends; the others have equal widths in log beta.

    Returns:
        The estimator, to be bound to a program by `bind`.

    Raises:
        ValueError: if an option is out of range.

    Example:
        >>> tvo(num_partitions=5).approximates
        'the thermodynamic bound of the discrete model'
    """
    check_particles(num_particles, least=2)
    partition(num_partitions, first)  # refuses what is out of range
    return Estimator(
        name="tvo",
        elbo=lambda: ThermodynamicObjective(num_particles=num_particles, num_partitions=num_partitions, first=first),
        objective=Objective.THERMODYNAMIC,
        bias=Bias.NORMALIZED_WEIGHTS,
        reference="Masrani et al. 2019, arXiv 1907.00031",
    )
