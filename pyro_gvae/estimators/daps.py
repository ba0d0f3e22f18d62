"""Estimators that move the guide towards a target distribution in a trust region."""

from ..config.checks import check_particles
from ..elbos.daps import DAPS
from .base import Estimator
from .claims import Bias, Objective


def daps(*, num_particles: int = 8, target: float = 0.5, beta: float = 1.0) -> Estimator:
    """DAPS: train the guide on the likelihood of its own codes, weighted with a target effective number of codes.

    *Approximates* the ELBO of the discrete model. *With* P codes in one decoder call, and one learned number, the
    multiplier of a trust region (Drolet et al. 2025, arXiv 2509.24716, here for any guide). *Requires* P >= 2, one
    scale for all sites, and a guide that shares no parameters with the model. *Bias*: none in the loss; the guide's
    gradient is that of a weighted likelihood.

    Args:
        num_particles: P, samples per datum.
        target: the target effective number of codes, as a share of P; the paper uses 0.33 to 0.75.
        beta: the weight of the guide's entropy.

    Returns:
        The estimator, to be bound to a program by `bind`.

    Raises:
        ValueError: if an option is out of range.

    Example:
        >>> daps(target=0.33).bias.value
        "none of the loss; of the guide's gradient, which is that of a weighted likelihood"
    """
    check_particles(num_particles, least=2)
    if not 1 / num_particles < target < 1:
        raise ValueError(
            f"Expected a target between 1 / {num_particles} and 1, since the effective number of {num_particles} codes "
            f"lies between 1 and {num_particles}, but found {target}. Try 0.5."
        )
    if beta < 0:
        raise ValueError(f"Expected beta of at least 0, but found {beta}. Try 1, as in the ELBO.")
    return Estimator(
        name="daps",
        elbo=lambda: DAPS(num_particles=num_particles, target=target, beta=beta),
        objective=Objective.ELBO_AND_WEIGHTED_LIKELIHOOD,
        bias=Bias.WEIGHTED_LIKELIHOOD,
        reference="Drolet et al. 2025, arXiv 2509.24716",
    )
